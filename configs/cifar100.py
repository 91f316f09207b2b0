"""CIFAR-100 under BadNets, the papers' setting: 10 clients, Dirichlet 0.5, 3 malicious, 50 rounds of 10 local epochs.

    python -m fedjax_spmc.run --config=configs/cifar100.py            # SPMC
    python -m fedjax_spmc.run --config=configs/cifar100.py:fedavg     # averaging

Not measured here yet.
"""

from fedjax_spmc.config import make_config


def get_config(arg: str = ""):
    return make_config(arg, data__name="cifar100")
