"""One experiment from config to result: config -> data -> partition -> attack -> rounds -> evaluate -> record.

This is the page to read. In a notebook:

    result = experiment.run(config)             # or run(config, "runs/mine") to keep it
    result = experiment.load("runs/mine")
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc import devices, plots, record, results, setup
from fedjax_spmc.checkpoint import Checkpoints
from fedjax_spmc.errors import ConfigError, DivergedError, WorkdirError
from fedjax_spmc.federation import FederationState, RoundReport, evaluated_model
from fedjax_spmc.progress import Progress
from fedjax_spmc.record import RunFolder
from fedjax_spmc.types import Variables, Verdict


class Result(NamedTuple):
    """What an experiment leaves.

    Attributes:
        variables: the final global model (parameters, batch statistics), as it was evaluated.
        history: one dict per evaluated round, the lines of `metrics.jsonl`.
        verdicts: one `Verdict` of NumPy arrays ([K] each) per evaluated round.
        config: the resolved config.
    """

    variables: Variables
    history: list[dict[str, Any]]
    verdicts: list[Verdict]
    config: Any


def run(config: configs.Config, workdir: str | os.PathLike[str] | None = None, stream: TextIO | None = None) -> Result:
    """Runs an experiment, or goes on with the one in `workdir` from its last finished chunk.

    Args:
        config: a ConfigDict, as `get_config()` of a config file returns it.
        workdir: where to record; None keeps nothing on disk.
        stream: where progress is printed; None prints nothing.

    Raises:
        UserError: (a ValueError) the config, the data or the workdir cannot be used; one sentence says why.
        DivergedError: training stopped being finite; what was recorded until then is kept.
    """
    config = configs.resolve(config)
    folder = None if workdir is None else RunFolder(workdir, config)
    with jax.default_matmul_precision(config.precision):
        dataset = setup.load_data(config)
        experiment = setup.build(config, dataset)
        if folder is None:
            return _play(config, experiment, None, Progress(config.federation.rounds, stream))
        folder.begin(record.environment(dataset.info, dataset.fingerprint))
        try:
            return _play(config, experiment, folder, Progress(config.federation.rounds, stream))
        finally:
            folder.close()


def _play(config: Any, experiment: setup.Experiment, folder: RunFolder | None, progress: Progress) -> Result:
    rounds, every = config.federation.rounds, config.federation.eval_every
    state, history, checkpoints = _resume(config, experiment, folder, progress)
    used = devices.chosen(config.federation.clients_per_round, config.federation.devices)
    play_round = devices.make_round(experiment.federation, experiment.arrays, experiment.arrays[1].sizes, used)
    done = int(state.round)
    over = done >= rounds or int(state.diverged) >= 0
    board = None if folder is None or over else record.Board(folder.path)
    counted = [sum(line[name] for line in history) for name in ("non_finite", "aggregation_failed")]
    since, start = done, time.perf_counter()
    try:
        while done < rounds and int(state.diverged) < 0:
            state, report = play_round(state, experiment.key)
            done += 1
            evaluated = done % every == 0 or done == rounds
            saved = checkpoints is not None and (done % config.checkpoint.every == 0 or done == rounds)
            lost = int(state.diverged) >= 0  # waits for the device
            if evaluated or lost:
                seconds = (time.perf_counter() - start) / (done - since)
                line = _line(experiment, state, report, counted, seconds)
                counted = [int(state.rejected), int(state.failures)]
                history.append(line)
                if folder is not None and board is not None:
                    folder.append(line)
                    folder.write_details(report.details)
                    board.add(line)
                progress.update(line)
                since, start = done, time.perf_counter()
            if checkpoints is not None and folder is not None and (saved or lost):
                checkpoints.save(done, state)
                folder.write_model(experiment.federation.model, evaluated_model(experiment.federation, state))
    finally:
        progress.close()
        if board is not None:
            board.close()
        if checkpoints is not None:
            checkpoints.close()
    if folder is not None:
        _finish(config, experiment, folder, history, int(state.diverged))
    if int(state.diverged) >= 0:
        raise DivergedError(results.diverged_message(int(state.diverged)), int(state.diverged))
    variables = evaluated_model(experiment.federation, state)
    return Result(variables, history, [_verdict(line) for line in history], config)


def _resume(
    config: Any, experiment: setup.Experiment, folder: RunFolder | None, progress: Progress
) -> tuple[FederationState, list[dict[str, Any]], Checkpoints | None]:
    """The state to start from, the history so far, and where checkpoints go."""
    if folder is None:
        return experiment.state, [], None
    checkpoints = Checkpoints(folder.path / "checkpoint")
    done = checkpoints.latest()
    history = folder.history()
    if done is None:
        if (folder.path / "model.npz").exists():  # it is written after the first checkpoint
            raise checkpoints.damaged("there is none, but the run has played rounds")
        folder.accept()
        folder.rewrite_history([])
        _draw_partition(experiment, folder)
        return experiment.state, [], checkpoints
    rounds, every = config.federation.rounds, config.federation.eval_every
    if done > rounds:
        raise ConfigError(
            f"federation.rounds = {rounds} is not allowed in workdir = {str(folder.path)!r}: it must be at least "
            f"{done}, the rounds that the run there has played."
        )
    state = checkpoints.restore(done, experiment.state)
    diverged = int(state.diverged) >= 0
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
    folder.accept(over=done == rounds or diverged)
    variables = evaluated_model(experiment.federation, state)
    folder.write_model(experiment.federation.model, variables)  # it may have been killed before it did
    folder.rewrite_history(kept)  # half a line may stand at its end
    if done < rounds and not diverged:
        progress.note(f"goes on after round {done} of {rounds} in {folder.path}")
    return state, kept, checkpoints


def _line(
    experiment: setup.Experiment,
    state: FederationState,
    report: RoundReport,
    counted: list[int],
    round_seconds: float,
) -> dict[str, Any]:
    """Evaluates the global model: one line of `metrics.jsonl`.

    `non_finite` (uploads) and `aggregation_failed` (rounds that kept the global model) count since the line before.
    """
    start = time.perf_counter()
    counts = experiment.evaluate(evaluated_model(experiment.federation, state), experiment.test, state.attack)
    counts = jax.device_get(counts)
    return results.line(
        round_index=int(state.round) - 1,
        counts=counts,
        report=report,
        malicious=experiment.malicious,
        backdoor=experiment.federation.attack.backdoor is not None,
        non_finite=int(state.rejected) - counted[0],
        aggregation_failed=int(state.failures) - counted[1],
        seconds={"round_seconds": round_seconds, "eval_seconds": time.perf_counter() - start},
    )


def _finish(
    config: Any, experiment: setup.Experiment, folder: RunFolder, history: list[dict[str, Any]], diverged: int
) -> None:
    """Writes the summary and the curves."""
    summary = results.summary(
        config.federation.rounds,
        history,
        experiment.federation.oracle,
        experiment.dataset.info.note,
        experiment.malicious,
        diverged,
    )
    folder.write_json("summary.json", summary)
    plots.curves({configs.method_title(config): history}, folder.path / "curves.png")
    plots.verdicts(history, experiment.malicious, folder.path / "verdicts.png")
    details = folder.details()
    if "importance_shares" in details:
        malicious = experiment.malicious[np.array(history[-1]["client_ids"], int)]
        plots.importances(details, malicious, folder.path / "importance.png")


def _draw_partition(experiment: setup.Experiment, folder: RunFolder) -> None:
    labels, classes = experiment.dataset.train_labels, experiment.dataset.info.num_classes
    counts = np.stack([np.bincount(labels[part], minlength=classes) for part in experiment.parts])
    plots.partition(counts, experiment.malicious, folder.path / "partition.png")


def _verdict(line: Mapping[str, Any]) -> Verdict:
    """The verdict of a line of `metrics.jsonl`, as NumPy arrays; an undefined score is NaN."""
    scores = [np.nan if score is None else score for score in line["scores"]]
    columns: Any = np.array(line["weights"], np.float32), np.array(scores, np.float32), np.array(line["flagged"], bool)
    return Verdict(*columns)


def load(workdir: str | os.PathLike[str]) -> Result:
    """Reads a run folder back: the newest saved model, the history, the verdicts and the config.

    Raises:
        WorkdirError: there is no run, or a file of it is missing or damaged.
    """
    path = Path(workdir)
    config_path = path / "config.json"
    try:
        config = configs.resolve(json.loads(config_path.read_text()))
    except OSError:
        raise WorkdirError(f"workdir = {str(path)!r} holds no run: {config_path} is missing.") from None
    except ValueError as error:
        raise WorkdirError(f"{config_path} is damaged ({str(error).rstrip('.')}).") from None
    folder = RunFolder(path, config, read_only=True)
    environment = folder.environment()
    if environment is None:
        raise WorkdirError(f"{path / 'environment.json'} is missing.")
    facts = environment["data"]
    model = setup.make_model(config, facts["num_classes"], tuple(facts["image_shape"]))
    history = folder.history()
    return Result(folder.read_model(model), history, [_verdict(line) for line in history], config)
