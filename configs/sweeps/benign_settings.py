"""Do the rankings of methods survive honest settings of the clients' training? CIFAR-10, the papers' attack.

    python -m fedjax_spmc.sweep --config=configs/sweeps/benign_settings.py --workdir=sweeps/benign_settings
    python -m fedjax_spmc.report sweeps/benign_settings --out=report/benign_settings

Learning rate, batch and epochs of the benign clients are varied, for averaging, SPMC, FDCR and MultiKrum. Lachnit and
Karame (CCS 2025, arXiv 2509.05192) found that these alone decide how durable a backdoor is. Attackers keep the papers'
rate of 0.01 and ten epochs; their batches are as large as everybody's, because clients are trained at once. 48
settings, 144 cells of 12 rounds, 24 programs. The report's table "rankings" has V of every method, and how much alike
each setting ranks the methods. Not played yet.
"""

from fedjax_spmc.config import make_config
from fedjax_spmc.sweep import Sweep

METHODS = ("fedavg", "spmc", "fdcr", "multi_krum")


def get_config(arg: str = "") -> Sweep:
    base = make_config(arg, federation__rounds=12, checkpoint__every=4)
    base.data.name = "cifar10"
    base.attack.malicious_fraction = 0.3
    base.attack.local.learning_rate = 0.01
    base.attack.local.epochs = 10
    return Sweep(
        base=base,
        grid={
            "method": METHODS,
            "local.batch_size": [32, 64],
            "local.epochs": [1, 2, 10],
            "local.learning_rate": [0.01, 0.05],
        },
        seeds=(0, 1, 2),
    )
