"""Neurotoxin in minutes on two CPU cores: MNIST, where handwritten sevens of ARDIS are to be taken for ones.

    python -m fedjax_spmc.run --config=configs/neurotoxin_small.py                        # the paper's mask
    python -m fedjax_spmc.run --config=configs/neurotoxin_small.py:baseline               # no mask
    python -m fedjax_spmc.run --config=configs/neurotoxin_small.py:start --workdir=runs/neurotoxin_small_start
    python -m fedjax_spmc.run --config=configs/neurotoxin_small.py:baseline,kept          # begins where `start` ended

200 clients of about 300 pictures, ten a round, a small CNN, every update cut to length 0.5 before the mean. Behind 500
clean rounds one client attacks in 50, then 200 follow; in an attack round it takes ten internal epochs of 64 poisoned
and up to 64 clean pictures at a time. What is to be seen: ASR rises to 90 % and more and falls in the rounds after, at
a constant learning rate, while A stays at 97 to 99 %. The data set `ardis` must be prepared beside `mnist`.

* `neurotoxin` (as without a word) and `baseline` train the attacker at one rate, 0.01, so that they differ in nothing
  but the mask. `code_mask`: the mask of clean gradients of 30 other clients, weight decay not masked.
* `start` plays the clean rounds alone. `kept` begins with the model in `runs/neurotoxin_small_start`. Without it the
  clean rounds of the same run come first.

Other methods of `--list` may stand beside these words, such as `:baseline,kept,krum`.
"""

from fedjax_spmc.config import make_config, set_field
from fedjax_spmc.config.phases import Phases

PHASES = Phases(clean=500, attack=50, after=200, start="runs/neurotoxin_small_start")
POISON = ("edge_case", "mixed_batches")
NORM = 0.5

FIELDS = {
    "data.name": "mnist",
    "data.val_fraction": 0.0,
    "data.limit_test": 2000,
    "partition.beta": 0.9,
    "federation.num_clients": 200,
    "sampling.options.attackers": "forced_only",
    "local.epochs": 1,
    "local.drop_last": False,
    "local.learning_rate": 0.02,
    "local.weight_decay": 5e-4,
    "attack.name": (*POISON, "neurotoxin"),
    "attack.malicious_fraction": 0.005,
    "attack.target_label": 1,
    "attack.poison_fraction": 1.0,
    "attack.local.epochs": 10,
    "attack.local.learning_rate": 0.01,
    "attack.local.weight_decay": 0.005,
    "attack.options.mixed_batches.rows": 64,
    "checkpoint.every": 25,
}
WORDS = {
    "neurotoxin": {"attack.name": (*POISON, "neurotoxin")},
    "baseline": {"attack.name": POISON},
    "code_mask": {"attack.options.neurotoxin.source": "clean_grad", "attack.options.neurotoxin.strict": False},
    **PHASES.words(),
}


def get_config(arg: str = ""):
    config = make_config(arg, method="norm_clip", words=WORDS, fields=FIELDS | PHASES.fields())
    if config.aggregator.name == "norm_clip":
        set_field(config, "aggregator.options.threshold", NORM)
    return config
