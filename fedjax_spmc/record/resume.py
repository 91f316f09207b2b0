"""Where a run goes on: the newest checkpoint, and the lines of the rounds before it."""

from typing import Any, NamedTuple

from fedjax_spmc.errors import ConfigError, WorkdirError
from fedjax_spmc.federation import FederationState
from fedjax_spmc.record.checkpoint import Checkpoints
from fedjax_spmc.record.folder import RunFolder
from fedjax_spmc.record.lines import NONE_UNREPORTED, Unreported


class Snapshot(NamedTuple):
    """The content of a checkpoint: the state, and the counts that the next line of `metrics.jsonl` reports."""

    state: FederationState
    unreported: Unreported


class StartingPoint(NamedTuple):
    """Where a run starts or goes on.

    Attributes:
        snapshot: before the next round.
        history: the lines of `metrics.jsonl` so far.
    """

    snapshot: Snapshot
    history: list[dict[str, Any]]


def resume(config: Any, folder: RunFolder, checkpoints: Checkpoints, first: FederationState) -> StartingPoint | None:
    """Where the run in a folder goes on; None where it has not begun. Only reads.

    Args:
        config: resolved.
        folder: of the run.
        checkpoints: of the run.
        first: the state before round 0.

    Raises:
        ConfigError: the config has fewer rounds than were played.
        WorkdirError: the folder is damaged.
    """
    done = checkpoints.latest()
    history = folder.history()
    if done is None:
        if (folder.path / "model.npz").exists():  # it is written after the first checkpoint
            raise checkpoints.damaged("there is none, but the run has played rounds")
        return None
    rounds, every = config.federation.rounds, config.federation.eval_every
    if done > rounds:
        raise ConfigError(
            f"federation.rounds = {rounds} is not allowed in workdir = {str(folder.path)!r}: it must be at least "
            f"{done}, the rounds that the run there has played."
        )
    snapshot = checkpoints.restore(done, Snapshot(first, NONE_UNREPORTED))
    diverged = int(snapshot.state.diverged) >= 0
    # A line behind the checkpoint is of a round that is played again; the last round of a shorter run may lie off the
    # grid of evaluations of the longer one.
    grid = [index for index in range(done) if (index + 1) % every == 0]
    last = [done - 1] if (done == rounds or diverged) and done % every else []
    kept = [line for line in history if line["round"] in {*grid, *last}]
    found = [line["round"] for line in kept]
    if last and not diverged and found == grid:
        raise ConfigError(
            f"federation.rounds = {rounds} is not allowed in workdir = {str(folder.path)!r}: it must be at least "
            f"{done + 1}, as the run there has played {done} rounds and has not evaluated the last."
        )
    if found != grid + last:
        raise WorkdirError(
            f"{folder.path / 'metrics.jsonl'} is damaged ({len(found)} of {len(grid + last)} evaluated rounds are "
            "there): remove the run folder or give another --workdir."
        )
    return StartingPoint(snapshot, kept)
