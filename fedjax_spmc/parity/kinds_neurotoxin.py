"""Neurotoxin against its golden files: masks, the learning rate, the ball of PGD."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import schedules, trees
from fedjax_spmc.attacks._masks import Scope, masks
from fedjax_spmc.attacks.pgd import project
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.recorded_nets import below

SCOPES: dict[str, Scope] = {"global": "global", "layer": "per_tensor"}
"""As the files call them -> ours."""


@kind(r"neurotoxin_masks.*")
def mask_construction(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Every mask exactly, with the ratio as a number and as the array that a sweep makes of it."""
    by_array = jax.jit(masks, static_argnums=2)
    by_number = jax.jit(
        lambda gradient, asked: [masks(gradient, number, scope) for number, scope in asked], static_argnums=1
    )
    for case in dict.fromkeys(name.split("/")[0] for name in arrays):
        found = below(arrays, case)
        gradient = [jnp.asarray(found[f"grad_{i}"]) for i in range(sum(name.startswith("grad_") for name in found))]
        comparison = Comparison(f"masks {case}", 0.0)
        names = list(dict.fromkeys(tuple(name.split("/")[:2]) for name in found if "/" in name))
        asked = tuple((float(ratio.removeprefix("r")), SCOPES[scope]) for ratio, scope in names)
        for (ratio, scope), (number, ours_scope), made in zip(names, asked, by_number(gradient, asked), strict=True):
            for ours in (made, by_array(gradient, jnp.float32(number), ours_scope)):
                for i, mask in enumerate(ours):
                    comparison.add(f"{ratio} {scope} mask_{i}", mask, found[f"{ratio}/{scope}/mask_{i}"])
        yield comparison.outcome(source)


SCHEDULES = {"cifar10": "neurotoxin_cifar", "cifar100": "neurotoxin_cifar", "emnist_byclass": "neurotoxin_emnist"}
"""Data set, as the file calls it -> our schedule; its target rate stands behind it, "cli_default" is 0.2."""
CONSTANT_RATES = {"emnist_digits": 1e-4}


@kind(r"neurotoxin_lr_schedule.*")
def learning_rates(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The benign learning rate by round, from the schedules that a config names."""
    rounds = np.asarray(arrays["epochs"])
    for name in arrays:
        if name == "epochs":
            continue
        found = re.fullmatch(r"(.*)_(?:cli_default|tl([\d.]+))", name)
        if name in CONSTANT_RATES:
            schedule, target = "constant", CONSTANT_RATES[name]
        elif found is not None and found[1] in SCHEDULES:
            schedule, target = SCHEDULES[found[1]], float(found[2] or 0.2)
        else:
            yield skipped(f"learning rate {name}", source, "no schedule that the README explains")
            continue
        comparison = Comparison(f"learning rate {name}", 1e-9)
        factors = schedules.factors(schedule, int(rounds.max()), learning_rate=target)
        comparison.add(name, target * factors[rounds - 1], arrays[name])
        yield comparison.outcome(source)


@kind(r"neurotoxin_misc.*")
def ball(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The ball of PGD; `kinds_text` has the rest of the file."""
    found = below(arrays, "pgd")
    if found:
        local, center = ({k: jnp.asarray(v) for k, v in below(found, part).items()} for part in ("local", "global"))
        rows = {name: x[None] for name, x in local.items()}
        comparison = Comparison("projection to a ball", 1e-6)
        for case in dict.fromkeys(name.split("/")[0] for name in found if re.match(r"s[\d.]+/", name)):
            length = trees.client_norm(trees.subtract(rows, center))[0]
            comparison.add(f"{case} l2_before", length, found[f"{case}/l2_before"])
            for name, ours in project(rows, center, float(case[1:])).items():
                comparison.add(f"{case} {name}", ours[0], found[f"{case}/{name}"])
        yield comparison.outcome(source)
