"""A published speed benchmark: CIFAR-10, 1000 users of 50 images, 50 of them a round, a small CNN, 1500 rounds.

    python -m fedjax_spmc.run --config=configs/s1.py
    python -m fedjax_spmc.run --config=configs/s1.py --config.federation.rounds=2 --config.data.name=synthetic \
        --config.data.options.num_train=50000                                                       # a quick look

The workload is that of pfl-research (arXiv 2404.06430, `benchmarks/image_classification/configs/baseline.yaml`): plain
averaging without attack, users of equal size, batches of 10, one local epoch, SGD 0.1 without momentum and weight
decay, no augmentation, evaluated every 10 rounds. Like it, all 50,000 training images are the users'. It differs in two
things: the users' images are drawn once, where the benchmark goes on drawing users from new shuffles, and the weights
start as torch's do, not by Glorot's rule. `python experiments/bench/bench_sweep.py --parts=s1` times a round.
"""

from fedjax_spmc.config import make_config, set_field

FIELDS = {
    "data.name": "cifar10",
    "data.val_fraction": 0.0,
    "data.augment": False,
    "partition.name": "iid",
    "model.name": "cnn_dropout",
    "federation.rounds": 1500,
    "federation.num_clients": 1000,
    "federation.clients_per_round": 50,
    "federation.eval_every": 10,
    "local.epochs": 1,
    "local.batch_size": 10,
    "local.learning_rate": 0.1,
    "local.momentum": 0.0,
    "local.weight_decay": 0.0,
    "attack.name": "none",
    "attack.malicious_fraction": 0.0,
    "checkpoint.every": 10,
}


def get_config(arg: str = ""):
    config = make_config(arg or "fedavg")
    for path, value in FIELDS.items():
        set_field(config, path, value)
    return config
