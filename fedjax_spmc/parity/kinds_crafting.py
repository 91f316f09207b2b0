"""Crafted uploads against `spmc_model_poisoning_*`."""

import math
import re
from collections.abc import Iterator
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks._crafting import Direction, a_little_is_enough, direction_of, pushed
from fedjax_spmc.parity.comparison import TOLERANCE, Arrays, Comparison, Outcome, kind

SEARCH_END = 1e-5
"""The search ends so near to the last lambda that was good; float32 and float64 may end one trial apart."""


@kind(r"spmc_model_poisoning_.*")
def model_poisoning(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """LIE, min-max and min-sum as the SPMC code has them: of the online benign clients, the update sent as a model."""
    online, benign = np.asarray(arrays["online_clients"]), np.asarray(arrays["client_is_benign"])
    rows = arrays["client_state"][online[benign[online]]]
    updates = jnp.asarray(rows - arrays["global_state"][None], jnp.float32)
    if "lie_attack__malicious_state" in arrays:
        malicious = len(online) - int(benign.sum())
        shape = len(online) // 2 + 1 - malicious
        z = math.exp(-(shape**2)) / (2 / math.sqrt(2 * math.pi))
        comparison = Comparison("model poisoning lie", TOLERANCE)
        comparison.add("z", z, arrays["lie_z"])
        comparison.add("state", a_little_is_enough(updates, z), arrays["lie_attack__malicious_state"])
        yield comparison.outcome(source)
    search = jax.jit(pushed, static_argnums=2)
    for name in arrays:
        found = re.fullmatch(r"(min_(max|sum)_(std|sign|unit_vec))__malicious_state", name)
        if found is None:
            continue
        direction = direction_of(updates, next(one for one in get_args(Direction) if one == found[3]))
        ours, strength = search(updates, direction, found[2])
        comparison = Comparison(f"model poisoning {found[1]}", TOLERANCE)
        comparison.add("state", ours, arrays[name], SEARCH_END * np.abs(np.asarray(direction)))
        comparison.add("lambda", strength, arrays[f"{found[1]}__lambda"], SEARCH_END)
        yield comparison.outcome(source)
