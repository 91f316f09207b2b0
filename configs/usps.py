"""USPS under BadNets, the papers' setting: 10 clients, Dirichlet 0.5, 3 malicious, 50 rounds of 10 local epochs.

    python -m fedjax_spmc.run --config=configs/usps.py            # SPMC
    python -m fedjax_spmc.run --config=configs/usps.py:fedavg     # averaging

Not measured here yet.
"""

from fedjax_spmc.config import make_config


def get_config(arg: str = ""):
    # 6,561 training images among ten clients: the smallest would not fill a batch of 64 with the usual minimum.
    return make_config(arg, data__name="usps", partition__min_size=64)
