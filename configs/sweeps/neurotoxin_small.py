"""How long a backdoor lives with Neurotoxin's mask and without, one factor at a time: the tables of docs/durability.md.

    python -m fedjax_spmc.run --config=configs/neurotoxin_small.py:start --workdir=runs/neurotoxin_small_start
    python -m fedjax_spmc.sweep --config=configs/sweeps/neurotoxin_small.py:baseline,rates --workdir=sweeps/neurotoxin
    python -m fedjax_spmc.sweep --config=configs/sweeps/neurotoxin_small.py:neurotoxin,rates --workdir=sweeps/neurotoxin

`baseline` or `neurotoxin` (as without a word) of configs/neurotoxin_small.py, from the kept start model, with one of

* `rates`: the attacker's learning rate, 0.2, 1 and 5 times that of the config;
* `ratios`: the mask's ratio (0.95 is among `rates`); with `neurotoxin`;
* `masks`: the mask of clean gradients of 30 other clients, weight decay masked and not; with `neurotoxin`;
* `unclipped`: the plain mean, no update is cut;
* `falling`: the benign learning rate falls straight to 0.0038 of itself over the 51 rounds to the attack's end and
  stays there, as far as in the authors' CIFAR-10 scripts (0.0265 to 1e-4); the attacker's does not.

Five seeds each; a cell takes one to two minutes of a core.
"""

import runpy
from pathlib import Path

from fedjax_spmc.config import set_field
from fedjax_spmc.sweep import Sweep

SMALL = runpy.run_path(str(Path(__file__).resolve().parent.parent / "neurotoxin_small.py"))
RATE = SMALL["FIELDS"]["attack.local.learning_rate"]
MASK = "attack.options.neurotoxin"
GRIDS = {
    "rates": {"attack.local.learning_rate": [0.2 * RATE, RATE, 5 * RATE]},
    "ratios": {f"{MASK}.ratio": [0.99, 0.9, 0.5]},
    "masks": {f"{MASK}.source": ["clean_grad"], f"{MASK}.strict": [True, False]},
    "unclipped": {"aggregator.name": ["mean"]},
    "falling": {"local.schedule": ["linear"]},
}
FALLING = {"local.schedule_rounds": 51, "local.schedule_end": 0.0038}


def get_config(arg: str = "") -> Sweep:
    words = [word for word in arg.split(",") if word]
    base = SMALL["get_config"](",".join([word for word in words if word not in GRIDS] + ["kept"]))
    base.checkpoint.every = 25
    grid: dict[str, list] = {}
    for word in words:
        grid |= GRIDS.get(word, {})
    if "falling" in words:
        set_field(base, "local.schedule", "linear")
        for path, value in FALLING.items():
            set_field(base, path, value)
    return Sweep(base=base, grid=grid or GRIDS["rates"], seeds=range(5))
