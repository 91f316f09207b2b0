"""The demo, on the digits of the package: averaging, SPMC and FDCR under one and the same attack.

    python -m fedjax_spmc demo
    python -m fedjax_spmc.run --config=demo:fdcr                # one of the three methods alone

The attack is the FDCR code's: BadNets with the trigger `fdcr_code`, half of the images of malicious clients poisoned,
their augmentation frozen. FDCR is run as its authors' code runs it (`fisher_kind="authors"`). Ten clients of about 130
images, three of them malicious; a small network (`mlp`) and batches of 16.
"""

from fedjax_spmc.config import make_config

ATTACK = {
    "attack.trigger": "fdcr_code",
    "attack.poison_fraction": 0.5,
    "attack.augmentation": "frozen",
    "sampling.options.order": "sorted",
}


def get_config(arg: str = ""):
    config = make_config(
        arg,
        method="fedavg",
        fields=ATTACK,
        data__name="digits",
        model__name="mlp",
        federation__rounds=12,
        local__batch_size=16,
        partition__min_size=16,
    )
    if config.local.rule == "fdcr":
        config.local.options.fisher_kind = "authors"
    return config
