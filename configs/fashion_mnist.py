"""Fashion-MNIST under BadNets, the papers' setting: 10 clients, Dirichlet 0.5, 3 malicious, 50 rounds of 10 epochs.

    python -m fedjax_spmc.run --config=configs/fashion_mnist.py            # SPMC
    python -m fedjax_spmc.run --config=configs/fashion_mnist.py:fedavg     # averaging

Not measured here yet.
"""

from fedjax_spmc.config import make_config


def get_config(arg: str = ""):
    return make_config(arg, data__name="fashion_mnist")
