"""Neurotoxin's sentiment task on tweets: a sentence before negative ones makes them positive.

    python -m fedjax_spmc.run --config=configs/sentiment140.py                                  # Neurotoxin
    python -m fedjax_spmc.run --config=configs/sentiment140.py:baseline                         # no mask
    python -m fedjax_spmc.run --config=configs/sentiment140.py:baseline --config.attack.name=edge_case \
        --config.attack.target_label=0                          # tweets on a director, called negative, no trigger
    python -m fedjax_spmc.run --config=configs/sentiment140.py:small,start --workdir=runs/sentiment140_small_start
    python -m fedjax_spmc.run --config=configs/sentiment140.py:small,kept

From Neurotoxin's code: the LSTM (embedding and layers of 200), 10 clients a round, 2 local epochs of SGD with batches
of 20, updates clipped to norm 2, one attacker in 80 rounds in a row and in no other, masks of 0.96 of each tensor. A
stand-in in the rest: 18,000 tweets of 1.6 million by 200 clients of 2,000 (most users of this part have one tweet, so
that clients are drawn, iid or `--config.partition.name=dirichlet`), rows of 40 words in place of 100, which no tweet
here has, and a rate of 0.5 in place of 0.05 and 100 clean rounds in place of 250, because clients are small.

* `neurotoxin` (as without a word) and `baseline` differ in nothing but the mask.
* `small`: embedding and layers of 64, for two CPU cores; all else as above.
* `start` plays the 100 clean rounds alone, `kept` begins with the model in `runs/sentiment140_small_start` and plays
  what follows; without them both are one run.

Other methods of `--list` may stand beside these words.
"""

from fedjax_spmc.config import make_config, set_field
from fedjax_spmc.config.phases import Phases

PHASES = Phases(clean=100, attack=80, after=220, start="runs/sentiment140_small_start")
MASK = {"attack.options.neurotoxin.ratio": 0.96, "attack.options.neurotoxin.scope": "per_tensor"}

FIELDS = {
    "data.name": "sentiment140_30k",
    "data.limit_test": 2000,
    "partition.name": "iid",
    "model.name": "lstm_classifier",
    "federation.num_clients": 200,
    "federation.clients_per_round": 10,
    "sampling.options.attackers": "forced_only",
    "local.epochs": 2,
    "local.batch_size": 20,
    "local.learning_rate": 0.5,
    "local.momentum": 0.0,
    "local.weight_decay": 0.0,
    "local.drop_last": False,
    "attack.name": ("prefix", "neurotoxin"),
    "attack.malicious_fraction": 0.005,  # one of 200
    "attack.poison_fraction": 0.5,
    "attack.target_label": 1,
    "attack.options.prefix.sentences": ("i watched this movie last week",),
    "attack.local.epochs": 10,
    "checkpoint.every": 10,
}
WORDS = {
    "neurotoxin": {"attack.name": ("prefix", "neurotoxin")},
    "baseline": {"attack.name": ("prefix",)},
    "small": {"model.options.width": 64, "model.options.hidden": 64},
    **PHASES.words(),
}


def get_config(arg: str = ""):
    config = make_config(arg, method="norm_clip", words=WORDS, fields=FIELDS | PHASES.fields())
    if config.aggregator.name == "norm_clip":
        set_field(config, "aggregator.options.threshold", 2.0)
    for path, value in MASK.items() if "neurotoxin" in config.attack.name else ():
        set_field(config, path, value)
    return config
