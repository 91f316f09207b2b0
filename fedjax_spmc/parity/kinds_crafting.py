"""Crafted uploads against `spmc_model_poisoning_*`."""

import math
import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks._search import direction_of
from fedjax_spmc.attacks._updates import mean_of, std_of
from fedjax_spmc.parity.comparison import TOLERANCE, Arrays, Comparison, Outcome, kind
from fedjax_spmc.parity.kinds_untargeted import DIRECTIONS, search_of

SEARCH_END = 1e-5
"""The search ends so near to the last lambda that was good; float32 and float64 may end one trial apart."""
START = 10.0
"""Of the search."""


@kind(r"spmc_model_poisoning_.*")
def model_poisoning(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """LIE, min-max and min-sum as the SPMC code has them: of the online benign clients, the update sent as a model."""
    online, benign = np.asarray(arrays["online_clients"]), np.asarray(arrays["client_is_benign"])
    rows = arrays["client_state"][online[benign[online]]]
    updates = jnp.asarray(rows - arrays["global_state"][None], jnp.float32)
    mask = jnp.ones(len(updates), bool)
    if "lie_attack__malicious_state" in arrays:
        malicious = len(online) - int(benign.sum())
        shape = len(online) // 2 + 1 - malicious
        z = math.exp(-(shape**2)) / (2 / math.sqrt(2 * math.pi))
        comparison = Comparison("model poisoning lie", TOLERANCE)
        comparison.add("z", z, arrays["lie_z"])
        ours = mean_of(updates, mask) + z * std_of(updates, mask)
        comparison.add("state", ours, arrays["lie_attack__malicious_state"])
        yield comparison.outcome(source)
    for name in arrays:
        found = re.fullmatch(r"(min_(max|sum)_(std|sign|unit_vec))__malicious_state", name)
        if found is None:
            continue
        direction = direction_of(updates, mask, DIRECTIONS[found[3]])
        ours, strength = search_of(f"min{found[2]}")(updates, mask, direction, jnp.int32(0), jnp.float32(START))
        comparison = Comparison(f"model poisoning {found[1]}", TOLERANCE)
        comparison.add("state", ours, arrays[name], SEARCH_END * np.abs(np.asarray(direction)))
        comparison.add("lambda", strength, arrays[f"{found[1]}__lambda"], SEARCH_END)
        yield comparison.outcome(source)
