"""FDCR's Table 2: discrepancies of updates weighed by importance or not, without rescaling; two betas, three seeds.

    python experiments/papers.py fdcr_table2          # runs what is missing and writes the table
    python -m fedjax_spmc.sweep --config=configs/sweeps/fdcr_table2.py --dry-run

4 settings, 12 cells of 50 rounds.
"""

from fedjax_spmc.config import make_config, set_field
from fedjax_spmc.sweep import Sweep


def get_config(arg: str = "") -> Sweep:
    base = make_config(",".join(word for word in ("fdcr", arg) if word), checkpoint__every=5)
    set_field(base, "aggregator.options.rescale", "off")
    return Sweep(
        base=base,
        grid={
            "data.name": ["cifar10"],
            "partition.beta": [0.5, 0.3],
            "attack.malicious_fraction": [0.3],
            "aggregator.options.importance": [False, True],
        },
        seeds=(0, 1, 2),
    )
