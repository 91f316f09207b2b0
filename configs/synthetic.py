"""Made-up images for a quick look and for timing: no files, any size (`--config.data.options.num_train=...`).

    python -m fedjax_spmc.run --config=configs/synthetic.py

Takes seconds; the numbers mean nothing.
"""

from fedjax_spmc.config import make_config


def get_config(arg: str = ""):
    return make_config(arg, data__name="synthetic", federation__rounds=3, local__epochs=1, model__name="mlp")
