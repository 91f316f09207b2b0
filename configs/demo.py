"""The demo, on the digits of the package: averaging, SPMC and DnC under one and the same attack.

    python -m fedjax_spmc demo
    python -m fedjax_spmc.run --config=demo:dnc                 # one of the three methods alone

The attack is the FDCR code's: BadNets with the trigger `fdcr_code`, half of the images of malicious clients poisoned,
their augmentation frozen. DnC (NDSS 2021) is here because of all baselines it has the best V in FDCR's Table 4
(CIFAR-10, beta 0.5, gamma 0.3: 75.1, and FDCR itself 78.1); FDCR as its code has it (`--config=demo:fdcr,reference`)
does not hold this backdoor back on these images. Ten clients of about 130 images, three of them malicious; a small
network (`mlp`) and batches of 16.
"""

from fedjax_spmc.config import make_config


def get_config(arg: str = ""):
    return make_config(
        arg,
        method="fedavg",
        fields={
            "attack.trigger": "fdcr_code",
            "attack.augmentation": "frozen",
            "sampling.options.order": "sorted",
        },
        data__name="digits",
        model__name="mlp",
        attack__poison_fraction=0.5,
        federation__rounds=12,
        local__batch_size=16,
        partition__min_size=16,
    )
