"""A whole round on real data, images included: this simulator against a plain torch loop with its loader.

    python experiments/bench/bench_round.py [--data=cifar10] [--epochs=1] [--repeats=3] [--limit=0] [--json]

SimpleCNN, ten clients, Dirichlet 0.5, batch 64, the data set's crop and flip, no attack. Ours is the compiled round as
a run plays it, on one CPU device per core. Torch's is the usual script (`torch_reference/loader_round.py`): a
DataLoader with two workers that pads, crops and flips each image with PIL, one client after another,
`torch.set_num_threads(1)`, then the mean of the models; with SPMC the teacher's forward pass and two backward passes
too. The two play in turn, torch in a process of its own; the medians are compared. `--limit` takes only so many
training images.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import single

from fedjax_spmc import config as configs
from fedjax_spmc import devices, setup
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config
from fedjax_spmc.options import Option, Range

METHODS = {"sgd": "fedavg", "spmc": "spmc"}


def resolved(method: str, data: str, epochs: int, limit: int):
    config = make_config(METHODS[method], data__name=data, data__limit_train=limit or None)
    configs.set_field(config, "local.epochs", epochs)
    configs.set_field(config, "attack.name", "none")
    return configs.resolve(config)


@contextmanager
def theirs(config, dataset, method: str):
    """A function that plays the same round in torch, in a process that lives as long as the `with` block."""
    parts = setup.divide(config, dataset)
    local, info = config.local, dataset.info
    facts = {
        "padding": info.crop_padding, "flip": info.flip, "mean": list(info.mean), "std": list(info.std),
        "lr": local.learning_rate, "momentum": local.momentum, "weight_decay": local.weight_decay,
        "batch_size": local.batch_size, "epochs": local.epochs,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "round.npz")
        np.savez(
            path,
            images=dataset.train_inputs,
            labels=dataset.train_labels,
            indices=np.concatenate(parts),
            sizes=np.array([len(part) for part in parts]),
            facts=json.dumps(facts),
        )
        command = [sys.executable, "-m", "fedjax_spmc.parity.torch_reference.loader_round", str(path), method]
        with single.answering(command) as run:
            yield run


def measure(method: str, data: str, epochs: int, repeats: int, limit: int) -> dict[str, float]:
    """Median seconds of a round of ours and of torch, taken in turn; our first, which compiles, is not counted."""
    config = resolved(method, data, epochs, limit)
    dataset = setup.load_data(config)
    with theirs(config, dataset, method) as torch_round:
        runs = {"ours": single.Rounds(config, dataset), "torch": torch_round}
        runs["ours"]()
        times: dict[str, list[float]] = {name: [] for name in runs}
        steps = {}
        for _ in range(repeats):
            for name, run in runs.items():
                start = time.perf_counter()
                steps[name] = run()
                times[name].append(time.perf_counter() - start)
    assert steps["ours"] == steps["torch"], steps
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {**seconds, "steps": steps["ours"], "ratio": seconds["torch"] / seconds["ours"]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--data", str, "cifar10"), "NAME", "data set")
    parser.flag(Option("--epochs", int, 1, range=Range(1, 10**9)), "N", "local epochs")
    parser.flag(Option("--repeats", int, 3, range=Range(1, 10**9)), "N", "rounds of each")
    parser.flag(Option("--limit", int, 0, range=Range(0, 10**9)), "N", "so many training images; 0 = all")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    devices.use_cores()
    results: dict[str, float] = {}
    for method in METHODS:
        found = measure(method, flags["data"], flags["epochs"], flags["repeats"], flags["limit"])
        results |= {f"seconds_{method}": found["ours"], f"torch_seconds_{method}": found["torch"]}
        results[f"ratio_{method}"] = found["ratio"]
        if not flags["json"]:
            print(
                f"{method:<5} a round of {found['steps']} client-steps: ours {found['ours']:6.2f} s   "
                f"torch {found['torch']:6.2f} s   ratio {found['ratio']:5.2f}"
            )
    if flags["json"]:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
