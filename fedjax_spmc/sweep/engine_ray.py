"""Plays a sweep on a Ray cluster: pieces of groups go out as tasks that ask for a GPU each, rows come back.

Only this process writes the table, so that a cell cannot stand in it twice: a piece whose node dies is played again
elsewhere, by Ray, and returns once. Where the nodes share the sweep's folder, it goes on from its last chunk.
`RAY_ADDRESS` names the cluster; without it a Ray of this machine alone is started.
"""

import hashlib
import importlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from fedjax_spmc import config as configs
from fedjax_spmc import numerics
from fedjax_spmc.config.files import use_compilation_cache
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.sweep import engine
from fedjax_spmc.sweep.plan import Cell, Group
from fedjax_spmc.sweep.table import Outcome, failed_outcome

RETRIES = 5
"""How often a piece is played again after its node or its process died; then its cells have failed."""
PIECES_PER_SLOT = 2
"""Pieces of groups for every GPU, so that a fast one is not idle while a slow one ends."""


class Piece(NamedTuple):
    """The argument of a task: plain values.

    Attributes:
        key: of the group.
        cells: (swept fields, config, id) of all cells of the group, which fix the shapes of its program.
        pending: ids of the cells to play.
        work: the sweep's folder for what is in progress; used where it exists.
    """

    key: str
    cells: tuple[tuple[dict[str, Any], dict[str, Any], str], ...]
    pending: tuple[str, ...]
    work: str


@numerics.pinned()
def play_piece(piece: Piece) -> list[tuple[str, Outcome]]:
    """The task: plays the pending cells on the devices that Ray gave to this process.

    Returns:
        (cell id, outcome), the cell itself left out of the outcome: the sender knows it.
    """
    cells = tuple(Cell(fields, configs.resolve(config), name) for fields, config, name in piece.cells)
    use_compilation_cache(cells[0].config)
    dataset, environment = engine.DatasetCache().get(cells[0].config)
    outcomes: list[tuple[str, Outcome]] = []

    def on_outcome(outcome: Outcome) -> None:
        outcomes.append((outcome.cell.id, outcome._replace(cell=None)))  # pyright: ignore[reportArgumentType]

    group = Group(piece.key, cells)
    work = Path(piece.work)
    name = hashlib.sha256("".join(piece.pending).encode()).hexdigest()[:16]
    # A process that Ray takes for dead may still write: then this one keeps no chunks.
    lock = FileLock(work / f"{name}.lock", timeout=0) if work.is_dir() and os.access(work, os.W_OK) else None
    try:
        if lock is not None:
            lock.acquire()
    except (Timeout, OSError):
        lock = None
    try:
        folder = None if lock is None else work / name
        engine.play_group(group, piece.pending, dataset, environment, folder, on_outcome, lambda text: None)
    finally:
        if lock is not None:
            lock.release()
    return outcomes


def pieces_of(groups: Sequence[Group], pending: Collection[str], slots: int, work: Path) -> Iterator[Piece]:
    """Groups cut into about `PIECES_PER_SLOT` pieces a slot, none smaller than a cell; whole where there are plenty."""
    each = max(1, -(-PIECES_PER_SLOT * slots // max(1, len(groups))))
    for group in groups:
        plain = tuple((cell.fields, configs.to_plain(cell.config), cell.id) for cell in group.cells)
        ids = [cell.id for cell in group.cells if cell.id in pending]
        size = -(-len(ids) // each)
        for start in range(0, len(ids), size):
            yield Piece(group.key, plain, tuple(ids[start : start + size]), str(work.absolute()))


def make_play_groups(workdir: Path) -> engine.PlayGroups:
    """The engine of a Ray cluster.

    Args:
        workdir: the sweep's folder.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at `RAY_ADDRESS`.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ConfigError("--engine=ray needs Ray: pip install 'fedjax_spmc[ray]'.") from None
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False)
        except ConnectionError as error:
            address, reason = os.environ.get("RAY_ADDRESS"), " ".join(str(error).split())[:200]
            raise ConfigError(f"RAY_ADDRESS = {address!r} is no Ray cluster ({reason}).") from None

    def play_groups(
        groups: Sequence[Group],
        pending: Collection[str],
        cache: engine.DatasetCache,
        on_outcome: engine.OnOutcome,
        log: engine.Log,
    ) -> None:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        log(f"Ray: {len([node for node in ray.nodes() if node['Alive']])} nodes, {gpus} GPUs, {cpus} CPUs")
        work = workdir / "work"
        work.mkdir(exist_ok=True)
        asked = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        task = ray.remote(max_retries=RETRIES, **asked)(play_piece)
        cells = {cell.id: cell for group in groups for cell in group.cells}
        waiting = {task.remote(piece): piece for piece in pieces_of(groups, pending, gpus or cpus, work)}
        try:
            while waiting:
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                piece = waiting.pop(ready)
                try:
                    for name, outcome in ray.get(ready):
                        on_outcome(outcome._replace(cell=cells[name]))
                except ray.exceptions.RayError as error:
                    reason = " ".join(str(error).split())[-500:]
                    for name in piece.pending:
                        on_outcome(failed_outcome(cells[name], cache.environment(cells[name].config), reason))
        finally:
            for task_id in waiting:
                ray.cancel(task_id, force=True)

    return play_groups
