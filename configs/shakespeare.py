"""The next character of LEAF's Shakespeare, speaking roles as clients, under a backdoor of two lines.

    python -m fedjax_spmc.run --config=configs/shakespeare.py               # averaging
    python -m fedjax_spmc.run --config=configs/shakespeare.py:spmc          # under another method

LEAF's network (embedding of 8, two LSTM layers of 256), its rate of 0.8, batches of 10 and one local epoch, 10 clients
a round. Unlike there every place of a row of 80 characters asks for the next one, not the last place alone; characters
are bytes; clients are 300 of the 665 roles with ten rows or more, drawn by the seed. Words in place of characters:
`--config.data.options.tokenizer=word`. Where LEAF's text may not be used, `--config.data.name=tiny_shakespeare
--config.partition.name=iid` has the plays without their users.
"""

from fedjax_spmc.config import make_config, set_field

FIELDS = {
    "data.name": "leaf_shakespeare",
    "data.options.tokenizer": "byte",
    "data.options.length": 80,
    "data.val_fraction": 0.0,
    "data.limit_test": 1000,
    "partition.name": "natural",
    "model.name": "lstm_lm",
    "model.options.width": 8,
    "model.options.hidden": 256,
    "model.options.tied": False,
    "model.options.dropout": 0.0,
    "federation.rounds": 300,
    "federation.num_clients": 300,
    "federation.clients_per_round": 10,
    "local.epochs": 1,
    "local.batch_size": 10,
    "local.learning_rate": 0.8,
    "local.momentum": 0.0,
    "local.weight_decay": 0.0,
    "local.drop_last": False,
    "attack.name": "sentence",
    "attack.malicious_fraction": 0.1,
    "attack.poison_fraction": 0.5,
    "attack.options.sentences": ("My good lord Hamlet is a fool", "The crown of England is lost"),
    "checkpoint.every": 10,
}


def get_config(arg: str = ""):
    config = make_config(arg or "fedavg")
    for path, value in FIELDS.items():
        set_field(config, path, value)
    return config
