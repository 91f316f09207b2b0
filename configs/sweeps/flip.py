"""FLIP, its parts and their controls against DBA: the tables of docs/flip.md.

    python -m fedjax_spmc.run --config=configs/flip_mnist.py:fedavg,start --workdir=runs/flip_mnist_start \\
        --config.server.learning_rate=1.0 --config.federation.rounds=20
    python -m fedjax_spmc.sweep --config=configs/sweeps/flip.py:mnist,single,fedavg --workdir=sweeps/flip_mnist
    python -m fedjax_spmc.sweep --config=configs/sweeps/flip.py:mnist,single,flip --workdir=sweeps/flip_mnist
    python -m fedjax_spmc.sweep --config=configs/sweeps/flip.py:mnist,single,flip,mask --workdir=sweeps/flip_mnist
    python -m fedjax_spmc.sweep --config=configs/sweeps/flip.py:mnist,single,controls --workdir=sweeps/flip_mnist
    python -m fedjax_spmc.sweep --config=configs/sweeps/flip.py:mnist,single,oracle --workdir=sweeps/flip_mnist
    python -m fedjax_spmc.sweep --config=configs/sweeps/flip.py:mnist,continuous,fedavg --workdir=sweeps/flip_mnist
    python -m fedjax_spmc.sweep --config=configs/sweeps/flip.py:mnist,continuous,flip --workdir=sweeps/flip_mnist

`mnist` (as without a word) or `fashion_mnist`, from the kept start model that plain averaging has made of all training
pictures in 20 rounds (at the server rate of 0.1 it is no classifier yet after so many); `single` (as without a word) or
`continuous`; and one of

* `fedavg`: averaging;
* `flip`: FLIP with short searches (`preset=lite`), as without a word;
* `controls`: FLIP's training with random triggers, and with none;
* `oracle`: searches that begin at the place of the trigger of the CIFAR code's attack;
* `small_masks`: searches that begin with masks of a tenth, as the CIFAR code's do.

With `mask` besides, the attackers have Neurotoxin's. 100 clients, ten a round, four of them
malicious, and the numbers of the code but for these: clients have 120 pictures each (`data.limit_train`), 7 rounds
follow the single shot, and the continuous attack lasts 15 rounds. Predictions below 0.4 are rejected; what is so
without rejection stands beside it in every row. Three seeds each.
"""

import runpy
from pathlib import Path

from fedjax_spmc.config import set_field
from fedjax_spmc.sweep import Sweep

FOLDER = Path(__file__).resolve().parent.parent
PARTS = ("fedavg", "flip", "controls", "oracle", "small_masks")
ROUNDS = 16
FIELDS = {
    "data.limit_train": 12000,
    "data.limit_test": 2000,
    "evaluation.confidence": 0.4,
    "federation.rounds": ROUNDS,
    "checkpoint.every": ROUNDS,
}


def get_config(arg: str = "") -> Sweep:
    words = [word for word in arg.split(",") if word]
    name = "fashion_mnist" if "fashion_mnist" in words else "mnist"
    schedule = "continuous" if "continuous" in words else "single"
    part = next((word for word in words if word in PARTS), "flip")
    rest = [word for word in words if word not in (name, schedule, part, "mask")]
    method = ["fedavg"] if part == "fedavg" else ["flip", "lite"]
    chosen = [*rest, "kept", schedule, *method, *(["oracle"] if part == "oracle" else [])]
    base = runpy.run_path(str(FOLDER / f"flip_{name}.py"))["get_config"](",".join(chosen))
    fields = FIELDS | ({"attack.schedule.last": ROUNDS - 1} if schedule == "continuous" else {})
    for path, value in fields.items():
        set_field(base, path, value)
    if part == "small_masks":
        set_field(base, "local.options.mask_init", "uniform_small")
    grid: dict[str, list] = {}
    if part == "controls":
        grid["local.options.triggers"] = ["noise", "none"]
    if "mask" in words:
        scaled = ("model_replacement",) if schedule == "single" else ()
        grid["attack.name"] = [("dba", "neurotoxin", *scaled)]
    return Sweep(base=base, grid=grid, seeds=(0, 1, 2))
