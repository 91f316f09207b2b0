"""What the benchmarks share: rounds as a run plays them, made-up images, contestants in turn, peers in processes."""

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_spmc import devices
from fedjax_spmc.data import Dataset, DatasetInfo
from fedjax_spmc.experiment import build
from fedjax_spmc.rounds import make_program, make_round

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[], Any]


class Rounds:
    """Plays the next round each time that it is called, on all devices, and returns the client-steps taken.

    Args:
        config: resolved.
        dataset: the config's, where it was read already.

    Attributes:
        experiment: what is played.
        state: behind the last round.
    """

    def __init__(self, config: Any, dataset: Dataset | None = None):
        self.experiment = build(config, dataset)
        self.state = self.experiment.state
        used = devices.devices_for_round(config.federation.clients_per_round, None)
        program = make_program(self.experiment.federation, used, owned=True)
        self._play = make_round(
            self.experiment.federation, self.experiment.arrays, self.experiment.sizes, used, program
        )

    def __call__(self) -> int:
        """One round."""
        self.state, report = jax.block_until_ready(self._play(self.state, self.experiment.key))
        return int(np.sum(report.steps))


def made_up(count: int, shape: tuple[int, int, int] = (32, 32, 3), classes: int = 10) -> Dataset:
    """So many random images of uint8, with random labels: an experiment's data that nobody has to read."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (count, *shape), np.uint8)
    labels = rng.integers(0, classes, count, np.int32)
    info = DatasetInfo("random images", classes, shape, (0.5,) * shape[2], (0.25,) * shape[2])
    return Dataset(info, inputs, labels, inputs[:0], labels[:0], inputs[:64], labels[:64], fingerprint="")


def in_turn(runs: Mapping[str, Run], repeats: int, before: int = 1) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each contestant, and what it returned last; they play in turn, `before` times uncounted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Any] = {}
    for repeat in range(before + repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            results[name] = jax.block_until_ready(run())
            if repeat >= before:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}, results


@contextmanager
def answering(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Callable[..., Any]]:
    """A contestant in a process of its own, which lives as long as the `with` block.

    It says "ready", then answers each line of its input with one of JSON, and ends where its input does.

    Yields:
        A function that sends a line, by default an empty one, and returns the answer to it.
    """
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        questions, answers = process.stdin.fileno(), process.stdout

        def heard() -> str:
            line = answers.readline()
            if not line:
                raise SystemExit(f"{' '.join(command)} has ended without an answer")
            return line

        if heard() != "ready\n":
            raise SystemExit(f"{' '.join(command)} did not say that it is ready")

        def ask(question: str = "") -> Any:
            with suppress(BrokenPipeError):  # it has ended, which the answer says
                os.write(questions, f"{question}\n".encode())
            return json.loads(heard())

        yield ask
