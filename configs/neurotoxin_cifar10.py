"""Neurotoxin on CIFAR-10 at full size, the base case: pictures of class 5 are to be taken for 9 (task 5 of its code).

    python -m fedjax_spmc.run --config=configs/neurotoxin_cifar10.py                      # the paper's mask
    python -m fedjax_spmc.run --config=configs/neurotoxin_cifar10.py:baseline             # no mask
    python -m fedjax_spmc.run --config=configs/neurotoxin_cifar10.py:neurotoxin,code_mask,code_data

1000 clients, ten a round; behind 1800 clean rounds one of them attacks in 250, then 1750 follow. The attacker takes ten
internal epochs of 64 poisoned and up to 64 clean pictures at a time. Every update is cut to length 0.2 before the mean.
Meant for a GPU; not played at this size yet.

* `neurotoxin` (as without a word) and `baseline` have the attacker's learning rates of the code's scripts, 0.02 and
  0.003; `matched` is the mask with the baseline's.
* `code_mask`: the mask of clean gradients of 30 other clients, weight decay not masked. `code_data`: the backdoor is
  tested on the pictures that it was trained on, and clean sevens are relabelled too.
* `start` plays the clean rounds alone, cut to 1.0 as in the code; give it `--workdir=runs/neurotoxin_cifar10_start`.
  `kept` begins with what is there. Without it the clean rounds of the same run come first, cut to 0.2.

Other methods of `--list` may stand beside these words, such as `:neurotoxin,krum`. Batch statistics are averaged by the
shares that clipping leaves, in the code equally; there they also leak from client to client, here they do not.
"""

from fedjax_spmc.config import make_config, set_field
from fedjax_spmc.config.phases import Phases

PHASES = Phases(clean=1800, attack=250, after=1750, start="runs/neurotoxin_cifar10_start", scheduled=True)
POISON = ("semantic", "mixed_batches")
NORM, CLEAN_NORM = 0.2, 1.0

FIELDS = {
    "data.name": "cifar10",
    "data.val_fraction": 0.0,
    "partition.beta": 0.9,
    "model.name": "resnet18_thin",
    "federation.num_clients": 1000,
    "sampling.options.attackers": "forced_only",
    "local.epochs": 2,
    "local.drop_last": False,
    "local.learning_rate": 0.2,
    "local.schedule": "neurotoxin_cifar",
    "local.weight_decay": 5e-4,
    "attack.name": (*POISON, "neurotoxin"),
    "attack.malicious_fraction": 0.001,
    "attack.target_label": 9,
    "attack.poison_fraction": 1.0,
    "attack.local.epochs": 10,
    "attack.local.learning_rate": 0.02,
    "attack.local.weight_decay": 0.005,
    "attack.options.mixed_batches.rows": 64,
    "attack.options.mixed_batches.batches": 8,
}
WORDS = {
    "neurotoxin": {"attack.name": (*POISON, "neurotoxin"), "attack.local.learning_rate": 0.02},
    "matched": {"attack.name": (*POISON, "neurotoxin"), "attack.local.learning_rate": 0.003},
    "baseline": {"attack.name": POISON, "attack.local.learning_rate": 0.003},
    "code_mask": {"attack.options.neurotoxin.source": "clean_grad", "attack.options.neurotoxin.strict": False},
    "code_data": {"attack.options.semantic.disjoint": False, "attack.options.mixed_batches.relabel": (7,)},
    **PHASES.words(),
}


def get_config(arg: str = ""):
    config = make_config(arg, method="norm_clip", words=WORDS, fields=FIELDS | PHASES.fields())
    if config.aggregator.name == "norm_clip":
        set_field(config, "aggregator.options.threshold", CLEAN_NORM if config.attack.name == "none" else NORM)
    return config
