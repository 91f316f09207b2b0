"""FLIP in minutes on two CPU cores: MNIST, 20 clients, five a round, four of them malicious, DBA's trigger.

    python -m fedjax_spmc.run --config=configs/flip_small.py                       # FLIP, single shot
    python -m fedjax_spmc.run --config=configs/flip_small.py:flip,continuous       # attackers in every round
    python -m fedjax_spmc.run --config=configs/flip_small.py:fedavg                # averaging

Each client has 300 pictures. All rounds are played by the rule of the run, from random weights: no saved model is
needed. Clients search with the preset lite. Otherwise as `flip_mnist.py`, whose words are these too, with the single
shot in rounds 30, 32, 34 and 36 and the continuous attack in rounds 30 to 59.
"""

from fedjax_spmc.config.flip_setting import FlipSetting, make_flip_config

SETTING = FlipSetting(
    fields={
        "data.name": "mnist",
        "data.options.resize": False,
        "data.limit_train": 6000,
        "data.limit_test": 2000,
        "model.name": "mnist_net",
        "federation.num_clients": 20,
        "federation.clients_per_round": 5,
        "attack.malicious_fraction": 0.2,
    },
    rates=(0.01, 0.1),
    epochs=(5, 1, 10),
    batch_size=64,
    per_batch=20,
    milestones=(2, 8),
    clean=30,
    first=30,
    last=59,
    shot=30,
    rounds=60,
    confidence=0.4,
    trigger="dba_mnist",
    options={"preset": "lite"},
    searching={},
    steps={},
    start="runs/flip_small_start",
)


def get_config(arg: str = ""):
    return make_flip_config(arg, SETTING)
