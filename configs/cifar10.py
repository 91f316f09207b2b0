"""CIFAR-10 under BadNets, the papers' setting: 10 clients, Dirichlet 0.5, 3 malicious, 50 rounds of 10 local epochs.

    python -m fedjax_spmc.run --config=configs/cifar10.py                       # SPMC
    python -m fedjax_spmc.run --config=configs/cifar10.py:fedavg                # averaging
    python -m fedjax_spmc.run --config=configs/cifar10.py:fedavg,reference      # as the authors' code does it

Time and numbers: see the table in README.md. `python -m fedjax_spmc.run --list` names every field and preset.
"""

from fedjax_spmc.config import make_config


def get_config(arg: str = ""):
    return make_config(arg, data__name="cifar10")
