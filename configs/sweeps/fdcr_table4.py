"""FDCR's Table 4: fourteen methods, three data sets, two betas, two fractions of malicious clients, three seeds.

    python experiments/papers.py fdcr_table4          # runs what is missing and writes the table
    python -m fedjax_spmc.sweep --config=configs/sweeps/fdcr_table4.py --dry-run

168 settings, 504 cells of 50 rounds; the fraction, beta and the seed are data of a program.
"""

from fedjax_spmc.config import make_config
from fedjax_spmc.sweep import Sweep

METHODS = (
    "fedavg", "multi_krum", "foolsgold", "rlr", "dnc", "multi_metrics", "trimmed_mean", "bulyan", "rfa", "fltrust",
    "sageflow", "finetuning", "crfl", "fdcr",
)  # fmt: skip
"""The rows of the table, in its order."""


def get_config(arg: str = "") -> Sweep:
    suffix = f",{arg}" if arg else ""
    return Sweep(
        base=make_config("", checkpoint__every=5),
        grid={
            "data.name": ["cifar10", "fashion_mnist", "usps"],
            "partition.beta": [0.5, 0.3],
            "method": [method + suffix for method in METHODS],
            "attack.malicious_fraction": [0.2, 0.3],
        },
        seeds=(0, 1, 2),
    )
