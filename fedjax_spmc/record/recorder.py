"""Keeps a run folder up to date while a run goes on; `NoRecorder` has the same methods and writes nothing."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.federation import RoundReport, evaluated_model
from fedjax_spmc.options import quoted
from fedjax_spmc.record import files, plots
from fedjax_spmc.record.checkpoint import Checkpoints
from fedjax_spmc.record.environment import environment
from fedjax_spmc.record.folder import RunFolder
from fedjax_spmc.record.lines import NONE_UNREPORTED, at_confidence, summary_of
from fedjax_spmc.record.progress import Progress
from fedjax_spmc.record.remarks import facts_of
from fedjax_spmc.record.resume import Snapshot, StartingPoint, resume
from fedjax_spmc.record.tensorboard import TensorBoard
from fedjax_spmc.record.truth import attack_arrays, partition_arrays, roster_content
from fedjax_spmc.setup import Experiment


class NoRecorder:
    """The recorder of a run without a folder: every method that `experiment.run` calls, and none writes anything."""

    @contextmanager
    def opened(self, experiment: Experiment) -> Iterator[StartingPoint]:
        """Where the run starts; for as long as the `with` block lasts the run is recorded."""
        yield StartingPoint(Snapshot(experiment.state, NONE_UNREPORTED), [])

    def add(self, line: Mapping[str, Any], report: RoundReport) -> None:
        """Records an evaluated round."""

    def save(self, rounds: int, snapshot: Snapshot, last: bool) -> None:
        """Saves the whole state after `rounds` rounds, where the config asks for it or they were the last."""

    def finish(self, history: list[dict[str, Any]], diverged: int) -> None:
        """Writes the summary and the pictures."""


class Recorder(NoRecorder):
    """The recorder of a run folder. Creating it only reads.

    Args:
        config: resolved.
        workdir: the folder; it may not exist yet, or hold the same run.
        progress: prints where the run goes on.

    Raises:
        UserError: the folder cannot be used.
    """

    def __init__(self, config: configs.Config, workdir: str | os.PathLike[str], progress: Progress):
        self._config = config
        self._progress = progress
        self._folder = RunFolder(workdir, config)

    @contextmanager
    def opened(self, experiment: Experiment) -> Iterator[StartingPoint]:
        """Takes the folder's lock and gives where the run starts or goes on.

        Raises:
            UserError: the folder is in use, damaged, or holds another run.
        """
        folder, info = self._folder, experiment.dataset.info
        self._experiment = experiment
        self._pictured = False
        self._board: TensorBoard | None = None
        fingerprint, held = experiment.dataset.fingerprint, experiment.federation.held
        folder.begin(environment(info, fingerprint, self._config.precision, experiment.start_sha256, held))
        try:
            self._checkpoints = Checkpoints(folder.path / "checkpoint")
            try:
                yield self._start()
            finally:
                self._checkpoints.close()
        finally:
            folder.close()

    def _start(self) -> StartingPoint:
        config, folder, experiment = self._config, self._folder, self._experiment
        rounds = config.federation.rounds
        found = resume(config, folder, self._checkpoints, experiment.state)
        start = found or StartingPoint(Snapshot(experiment.state, NONE_UNREPORTED), [])
        start = start._replace(history=self._judged(start.history))
        state = start.snapshot.state
        done, diverged = int(state.round), int(state.diverged) >= 0
        ended = done == rounds or diverged
        changed = folder.write_start(done if found else 0, ended)
        folder.write_json("roster.json", roster_content(experiment.state.roster))
        folder.write_vocabulary(experiment.dataset.info.tokenizer)
        if found:  # it may have been killed before it wrote the model
            folder.write_model(evaluated_model(experiment.federation, state))
            folder.write_attack(attack_arrays(state.attack))
            folder.write_rule(experiment.federation.rule.details(state.rule, experiment.malicious))
        folder.rewrite_history(start.history)  # half a line may stand at its end
        if not found:
            self._write_partition()
        elif not ended:
            words = f" (since then: {', '.join(changed)})" if changed else ""
            self._progress.note(f"goes on after round {done} of {rounds} in {folder.path}{words}")
        if not ended:
            self._board = TensorBoard(folder.path, self._progress.note)
        return start

    def _judged(self, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The lines as they are with the config's confidence, which may have changed."""
        confidence = self._config.evaluation.confidence
        try:
            return [at_confidence(line, confidence) for line in history]
        except ValueError:
            raise ConfigError(
                f"evaluation.confidence = {confidence} is not allowed in workdir = {str(self._folder.path)!r}: it must "
                "be 0.0, as an older version wrote the lines there without the histograms that it is read off."
            ) from None

    def add(self, line: Mapping[str, Any], report: RoundReport) -> None:
        """Adds a line to `metrics.jsonl` and to TensorBoard, and replaces the rule's own arrays by this round's."""
        self._folder.append(line)
        self._folder.write_details(report.details)
        if self._board is not None:
            self._board.add(line)

    def save(self, rounds: int, snapshot: Snapshot, last: bool) -> None:
        """Writes a checkpoint and the model every `checkpoint.every` rounds, and after the last one."""
        if last or rounds % self._config.checkpoint.every == 0:
            federation = self._experiment.federation
            self._checkpoints.save(rounds, snapshot)
            self._folder.write_attack(attack_arrays(snapshot.state.attack))
            self._folder.write_model(evaluated_model(federation, snapshot.state))
            self._folder.write_rule(federation.rule.details(snapshot.state.rule, self._experiment.malicious))
        if not self._pictured:  # behind the first round, as it takes a second
            self._draw_partition()

    def finish(self, history: list[dict[str, Any]], diverged: int) -> None:
        """Writes the summary and the pictures, those among them that the aggregator declares."""
        config, experiment, folder = self._config, self._experiment, self._folder
        note, malicious = experiment.dataset.info.note, experiment.malicious
        facts = facts_of(configs.flatten(config), history, malicious, experiment.idle)
        summary = summary_of(config, history, facts, note, diverged)
        folder.write_json("summary.json", summary)
        if not self._pictured:  # it may have been killed before it was drawn
            self._draw_partition()
        with self._drawing():
            plots.curves({configs.run_title(config): history}, folder.path / "curves.png")
            plots.verdicts(history, malicious, folder.path / "verdicts.png")
            self._draw_details(history)

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """A picture that cannot be written is told like any other file of the folder."""
        try:
            yield
        except OSError as error:
            path = self._folder.path
            raise files.unwritable(f"workdir = {quoted(str(path))}", path, error) from None

    def _draw_details(self, history: list[dict[str, Any]]) -> None:
        arrays, federation = self._folder.details(), self._experiment.federation
        if not arrays:
            return
        rows = self._experiment.malicious[np.array(history[-1]["client_ids"], int)]
        pictures = [one for one in federation.aggregator(federation.server).pictures if one.fits(arrays, len(rows))]
        for file in dict.fromkeys(one.file for one in pictures):
            beside = [one for one in pictures if one.file == file]
            plots.details(beside, arrays, rows, self._folder.path / file)

    def _write_partition(self) -> None:
        dataset = self._experiment.dataset
        self._folder.write_partition(partition_arrays(dataset, self._experiment.parts))

    def _draw_partition(self) -> None:
        """Draws who has how much of which class, where it was not drawn yet and there are classes."""
        self._pictured = True
        path = self._folder.path / "partition.png"
        arrays = {} if path.exists() else partition_arrays(self._experiment.dataset, self._experiment.parts)
        if "counts" in arrays:
            with self._drawing():
                plots.partition(arrays["counts"], self._experiment.malicious, path)


def make_recorder(
    config: configs.Config, workdir: str | os.PathLike[str] | None, progress: Progress
) -> Recorder | NoRecorder:
    """The recorder of a run; without a workdir one that keeps nothing."""
    return NoRecorder() if workdir is None else Recorder(config, workdir, progress)
