"""digits."""

from fedjax_spmc.presets import make_config


def get_config(arg: str = ""):
    return make_config(arg, data__name="digits", federation__rounds=20, local__batch_size=16, partition__min_size=16)
