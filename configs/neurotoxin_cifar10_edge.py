"""Neurotoxin on CIFAR-10 at full size, the edge case: planes of Southwest are to be taken for trucks (its task 6).

    python -m fedjax_spmc.run --config=configs/neurotoxin_cifar10_edge.py                 # the paper's mask
    python -m fedjax_spmc.run --config=configs/neurotoxin_cifar10_edge.py:baseline        # no mask
    python -m fedjax_spmc.run --config=configs/neurotoxin_cifar10_edge.py:neurotoxin,code_mask,code_data

As `neurotoxin_cifar10.py` is, with 200 attack rounds and the planes of the data set `southwest` (784 to train on, 196
to test) in place of test pictures of a class; the same words. `start` is the same too, and may be shared: both look for
`runs/neurotoxin_cifar10_start`. Meant for a GPU; not played at this size yet.
"""

from fedjax_spmc.config import make_config, set_field
from fedjax_spmc.config.phases import Phases

PHASES = Phases(clean=1800, attack=200, after=1800, start="runs/neurotoxin_cifar10_start", scheduled=True)
POISON = ("edge_case", "mixed_batches")
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
    "attack.options.mixed_batches.batches": 13,  # 784 planes
}
WORDS = {
    "neurotoxin": {"attack.name": (*POISON, "neurotoxin"), "attack.local.learning_rate": 0.02},
    "matched": {"attack.name": (*POISON, "neurotoxin"), "attack.local.learning_rate": 0.003},
    "baseline": {"attack.name": POISON, "attack.local.learning_rate": 0.003},
    "code_mask": {"attack.options.neurotoxin.source": "clean_grad", "attack.options.neurotoxin.strict": False},
    "code_data": {"attack.options.mixed_batches.relabel": (7,)},
    **PHASES.words(),
}


def get_config(arg: str = ""):
    config = make_config(arg, method="norm_clip", words=WORDS, fields=FIELDS | PHASES.fields())
    if config.aggregator.name == "norm_clip":
        set_field(config, "aggregator.options.threshold", CLEAN_NORM if config.attack.name == "none" else NORM)
    return config
