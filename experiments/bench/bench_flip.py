"""Seconds of a FLIP client's round: this simulator against a plain torch loop with the same numbers of steps.

    python experiments/bench/bench_flip.py [--settings=lite,reference,code] [--visits=first,returning]
                                           [--clients=1,10] [--repeats=3] [--threads=2] [--json]

MnistNet, 600 pictures of MNIST's size a client, ten epochs of batches of 64 (at most 110). lite and reference are the
presets with all searches of a round at once; code is the preset reference with the code's schedule, batch by batch.
Torch goes through the same searches and batches one after another (`parity/torch_reference/flip.py`); of `code` both
search each pair twice, 200 and 50 steps, where ours may find that a class is missing in a batch and leave it out, so
that its count of steps is an upper bound. Ours is the whole round, server included, on one CPU device per core. The two
run in turn in one process (torch on --threads); the medians are compared.
"""

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import single

from fedjax_spmc import config as configs
from fedjax_spmc import devices
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config
from fedjax_spmc.data import Dataset, DatasetInfo
from fedjax_spmc.experiment import build
from fedjax_spmc.flip.options import PRESETS
from fedjax_spmc.options import Option, Range
from fedjax_spmc.parity.torch_reference.flip import MnistNet, Work, client_round
from fedjax_spmc.rounds import make_round

VISITS = ("first", "returning")
LONGEST = 110


class Setting(NamedTuple):
    """What is compared.

    Attributes:
        preset: of the rule.
        schedule: of the rule.
        options: of the rule, in place of the preset's.
        images: of a client.
        epochs: local epochs.
    """

    preset: str
    schedule: str = "parallel"
    options: Mapping[str, Any] = {}
    images: int = 600
    epochs: int = 10

    def work(self, first: bool) -> Work:
        """The numbers of steps of a client's round."""
        numbers = PRESETS[self.preset] | dict(self.options)
        batches = min(self.epochs * -(-self.images // 64), LONGEST)
        in_pairs = batches - (10 if first else 0)
        code = self.schedule == "reference"
        pairs = max(1, in_pairs // 2) if code else numbers["pairs"]
        short = numbers["short_steps"] if code else 0
        return Work(10, numbers["universal_steps"], pairs, numbers["pair_steps"], short, batches)


SETTINGS = {"lite": Setting("lite"), "reference": Setting("reference"), "code": Setting("reference", "reference")}


def pictures(clients: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pictures [clients * count, 28, 28, 1] uint8 and labels, every class at each client."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.permutation(np.arange(count) % 10) for _ in range(clients)])
    bars = rng.integers(0, 256, (10, 28, 28, 1))  # that the classes can be told
    noise = rng.integers(0, 256, (clients * count, 28, 28, 1))
    return ((bars[labels] + noise) // 2).astype(np.uint8), labels.astype(np.int32)


def ours(setting: Setting, clients: int) -> dict[str, Callable[[], None]]:
    """Visit -> a function that plays that round of this simulator."""
    inputs, labels = pictures(clients, setting.images)
    info = DatasetInfo("random pictures", 10, (28, 28, 1), (0.0,), (1.0,))
    dataset = Dataset(info, inputs, labels, inputs[:0], labels[:0], inputs[:64], labels[:64], fingerprint="")
    config = make_config("flip", data__name="mnist")
    for path, value in {
        "data.augment": False,
        "data.normalise": False,
        "model.name": "mnist_net",
        "partition.name": "iid",
        "attack.name": "none",
        "local.epochs": setting.epochs,
        "local.batch_size": 64,
        "local.drop_last": False,
        "federation.num_clients": clients,
        "federation.clients_per_round": clients,
        "local.options.preset": setting.preset,
        "local.options.schedule": setting.schedule,
        "local.options.max_batches": LONGEST,
        **{f"local.options.{name}": value for name, value in setting.options.items()},
    }.items():
        configs.set_field(config, path, value)
    experiment = build(configs.resolve(config), dataset)
    used = devices.devices_for_round(clients, None)
    play = make_round(experiment.federation, experiment.arrays, experiment.sizes, used)
    before = experiment.state
    after, _ = jax.block_until_ready(play(before, experiment.key))
    states = {"first": before, "returning": after}

    def run(state: Any) -> None:
        jax.block_until_ready(play(state, experiment.key))

    return {visit: lambda state=state: run(state) for visit, state in states.items()}


def theirs(setting: Setting, clients: int) -> dict[str, Callable[[], None]]:
    """Visit -> the same work as a plain torch loop."""
    torch.manual_seed(0)
    inputs, labels = pictures(clients, setting.images)
    images = torch.tensor(inputs).permute(0, 3, 1, 2) / 255.0
    classes = torch.tensor(labels).long()
    server = MnistNet()

    def run(first: bool) -> None:
        for client in range(clients):
            rows = slice(client * setting.images, (client + 1) * setting.images)
            client_round(copy.deepcopy(server), images[rows], classes[rows], setting.work(first), first)

    return {visit: lambda visit=visit: run(visit == "first") for visit in VISITS}


def measure(setting: Setting, clients: int, visits: Sequence[str], repeats: int) -> dict[str, tuple[float, float]]:
    """Visit -> median seconds of ours and of torch, taken in turn; ours has been compiled and played once before.

    Torch compiles nothing, and with the code's numbers of steps its round takes ten minutes: its first counts.
    """
    runs = {"ours": ours(setting, clients), "torch": theirs(setting, clients)}
    found = {}
    for visit in visits:
        seconds, _ = single.in_turn({"ours": runs["ours"][visit], "torch": runs["torch"][visit]}, repeats, before=0)
        found[visit] = seconds["ours"], seconds["torch"]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--settings", tuple, tuple(SETTINGS), choices=tuple(SETTINGS)), "NAME,...", "which")
    parser.flag(Option("--visits", tuple, VISITS, choices=VISITS), "NAME,...", "a client's first round, a later one")
    parser.flag(Option("--clients", tuple, (1, 10), choices=tuple(range(1, 1001))), "K,...", "clients of a round")
    parser.flag(Option("--repeats", int, 3, range=Range(1, 10**9)), "N", "counted repetitions of each")
    parser.flag(Option("--threads", int, 2, range=Range(1, 10**9)), "N", "threads of torch")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    torch.set_num_threads(flags["threads"])
    devices.use_cores()
    results: dict[str, float] = {}
    for name in flags["settings"]:
        for clients in flags["clients"]:
            measured = measure(SETTINGS[name], clients, flags["visits"], flags["repeats"])
            for visit, (mine, peer) in measured.items():
                case = f"{name}_{visit}_{clients}"
                results |= {f"seconds_{case}": mine, f"torch_seconds_{case}": peer, f"ratio_{case}": peer / mine}
                if not flags["json"]:
                    words = f"{name:<10} {visit:<10} {clients:>3} clients   ours {mine:8.3f} s   torch {peer:8.3f} s"
                    print(f"{words}   ratio {peer / mine:5.2f}")
    if flags["json"]:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
