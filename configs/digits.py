"""The handwritten digits that come with the package (1,797 images, nothing to download): the demo.

    python -m fedjax_spmc.run --config=configs/digits.py            # SPMC
    python -m fedjax_spmc.run --config=configs/digits.py:fedavg     # averaging

Ten clients of about 130 images, three of them malicious with the FDCR paper's trigger; a small network (`mlp`) and
batches of 16. Twelve rounds take well under a minute on two CPU cores.
"""

from fedjax_spmc.config import make_config


def get_config(arg: str = ""):
    return make_config(
        arg,
        data__name="digits",
        model__name="mlp",
        federation__rounds=12,
        local__batch_size=16,
        partition__min_size=16,
    )
