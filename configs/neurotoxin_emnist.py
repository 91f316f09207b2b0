"""Neurotoxin on handwritten characters, the edge case: sevens of ARDIS are to be taken for ones (tasks 10 and 9).

    python -m fedjax_spmc.run --config=configs/neurotoxin_emnist.py                       # the paper's mask
    python -m fedjax_spmc.run --config=configs/neurotoxin_emnist.py:baseline              # no mask
    python -m fedjax_spmc.run --config=configs/neurotoxin_emnist.py:digits,baseline       # task 9 in place of 10

Task 10 is EMNIST byclass with `resnet9`: behind 2000 clean rounds 100 attack rounds, updates cut to 1.0. The code has
3000 clients of about 230 pictures; the part of the data that can be prepared here has 9,000, and stands for it with 300
clients of 30. Task 9, `digits`, is EMNIST's digits with `emnist_cnn`, 1000 clients and a constant learning rate of
1e-4, from a network that was trained for ten epochs: 200 attack rounds, cut to 0.5. MNIST in its own 28 x 28 pixels
stands for these digits, and 300 clean rounds at a rate of 0.02 for the ten epochs. The attacker takes ten internal
epochs of 64 poisoned and up to 64 clean pictures at a time. Not played at this size yet.

* `neurotoxin` (as without a word), `matched`, `baseline`, `code_mask`, `code_data`, `start`, `kept`: see
  `neurotoxin_cifar10.py`. The attacker's learning rates are 0.01 for both in task 10, 0.04 and 0.003 in task 9.
* Start models: `--workdir=runs/neurotoxin_emnist_start`, and `runs/neurotoxin_digits_start` of `digits`.
"""

from fedjax_spmc.config import make_config, set_field
from fedjax_spmc.config.phases import Phases

POISON = ("edge_case", "mixed_batches")

FIELDS = {
    "data.val_fraction": 0.0,
    "partition.beta": 0.9,
    "sampling.options.attackers": "forced_only",
    "local.epochs": 2,
    "local.drop_last": False,
    "local.weight_decay": 5e-4,
    "attack.name": (*POISON, "neurotoxin"),
    "attack.target_label": 1,
    "attack.poison_fraction": 1.0,
    "attack.local.epochs": 10,
    "attack.local.weight_decay": 5e-5,
    "attack.options.mixed_batches.rows": 64,
    "attack.options.mixed_batches.batches": 11,  # 660 sevens
}
BYCLASS = {
    "data.name": "emnist_byclass_part",
    "model.name": "resnet9",
    "partition.min_size": 5,
    "federation.num_clients": 300,
    "attack.malicious_fraction": 0.004,
    "local.learning_rate": 0.2,
    "local.schedule": "neurotoxin_emnist",
}
DIGITS = {
    "data.name": "mnist",
    "data.options.resize": False,
    "model.name": "emnist_cnn",
    "federation.num_clients": 1000,
    "attack.malicious_fraction": 0.001,
    "local.learning_rate": 0.02,
    "local.schedule": "step",
    "local.schedule_milestones": (300,),
    "local.schedule_gamma": 0.005,
}
TASKS = {
    # fields, phases, bound of updates, attacker's learning rates with the mask and without
    "byclass": (BYCLASS, Phases(2000, 100, 1900, "runs/neurotoxin_emnist_start", scheduled=True), 1.0, 0.01, 0.01),
    "digits": (DIGITS, Phases(300, 200, 1800, "runs/neurotoxin_digits_start", scheduled=True), 0.5, 0.04, 0.003),
}


def get_config(arg: str = ""):
    words = [word.strip() for word in arg.split(",")]
    own, phases, norm, masked, plain = TASKS["digits" if "digits" in words else "byclass"]
    presets = {
        "digits": {},
        "neurotoxin": {"attack.name": (*POISON, "neurotoxin"), "attack.local.learning_rate": masked},
        "matched": {"attack.name": (*POISON, "neurotoxin"), "attack.local.learning_rate": plain},
        "baseline": {"attack.name": POISON, "attack.local.learning_rate": plain},
        "code_mask": {"attack.options.neurotoxin.source": "clean_grad", "attack.options.neurotoxin.strict": False},
        "code_data": {"attack.options.mixed_batches.relabel": (7,)},
        **phases.words(),
    }
    fields = FIELDS | own | phases.fields() | {"attack.local.learning_rate": masked}
    config = make_config(arg, method="norm_clip", words=presets, fields=fields)
    if config.aggregator.name == "norm_clip":
        set_field(config, "aggregator.options.threshold", norm)
    return config
