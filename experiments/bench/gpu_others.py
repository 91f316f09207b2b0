"""Part of `bench_gpu.py`: a round of each other network, attack, FLIP's searches, and text, on made-up data.

Each is the round as a single run plays it, all clients at once, compiled before it is timed, without evaluation.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import single

from fedjax_spmc import config as configs
from fedjax_spmc.config import make_config
from fedjax_spmc.data import Dataset, DatasetInfo

GREY, COLOUR = (28, 28, 1), (32, 32, 3)
WORDS, LENGTH = 5000, 64
"""Vocabulary and length of made-up texts."""
REPEATS = 3
SHARED = {
    "data.val_fraction": 0.0, "data.augment": False, "partition.name": "iid", "partition.min_size": 1,
    "local.epochs": 1, "local.drop_last": True,
}  # fmt: skip


class Other(NamedTuple):
    """One round.

    Attributes:
        kind: "network", "attack", "flip" or "text".
        name: for the reader, with the kind.
        presets: of the config.
        fields: on top of them.
        shape: of an example: (H, W, C), or (T,) of texts.
        classes: different labels.
        toy: fields on top of these at toy size; None = it is left out there.
    """

    kind: str
    name: str
    presets: str
    fields: Mapping[str, Any]
    shape: tuple[int, ...] = COLOUR
    classes: int = 10
    toy: Mapping[str, Any] | None = None


def _network(name: str, shape: tuple[int, ...] = COLOUR, classes: int = 10, toy: Any = None) -> Other:
    return Other("network", name, "fedavg", {"model.name": name, **CLEAN}, shape, classes, toy)


def _attack(*names: str, toy: Any = None) -> Other:
    return Other("attack", "+".join(names), "fedavg", {"attack.name": names, **MALICIOUS}, toy=toy)


def _text(model: str, toy: Any = None) -> Other:
    fields = {"data.name": "tiny_shakespeare", "model.name": model, "local.clip_norm": 3.0, **CLEAN}
    return Other("text", model, "fedavg", fields, (LENGTH,), WORDS, toy)


CLEAN, MALICIOUS = {"attack.name": "none"}, {"attack.malicious_fraction": 0.3}
HALF = {"model.name": "mlp", "attack.malicious_fraction": 0.5}
FLIP = {"model.name": "mnist_net", "local.options.preset": "lite", **MALICIOUS}
FEW = {
    f"local.options.{option}": steps for option, steps in {"universal_steps": 2, "pair_steps": 2, "pairs": 1}.items()
}
NARROW = {"model.options.width": 8, "model.options.hidden": 8, "model.options.layers": 1}
OTHERS = (
    Other("flip", "lite", "flip", FLIP, GREY, toy=HALF | FEW),
    _attack("badnets"),
    _attack("badnets", "neurotoxin", toy=HALF),
    _text("lstm_lm", toy=NARROW),
    _network("resnet18_thin"),
    _network("resnet9", GREY, 62),
    _network("emnist_cnn", GREY),
    _network("mnist_net", GREY, toy={}),
    _network("cnn_dropout"),
    _attack("badnets", "pgd"),
    _attack("badnets", "constrain_and_scale"),
    _attack("badnets", "layerwise"),
    _attack("min_max"),
    _attack("fang"),
    _text("transformer_lm"),
    _network("resnet10"),
)
"""The most telling first: what does not fit into the time is left out from the end."""


def config_of(one: Other, clients: int, batch: int, toy: bool) -> Any:
    """The config of a round, resolved."""
    config = make_config(one.presets, data__name="synthetic")
    sizes = {
        "federation.num_clients": clients, "federation.clients_per_round": clients, "local.batch_size": batch,
        "federation.client_batch": clients, "federation.devices": 1,
    }  # fmt: skip
    for path, value in {**SHARED, **one.fields, **sizes, **((one.toy or {}) if toy else {})}.items():
        configs.set_field(config, path, value)
    return configs.resolve(config)


def data_of(one: Other, count: int) -> Dataset:
    """Random examples of its shape; texts ask for the next token."""
    if len(one.shape) == 3:
        height, width, channels = one.shape
        return single.made_up(count, (height, width, channels), one.classes)
    tokens = np.random.default_rng(0).integers(0, one.classes, (count, one.shape[0] + 1), np.int32)
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    info = DatasetInfo("random words", one.classes, one.shape, None, None, vocabulary=one.classes)
    return Dataset(info, inputs, labels, inputs[:0], labels[:0], inputs[:8], labels[:8], fingerprint="")


def measure(one: Other, toy: bool) -> dict[str, Any]:
    """One row: seconds of the first round, which compiles, and of the later ones (median)."""
    clients, each, batch = (2, 8, 4) if toy else (10, 640, 64)
    play = single.Rounds(config_of(one, clients, batch, toy), data_of(one, clients * each))
    start = time.perf_counter()
    play()
    first = time.perf_counter() - start
    seconds, steps = single.in_turn({"round": play}, 1 if toy else REPEATS, before=0)
    return {
        "kind": one.kind,
        "name": one.name,
        "first_seconds": first,
        "seconds": seconds["round"],
        "client_steps": steps["round"],
        "ms_per_client_step": 1e3 * seconds["round"] / max(1, steps["round"]),
    }


def rows(toy: bool, budget: Any) -> Iterator[dict[str, Any]]:
    """A row of every case that fits into the time that is left and runs on this device; the others are noted."""
    for one in OTHERS:
        title = f"others: {one.kind} {one.name}"
        if (toy and one.toy is None) or not budget.allows(title, 0 if toy else 25):
            continue
        try:
            row = measure(one, toy)
        except Exception as error:  # memory, or an operation that this device lacks: the others have their turn
            budget.skip(title, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        yield row
