"""cifar100: the papers' setting."""

from fedjax_spmc.presets import make_config


def get_config(arg: str = ""):
    return make_config(arg, data__name="cifar100")
