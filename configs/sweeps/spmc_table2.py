"""SPMC's Table 2: three data sets, two fractions of malicious clients, eleven methods, three seeds.

    python experiments/papers.py spmc_table2          # runs what is missing and writes the table
    python -m fedjax_spmc.sweep --config=configs/sweeps/spmc_table2.py --workdir=sweeps/t2
    python -m fedjax_spmc.sweep --config=configs/sweeps/spmc_table2.py:reference     # as the authors' code does it
    python -m fedjax_spmc.sweep --config=configs/sweeps/spmc_table2.py --dry-run

66 settings, 198 cells, 33 programs: the fraction of malicious clients and the seed are data of a program. A cell is 50
rounds of ten clients with ten local epochs each: on two CPU cores about a quarter of an hour on CIFAR-10 for averaging
and nearly twice that for SPMC, so the whole table is a matter of days there and meant for a GPU. Not played yet. The
paper's table prints A, R_all and V_all, the means of the last five rounds; its numbers do not say over how many seeds.
"""

from fedjax_spmc.config import make_config
from fedjax_spmc.sweep import Sweep

METHODS = (
    "fedavg", "dnc", "sageflow", "bulyan", "rfa", "rlr", "crfl", "foolsgold", "rsa", "finetuning", "spmc",
)  # fmt: skip
"""The rows of the table, in its order."""


def get_config(arg: str = "") -> Sweep:
    suffix = f",{arg}" if arg else ""
    return Sweep(
        base=make_config("", checkpoint__every=5),
        grid={
            "data.name": ["fashion_mnist", "cifar10", "mnist"],
            "method": [method + suffix for method in METHODS],
            "attack.malicious_fraction": [0.2, 0.3],
        },
        seeds=(0, 1, 2),
    )
