"""FDCR's Table 3: removing clients (FCDC) and rescaling the rest (FPRA), each alone and both; averaging beside them.

    python experiments/papers.py fdcr_table3          # runs what is missing and writes the table
    python -m fedjax_spmc.sweep --config=configs/sweeps/fdcr_table3.py --workdir=sweeps/fdcr_table3
    python -m fedjax_spmc.sweep --config=configs/sweeps/fdcr_table3.py:fedavg --workdir=sweeps/fdcr_table3

16 settings, 48 cells of 50 rounds. Averaging knows none of FDCR's options and is a sweep of its own, `:fedavg`.
"""

from fedjax_spmc.config import make_config
from fedjax_spmc.sweep import Sweep


def get_config(arg: str = "") -> Sweep:
    words = [word for word in arg.split(",") if word]
    average = "fedavg" in words
    grid = {
        "data.name": ["cifar10", "fashion_mnist"],
        "partition.beta": [0.5, 0.3],
        "attack.malicious_fraction": [0.3],
    }
    if not average:
        grid |= {"aggregator.options.discrepancy": [True, False], "aggregator.options.rescale": ["off", "minmax"]}
    return Sweep(
        base=make_config(",".join(words if average else ["fdcr", *words]), checkpoint__every=5),
        grid=grid,
        seeds=(0, 1, 2),
        # Neither of the two is averaging, at the price of a Fisher that nobody looks at.
        leave_out=[] if average else [{"aggregator.options.discrepancy": False, "aggregator.options.rescale": "off"}],
    )
