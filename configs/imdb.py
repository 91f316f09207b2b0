"""Neurotoxin's sentiment task on film reviews: a sentence before negative ones makes them positive.

    python -m fedjax_spmc.run --config=configs/imdb.py                                  # Neurotoxin
    python -m fedjax_spmc.run --config=configs/imdb.py --config.attack.name=prefix      # no mask

From Neurotoxin's code: the LSTM (embedding of 400, layers of 256, dropout 0.3), 1,000 clients, 10 a round, Adam at
0.001 with batches of 40 for 10 local epochs, rows of 200 words, updates clipped to norm 3, one attacker in 100 rounds
in a row and in no other, masks of 0.96 of each tensor. Reviews have no users here: clients are drawn iid, about 22
reviews each, and fewer rounds lie before the attack than the code's 150.
"""

from fedjax_spmc.config import make_config, set_field

FIELDS = {
    "data.name": "imdb_reviews",
    "data.limit_test": 1000,
    "partition.name": "iid",
    "model.name": "lstm_classifier",
    "model.options.width": 400,
    "model.options.hidden": 256,
    "model.options.dropout": 0.3,
    "federation.rounds": 300,
    "federation.num_clients": 1000,
    "federation.clients_per_round": 10,
    "sampling.options.attackers": "forced_only",
    "local.epochs": 10,
    "local.batch_size": 40,
    "local.optimizer": "adam",
    "local.learning_rate": 0.001,
    "local.momentum": 0.9,
    "local.weight_decay": 0.0,
    "local.drop_last": False,
    "attack.name": ("prefix", "neurotoxin"),
    "attack.malicious_fraction": 0.001,  # one of 1,000
    "attack.poison_fraction": 0.5,
    "attack.target_label": 1,
    "attack.options.ratio": 0.96,
    "attack.options.scope": "per_tensor",
    "attack.options.sentences": ("i watched this 3d movie",),
    "attack.schedule.first": 100,
    "attack.schedule.last": 199,
    "checkpoint.every": 10,
}


def get_config(arg: str = ""):
    config = make_config(arg or "norm_clip")
    for path, value in FIELDS.items():
        set_field(config, path, value)
    if config.aggregator.name == "norm_clip":
        set_field(config, "aggregator.options.threshold", 3.0)
    return config
