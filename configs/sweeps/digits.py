"""A sweep in a minute, on the handwritten digits of the package: two methods, two fractions, two seeds.

    python -m fedjax_spmc.sweep --config=configs/sweeps/digits.py --workdir=sweeps/digits
    python -m fedjax_spmc.sweep --config=configs/sweeps/digits.py --dry-run --estimate

Eight cells in two groups, two programs to compile.
"""

from fedjax_spmc.config import make_config
from fedjax_spmc.sweep import Sweep


def get_config(arg: str = "") -> Sweep:
    base = make_config(
        arg,
        data__name="digits",
        model__name="mlp",
        federation__rounds=8,
        local__epochs=3,
        local__batch_size=16,
        partition__min_size=16,
        checkpoint__every=4,
    )
    return Sweep(
        base=base,
        grid={"method": ["fedavg", "spmc"], "attack.malicious_fraction": [0.2, 0.3]},
        seeds=(0, 1),
    )
