"""Milliseconds per client-step: this simulator against a plain torch loop over clients.

    python experiments/bench_step.py [--repeats=7] [--json]

Same model (SimpleCNN, 92,626 parameters), batch 64, 10 clients of 640 images, 2 epochs, SGD with momentum 0.9 and
weight decay 1e-5, no augmentation. Both draw shuffled batches from images in memory; ours are uint8 and are normalised
inside the step, torch's are float32 and ready. Ours is the whole round, server included; torch's is local training
alone. The two run in turn in one process (torch on 2 threads); the medians are compared.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from torch_reference.local import make_optimizer, train_sgd, train_spmc
from torch_reference.model import SimpleCNN

from fedjax_spmc import config as configs
from fedjax_spmc import setup
from fedjax_spmc.federation import make_round
from fedjax_spmc.presets import make_config

CLIENTS, IMAGES, BATCH, EPOCHS = 10, 640, 64, 2
METHODS = {"sgd": "fedavg", "spmc": "spmc"}


def ours(method: str) -> Callable[[], int]:
    """A function that plays one round of this simulator and returns the client-steps taken."""
    config = make_config(METHODS[method], data__name="synthetic")
    for path, value in {
        "data.options.num_train": CLIENTS * IMAGES,
        "data.val_fraction": 0.0,
        "data.augment": False,
        "partition.name": "iid",
        "attack.name": "none",
        "local.epochs": EPOCHS,
        "local.batch_size": BATCH,
        "federation.num_clients": CLIENTS,
        "federation.clients_per_round": CLIENTS,
    }.items():
        configs.set_field(config, path, value)
    config = configs.resolve(config)
    experiment = setup.build(config, setup.load_data(config))
    play = make_round(experiment.federation, experiment.arrays, experiment.arrays[1].sizes)
    state = experiment.state

    def run() -> int:
        nonlocal state
        state, report = jax.block_until_ready(play(state, experiment.key))
        return int(np.sum(report.steps))

    return run


def theirs(method: str) -> Callable[[], int]:
    """The same work as a plain torch loop."""
    torch.manual_seed(0)
    images = torch.randn(CLIENTS * IMAGES, 3, 32, 32)
    labels = torch.randint(0, 10, (CLIENTS * IMAGES,))
    server, teacher = SimpleCNN(), SimpleCNN()

    def batches(client: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(EPOCHS):
            order = client * IMAGES + torch.randperm(IMAGES)
            for chosen in order.split(BATCH):
                yield images[chosen], labels[chosen]

    def run() -> int:
        steps = 0
        for client in range(CLIENTS):
            model = copy.deepcopy(server)
            optimizer = make_optimizer(model, 0.01, 0.9, 1e-5)
            if method == "sgd":
                steps += train_sgd(model, batches(client), optimizer)
            else:
                steps += train_spmc(model, teacher, batches(client), optimizer)
        return steps

    return run


def measure(method: str, repeats: int) -> tuple[float, float]:
    """Median milliseconds per client-step of ours and of torch, taken in turn; the first of each is not counted."""
    runs = {"ours": ours(method), "torch": theirs(method)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            steps = run()
            if repeat:
                times[name].append((time.perf_counter() - start) / steps * 1e3)
    return statistics.median(times["ours"]), statistics.median(times["torch"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="counted repetitions of each (default 7)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    results: dict[str, float] = {}
    for method in METHODS:
        mine, peer = measure(method, arguments.repeats)
        results |= {f"ms_{method}": mine, f"torch_ms_{method}": peer, f"ratio_{method}": peer / mine}
        if not arguments.json:
            print(f"{method:<5} ours {mine:6.2f} ms   torch {peer:6.2f} ms per client-step   ratio {peer / mine:5.2f}")
    if arguments.json:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    main()
