"""FDCR's Table 1: three clusterings of the discrepancies, two data sets, two betas, three seeds.

    python experiments/papers.py fdcr_table1          # runs what is missing and writes the table
    python -m fedjax_spmc.sweep --config=configs/sweeps/fdcr_table1.py --dry-run

12 settings, 36 cells of 50 rounds. The paper does not say with which radius DBSCAN was run; this is scikit-learn's.
"""

from fedjax_spmc.config import make_config
from fedjax_spmc.sweep import Sweep


def get_config(arg: str = "") -> Sweep:
    return Sweep(
        base=make_config(",".join(word for word in ("fdcr", arg) if word), checkpoint__every=5),
        grid={
            "data.name": ["cifar10", "fashion_mnist"],
            "partition.beta": [0.5, 0.3],
            "attack.malicious_fraction": [0.3],
            "aggregator.options.cluster": ["kmeans", "dbscan", "finch"],
        },
        seeds=(0, 1, 2),
    )
