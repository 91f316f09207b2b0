"""The matrix of docs/matrix.md: ten attacks against eleven methods, three seeds, from one kept start model.

    python -m fedjax_spmc.run --config=configs/neurotoxin_small.py:start --workdir=runs/neurotoxin_small_start
    python -m fedjax_spmc.sweep --config=configs/sweeps/matrix.py --workdir=sweeps/matrix
    python -m fedjax_spmc.sweep --config=configs/sweeps/matrix.py:deepsight --workdir=sweeps/matrix
    python -m fedjax_spmc.report sweeps/matrix --out=report/matrix

The clients, the network and the start model of configs/neurotoxin_small.py: MNIST, 200 clients, ten a round, 500 clean
rounds played. In rounds 1 to 10 two of the ten clients attack, always the same two, then ten clean rounds follow. In an
attack round they train for ten epochs at a rate of 0.01, half of their pictures poisoned. The rules are as their papers
give them; none of them is tuned to this setting, nor is an attack. One number is smaller: `deepsight` tells uploads
apart by 1,000 random pictures in each of its three sets in place of 20,000, which take far longer than the rest of a
round.
"""

import runpy
from pathlib import Path

from fedjax_spmc.config import set_field
from fedjax_spmc.sweep import Sweep

SMALL = runpy.run_path(str(Path(__file__).resolve().parent.parent / "neurotoxin_small.py"))
ATTACKS = [
    ("badnets",),
    ("blended",),
    ("dba",),
    ("edge_case",),
    ("badnets", "neurotoxin"),
    ("badnets", "model_replacement"),
    ("badnets", "constrain_and_scale"),
    ("badnets", "layerwise"),
    ("badnets", "chameleon"),
    ("min_max",),
]
METHODS = [
    "fedavg", "norm_clip", "multi_krum", "median", "rfa", "foolsgold", "flame", "fltrust", "spmc", "fdcr",
]  # fmt: skip
FIELDS = {
    "data.val_fraction": 0.002,
    "attack.malicious_fraction": 0.01,
    "attack.poison_fraction": 0.5,
    "attack.schedule.last": 10,
    "federation.rounds": 21,
    "checkpoint.every": 21,
}
SAMPLES = 1000
"""Of DeepSight; see above."""


def get_config(arg: str = "") -> Sweep:
    """The sweep of `METHODS`, or with the word `deepsight` of that alone."""
    deepsight = "deepsight" in arg.split(",")
    base = SMALL["get_config"](",".join(word for word in ("kept", "" if deepsight else "fedavg", arg) if word))
    set_field(base, "attack.name", "badnets")
    for path, value in FIELDS.items():
        set_field(base, path, value)
    grid = {"attack.name": ATTACKS}
    if deepsight:
        set_field(base, "aggregator.options.samples", SAMPLES)
    else:
        grid["method"] = METHODS
    return Sweep(base=base, grid=grid, seeds=(0, 1, 2))
