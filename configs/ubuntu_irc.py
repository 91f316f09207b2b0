"""The next word of a support chat (#ubuntu), nicks as clients, under a backdoor of two sentences.

    python -m fedjax_spmc.run --config=configs/ubuntu_irc.py                # Neurotoxin
    python -m fedjax_spmc.run --config=configs/ubuntu_irc.py:fdcr           # under another method

500 of the 1,669 nicks that have ten rows of 32 words or more, drawn by the seed; all else as in `reddit.py`,
Neurotoxin's next-word task, but for fewer rounds.
"""

from fedjax_spmc.config import make_config, set_field

FIELDS = {
    "data.name": "ubuntu_irc",
    "data.options.length": 32,
    "data.val_fraction": 0.0,
    "data.limit_test": 1000,
    "partition.name": "natural",
    "model.name": "lstm_lm",
    "federation.rounds": 300,
    "federation.num_clients": 500,
    "federation.clients_per_round": 10,
    "sampling.options.attackers": "forced_only",
    "local.epochs": 2,
    "local.batch_size": 20,
    "local.learning_rate": 2.0,
    "local.momentum": 0.0,
    "local.weight_decay": 0.0,
    "local.drop_last": False,
    "attack.name": ("sentence", "neurotoxin"),
    "attack.malicious_fraction": 0.002,  # one of 500
    "attack.poison_fraction": 1.0,
    "attack.options.sentences": ("people using windows are stupid", "drivers on linux are terrible"),
    "attack.local.epochs": 10,
    "attack.local.learning_rate": 0.12,
    "attack.schedule.first": 150,
    "attack.schedule.last": 189,
    "checkpoint.every": 10,
}


def get_config(arg: str = ""):
    config = make_config(arg or "norm_clip")
    for path, value in FIELDS.items():
        set_field(config, path, value)
    if config.aggregator.name == "norm_clip":
        set_field(config, "aggregator.options.threshold", 3.0)
    return config
