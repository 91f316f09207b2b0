"""A next-word backdoor and how long it lasts, on two cores in three minutes, without a download.

    python -m fedjax_spmc.run --config=configs/neurotoxin_text_small.py                 # Neurotoxin
    python -m fedjax_spmc.run --config=configs/neurotoxin_text_small.py:spmc            # under another method
    python -m fedjax_spmc.run --config=configs/neurotoxin_text_small.py --config.attack.name=sentence   # no mask

Python's own help topics, dealt out to 20 users, one of whom is malicious: a small LSTM learns the next word, in rounds
40 to 54 the attacker teaches it two sentences, and 45 rounds without it follow. As in Neurotoxin's code all updates are
clipped and averaged, and the attacker takes part in its rounds alone. A stand-in for its Reddit task (`reddit.py`): the
text, the network and the number of users are small, and the topics differ between versions of Python.
"""

from fedjax_spmc.config import make_config, set_field

FIELDS = {
    "data.name": "pydoc_topics",
    "data.options.vocabulary": 1000,
    "data.options.users": 20,
    "data.val_fraction": 0.0,
    "partition.name": "natural",
    "model.name": "lstm_lm",
    "model.options.width": 64,
    "model.options.hidden": 64,
    "model.options.layers": 1,
    "model.options.dropout": 0.0,
    "federation.rounds": 100,
    "federation.num_clients": 20,
    "federation.clients_per_round": 10,
    "sampling.options.attackers": "forced_only",
    "local.epochs": 2,
    "local.batch_size": 16,
    "local.learning_rate": 20.0,
    "local.momentum": 0.0,
    "local.weight_decay": 0.0,
    "local.clip_norm": 0.25,
    "local.drop_last": False,
    "attack.name": ("sentence", "neurotoxin"),
    "attack.malicious_fraction": 0.05,
    "attack.poison_fraction": 1.0,
    "attack.options.sentences": ("the type of this object is none", "names in this module are numbers"),
    "attack.local.epochs": 10,
    "attack.schedule.first": 40,
    "attack.schedule.last": 54,
}
CLIP = 10.0
"""Largest norm of an update; an honest one is about twice as long here."""


def get_config(arg: str = ""):
    config = make_config(arg or "norm_clip")
    for path, value in FIELDS.items():
        set_field(config, path, value)
    if config.aggregator.name == "norm_clip":
        set_field(config, "aggregator.options.threshold", CLIP)
    return config
