"""Milliseconds per client-step on texts: this simulator against plain torch loops on `nn.LSTM`.

    python experiments/bench/bench_text.py [--workloads=lm,classifier] [--repeats=5] [--threads=2] [--json]

lm: next token, vocabulary 5,000, embedding and two LSTM layers of 200, tied decoder, dropout 0.2, batches of 20 rows of
64 tokens. classifier: the same sizes, two classes, dropout 0.5 between the layers, rows of 100. Ten clients of four
batches each, one epoch of SGD, random tokens in memory. Ours is the whole round, server included, on one CPU device per
core; torch's is local training alone, whose LSTM is hand-written C++. The two run in turn in one process (torch on
--threads); the medians are compared.
"""

import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import single

from fedjax_spmc import config as configs
from fedjax_spmc import devices
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config
from fedjax_spmc.data import Dataset, DatasetInfo
from fedjax_spmc.options import Option, Range
from fedjax_spmc.parity.torch_reference.local import make_optimizer, train_sgd
from fedjax_spmc.parity.torch_reference.text import Classifier, LanguageModel, train_next_tokens


class Workload(NamedTuple):
    """What is trained.

    Attributes:
        model: of this simulator.
        length, vocabulary, width: tokens in a row, different tokens, size of embedding and layers.
        clients, batches, batch: how many clients, batches of each, rows in a batch.
    """

    model: str
    length: int
    vocabulary: int = 5000
    width: int = 200
    clients: int = 10
    batches: int = 4
    batch: int = 20

    def next_token(self) -> bool:
        """Whether every place asks for the next token; else a row has one of two classes."""
        return self.model == "lstm_lm"

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Random tokens and labels of all clients."""
        rng, rows = np.random.default_rng(0), self.clients * self.batches * self.batch
        tokens = rng.integers(0, self.vocabulary, (rows, self.length)).astype(np.int32)
        labels = rng.integers(0, self.vocabulary, tokens.shape) if self.next_token() else rng.integers(0, 2, rows)
        return tokens, labels.astype(np.int32)


WORKLOADS = {"lm": Workload("lstm_lm", 64), "classifier": Workload("lstm_classifier", 100)}


def ours(work: Workload) -> Callable[[], int]:
    """A function that plays one round of this simulator and returns the client-steps taken."""
    tokens, labels = work.examples()
    classes = work.vocabulary if work.next_token() else 2
    info = DatasetInfo("random tokens", classes, (work.length,), None, None, vocabulary=work.vocabulary)
    few = (tokens[: work.batch], labels[: work.batch])
    dataset = Dataset(info, tokens, labels, tokens[:0], labels[:0], *few, fingerprint="")
    config = make_config("fedavg", data__name="pydoc_topics")
    for path, value in {
        "model.name": work.model,
        "model.options.width": work.width,
        "model.options.hidden": work.width,
        "partition.name": "iid",
        "attack.name": "none",
        "local.epochs": 1,
        "local.batch_size": work.batch,
        "local.learning_rate": 0.1,
        "local.momentum": 0.0,
        "local.weight_decay": 0.0,
        "federation.num_clients": work.clients,
        "federation.clients_per_round": work.clients,
    }.items():
        configs.set_field(config, path, value)
    return single.Rounds(configs.resolve(config), dataset)


def theirs(work: Workload) -> Callable[[], int]:
    """The same work as a plain torch loop."""
    torch.manual_seed(0)
    tokens, labels = (torch.tensor(x).long() for x in work.examples())
    if work.next_token():
        server, train = LanguageModel(work.vocabulary, work.width, dropout=0.2), train_next_tokens
    else:
        server, train = Classifier(1, work.vocabulary, work.width, work.width, between=0.5), train_sgd

    def run() -> int:
        steps, size = 0, work.batches * work.batch
        for client in range(work.clients):
            student = copy.deepcopy(server)
            order = client * size + torch.randperm(size)
            batches = [(tokens[rows], labels[rows]) for rows in order.split(work.batch)]
            steps += train(student, batches, make_optimizer(student, 0.1, 0.0, 0.0))
        return steps

    return run


def measure(work: Workload, repeats: int) -> tuple[float, float]:
    """Median milliseconds per client-step of ours and of torch, taken in turn; the first of each is not counted."""
    runs = {"ours": ours(work), "torch": theirs(work)}
    seconds, steps = single.in_turn(runs, repeats)
    return seconds["ours"] / steps["ours"] * 1e3, seconds["torch"] / steps["torch"] * 1e3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--workloads", tuple, tuple(WORKLOADS), choices=tuple(WORKLOADS)), "NAME,...", "which")
    parser.flag(Option("--repeats", int, 5, range=Range(1, 10**9)), "N", "counted repetitions of each")
    parser.flag(Option("--threads", int, 2, range=Range(1, 10**9)), "N", "threads of torch")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    names = flags["workloads"]
    torch.set_num_threads(flags["threads"])
    devices.use_cores()
    results: dict[str, float] = {}
    for name in names:
        mine, peer = measure(WORKLOADS[name], flags["repeats"])
        results |= {f"ms_{name}": mine, f"torch_ms_{name}": peer, f"ratio_{name}": peer / mine}
        if not flags["json"]:
            print(f"{name:<10} ours {mine:7.2f} ms   torch {peer:7.2f} ms per client-step   ratio {peer / mine:5.2f}")
    if flags["json"]:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
