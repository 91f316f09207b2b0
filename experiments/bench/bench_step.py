"""Milliseconds per client-step: this simulator against a plain torch loop over clients.

    python experiments/bench/bench_step.py [--model=simple_cnn|resnet10] [--repeats=7] [--threads=2] [--json]

Same model (SimpleCNN, 92,626 parameters, 10 clients of 640 images, 2 epochs; or resnet10, 4,903,242 parameters, 2
clients of 640 images, 1 epoch), batch 64, SGD with momentum 0.9 and weight decay 1e-5, no augmentation. Both draw
shuffled batches from images in memory; ours are uint8 and are normalised inside the step, torch's are float32 and
ready. Ours is the whole round, server included, on one CPU device per core; torch's is local training alone. The two
run in turn in one process (torch on --threads); the medians are compared.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import single

from fedjax_spmc import config as configs
from fedjax_spmc import devices
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config
from fedjax_spmc.options import Option, Range
from fedjax_spmc.parity.torch_reference.local import make_optimizer, train_sgd, train_spmc
from fedjax_spmc.parity.torch_reference.model import ResNet, SimpleCNN

BATCH = 64
METHODS = {"sgd": "fedavg", "spmc": "spmc"}


class Workload(NamedTuple):
    """One model and how much it trains in a repetition."""

    clients: int
    images: int
    epochs: int
    torch_model: Callable[[], torch.nn.Module]


WORKLOADS = {"simple_cnn": Workload(10, 640, 2, SimpleCNN), "resnet10": Workload(2, 640, 1, ResNet)}


def ours(model: str, method: str) -> Callable[[], int]:
    """A function that plays one round of this simulator and returns the client-steps taken."""
    work = WORKLOADS[model]
    config = make_config(METHODS[method], data__name="synthetic")
    for path, value in {
        "model.name": model,
        "data.options.num_train": work.clients * work.images,
        "data.val_fraction": 0.0,
        "data.augment": False,
        "partition.name": "iid",
        "attack.name": "none",
        "local.epochs": work.epochs,
        "local.batch_size": BATCH,
        "federation.num_clients": work.clients,
        "federation.clients_per_round": work.clients,
    }.items():
        configs.set_field(config, path, value)
    return single.rounds(configs.resolve(config))[0]


def theirs(model: str, method: str) -> Callable[[], int]:
    """The same work as a plain torch loop."""
    work = WORKLOADS[model]
    torch.manual_seed(0)
    images = torch.randn(work.clients * work.images, 3, 32, 32)
    labels = torch.randint(0, 10, (work.clients * work.images,))
    server, teacher = work.torch_model(), work.torch_model()

    def batches(client: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(work.epochs):
            order = client * work.images + torch.randperm(work.images)
            for chosen in order.split(BATCH):
                yield images[chosen], labels[chosen]

    def run() -> int:
        steps = 0
        for client in range(work.clients):
            student = copy.deepcopy(server)
            optimizer = make_optimizer(student, 0.01, 0.9, 1e-5)
            if method == "sgd":
                steps += train_sgd(student, batches(client), optimizer)
            else:
                steps += train_spmc(student, teacher, batches(client), optimizer)
        return steps

    return run


def measure(model: str, method: str, repeats: int) -> tuple[float, float]:
    """Median milliseconds per client-step of ours and of torch, taken in turn; the first of each is not counted."""
    runs = {"ours": ours(model, method), "torch": theirs(model, method)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            steps = run()
            if repeat:
                times[name].append((time.perf_counter() - start) / steps * 1e3)
    return statistics.median(times["ours"]), statistics.median(times["torch"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--model", str, "simple_cnn", choices=tuple(WORKLOADS)), "NAME", "the network")
    parser.flag(Option("--repeats", int, 7, range=Range(1, 10**9)), "N", "counted repetitions of each")
    parser.flag(
        Option("--threads", int, 2, range=Range(1, 10**9)), "N", "threads of torch; for one, pin the process too"
    )
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    torch.set_num_threads(flags["threads"])
    devices.use_cores()
    results: dict[str, float] = {}
    for method in METHODS:
        mine, peer = measure(flags["model"], method, flags["repeats"])
        results |= {f"ms_{method}": mine, f"torch_ms_{method}": peer, f"ratio_{method}": peer / mine}
        if not flags["json"]:
            print(f"{method:<5} ours {mine:6.2f} ms   torch {peer:6.2f} ms per client-step   ratio {peer / mine:5.2f}")
    if flags["json"]:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
