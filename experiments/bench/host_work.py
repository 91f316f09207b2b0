"""Share of a run that is work of the host: records, pictures of progress, checkpoints; all that is no compiled program.

    python experiments/bench/host_work.py [--data=synthetic] [--rounds=5] [--epochs=1] [--images=50000] [--json]

Plays a run with a folder of CIFAR-10's size through `experiment.run`, as a user does, and looks at every pass of its
loop but the first, which compiles: the compiled round, the compiled evaluation, the checkpoint, the records
(`metrics.jsonl`, details, `model.npz`, TensorBoard), the progress line, and the rest of the loop. What is measured is
wrapped from the outside; the package knows nothing of it. Host work hardly depends on the length of a round, so its
share with the paper's ten epochs is told too, from the time of a round with `--epochs`.

At the end one round is played under `jax.transfer_guard("disallow")`: whether anything goes from the host to the
devices, or back, unasked.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax

from fedjax_spmc import config as configs
from fedjax_spmc import devices, experiment, rounds, setup
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config
from fedjax_spmc.experiment import build
from fedjax_spmc.options import Option, Range
from fedjax_spmc.record.checkpoint import Checkpoints
from fedjax_spmc.record.folder import RunFolder
from fedjax_spmc.record.progress import Progress
from fedjax_spmc.record.recorder import Recorder
from fedjax_spmc.record.tensorboard import TensorBoard

PAPER_EPOCHS = 10
COMPILED = ("round", "evaluation")
WRAPPED = {
    "checkpoint": [(Checkpoints, "save")],
    "records": [(RunFolder, "append"), (RunFolder, "write_details"), (RunFolder, "write_model"), (TensorBoard, "add")],
    "progress": [(Progress, "update")],
}
"""Methods whose time is added up under a name."""


class Clock:
    """Seconds by name for each pass of the loop.

    Attributes:
        passes: one dict per pass that has ended, "wall" among its names.
    """

    def __init__(self) -> None:
        self.passes: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)
        self._start: float | None = None

    def mark(self) -> None:
        """A pass ends, another begins."""
        now = time.perf_counter()
        if self._start is not None:
            self.passes.append({**self._now, "wall": now - self._start})
        self._now, self._start = defaultdict(float), now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its seconds added up under `name`; its results are waited for."""

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = jax.block_until_ready(function(*args, **kwargs))
            self._now[name] += time.perf_counter() - start
            return result

        return call


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Wraps what `experiment.run` calls, for as long as the `with` block lasts."""
    make_round, build, finish = experiment.make_round, experiment.build, Recorder.finish

    def timed_round(*args: Any) -> Callable[..., Any]:
        play = clock.timed("round", make_round(*args))

        def marked(*args: Any) -> Any:
            clock.mark()
            return play(*args)

        return marked

    def timed_build(*args: Any) -> setup.Experiment:
        built = build(*args)
        return built._replace(evaluate=clock.timed("evaluation", built.evaluate))

    def marked_finish(self: Recorder, *args: Any) -> None:
        clock.mark()  # the loop has ended
        finish(self, *args)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(experiment, "make_round", timed_round))
        stack.enter_context(mock.patch.object(experiment, "build", timed_build))
        stack.enter_context(mock.patch.object(Recorder, "finish", marked_finish))
        for name, methods in WRAPPED.items():
            for owner, method in methods:
                # A plain function in place of the method, so that `self` is bound as before.
                stack.enter_context(mock.patch.object(owner, method, clock.timed(name, getattr(owner, method))))
        yield


def config_of(data: str, rounds: int, epochs: int, images: int) -> Any:
    """SPMC as the paper has it, but for the rounds and epochs."""
    config = make_config("spmc", data__name=data)
    fields: dict[str, Any] = {"federation.rounds": rounds, "local.epochs": epochs}
    if data == "synthetic":
        fields |= {"data.options.num_train": images, "data.options.num_test": max(1, images // 5)}
    else:
        fields["data.limit_train"] = images
    for path, value in fields.items():
        configs.set_field(config, path, value)
    return configs.resolve(config)


def measure(config: Any) -> dict[str, Any]:
    """Seconds per round by name (medians over the passes), and the host's share in percent."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, watched(clock), open(os.devnull, "w") as stream:
        experiment.run(config, os.path.join(folder, "run"), stream=stream)
    passes = clock.passes[1:]
    names = [*COMPILED, *WRAPPED]
    seconds = {name: statistics.median(one.get(name, 0.0) for one in passes) for name in (*names, "wall")}
    seconds["rest"] = statistics.median(one["wall"] - sum(one.get(name, 0.0) for name in names) for one in passes)
    host = sum(seconds[name] for name in (*WRAPPED, "rest"))
    compiled = sum(seconds[name] for name in COMPILED)
    longer = compiled + seconds["round"] * (PAPER_EPOCHS / config.local.epochs - 1)
    return {
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "host_percent": 100 * host / (host + compiled),
        "host_percent_without_checkpoint": 100 * (host - seconds["checkpoint"]) / (host + compiled),
        "host_percent_ten_epochs": 100 * host / (host + longer),
        "rounds": len(passes),
    }


def round_without_transfers(built: setup.Experiment, used: tuple[Any, ...]) -> str | None:
    """Plays two rounds, the second under a guard against transfers between host and device that nobody asked for.

    Args:
        built: from `experiment.build`.
        used: the devices that share the clients.

    Returns:
        None where it passes, else what the guard says.
    """
    play = rounds.make_round(built.federation, built.arrays, built.sizes, used)
    state, _ = jax.block_until_ready(play(built.state, built.key))
    try:
        with jax.transfer_guard("disallow"):
            jax.block_until_ready(play(state, built.key))
    except jax.errors.JaxRuntimeError as error:
        return str(error).splitlines()[0]
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--data", str, "synthetic"), "NAME", "a data set; synthetic is of CIFAR-10's size")
    parser.flag(Option("--rounds", int, 5, range=Range(1, 10**9)), "N", "the first is not counted")
    parser.flag(Option("--epochs", int, 1, range=Range(1, 10**9)), "N", "local epochs")
    parser.flag(Option("--images", int, 50000, range=Range(1, 10**9)), "N", "of training, validation included")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    devices.use_cores()
    config = config_of(flags["data"], max(2, flags["rounds"]), flags["epochs"], flags["images"])
    found = measure(config)
    with jax.default_matmul_precision(config.precision):
        built = build(config)
        used = devices.devices_for_round(config.federation.clients_per_round, None)
        found["transfers"] = round_without_transfers(built, used)
    if flags["json"]:
        print(json.dumps(found))
        return 0
    for name in (*COMPILED, *WRAPPED, "rest", "wall"):
        print(f"{name:<12} {found[f'seconds_{name}']:8.4f} s a round")
    print(
        f"host work: {found['host_percent']:.2f} % of {found['rounds']} rounds "
        f"({found['host_percent_without_checkpoint']:.2f} % without checkpoints, "
        f"{found['host_percent_ten_epochs']:.2f} % with {PAPER_EPOCHS} local epochs)"
    )
    print("a round without transfers that nobody asked for: " + (found["transfers"] or "passes"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
