"""Neurotoxin's mask on texts, one factor at a time: the tables of docs/durability.md, "Texts".

    python -m fedjax_spmc.run --config=configs/reddit.py:small,fedavg,start --workdir=runs/reddit_small_start
    python -m fedjax_spmc.sweep --config=configs/sweeps/neurotoxin_text.py:reddit,rates --workdir=sweeps/reddit
    python -m fedjax_spmc.run --config=configs/sentiment140.py:small,start --workdir=runs/sentiment140_small_start
    python -m fedjax_spmc.sweep --config=configs/sweeps/neurotoxin_text.py:sentiment140,rates --workdir=sweeps/tweets

`reddit` (as without a word) or `sentiment140` at its small size, from the kept start model: in rounds 1 to 20 one of
ten clients attacks, 40 clean rounds follow. One of

* `rates`: baseline and mask at both learning rates of the attacker in the published scripts, one of which they give to
  the baseline and the other to the mask; updates are clipped. As without a word;
* `noise`: baseline and mask, weak differential privacy on top of clipping, with the code's 0.001;
* `methods`: the mask under averaging, multi_krum, spmc and fdcr, without clipping.

Three seeds each. `noise` and `methods` take the rate that the scripts give to the mask.
"""

import runpy
from pathlib import Path

from fedjax_spmc.config import set_field
from fedjax_spmc.sweep import Sweep

FOLDER = Path(__file__).resolve().parent.parent
RATES = {"reddit": (0.02, 0.12), "sentiment140": (0.5, 1.5)}
"""Of the baseline and of the mask, from the scripts of the tasks."""
POISON = {"reddit": "sentence", "sentiment140": "prefix"}
PARTS = ("rates", "noise", "methods")
METHODS = ["fedavg", "multi_krum", "spmc", "fdcr"]
ATTACK, AFTER = 20, 40


def get_config(arg: str = "") -> Sweep:
    words = [word for word in arg.split(",") if word]
    task = next((word for word in words if word in RATES), "reddit")
    part = next((word for word in words if word in PARTS), "rates")
    rest = [word for word in words if word not in (task, part)]
    base = runpy.run_path(str(FOLDER / f"{task}.py"))["get_config"](",".join([*rest, "small", "kept"]))
    for path, value in {
        "attack.schedule.last": ATTACK,
        "federation.rounds": 1 + ATTACK + AFTER,
        "attack.local.learning_rate": RATES[task][1],
        "checkpoint.every": 1 + ATTACK + AFTER,
    }.items():
        set_field(base, path, value)
    grid: dict[str, list] = {"attack.name": [(POISON[task],), (POISON[task], "neurotoxin")]}
    if part == "noise":
        set_field(base, "aggregator.options.noise", 0.001)
    elif part == "methods":
        grid = {"method": METHODS}
    else:
        grid["attack.local.learning_rate"] = list(RATES[task])
    return Sweep(base=base, grid=grid, seeds=(0, 1, 2))
