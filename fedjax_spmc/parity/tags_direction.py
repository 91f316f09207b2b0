"""Tags of the rules that look at directions, signs and lengths: DnC, RLR, RSA, CRFL, FoolsGold."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators
from fedjax_spmc.aggregators import crfl, dnc
from fedjax_spmc.aggregators.guard import guarded
from fedjax_spmc.parity.comparison import Arrays
from fedjax_spmc.parity.layout import Layout, layout_of, split, unequal_counters
from fedjax_spmc.parity.tags import Tag
from fedjax_spmc.types import Aggregator, Params, PRNGKey, State, Upload, Verdict

ROUNDS = 50
ATTACKER_RATE = {"DnC": 0.3, "DnC_rate06": 0.6}


def dnc_rule(arrays: Arrays, layout: Layout, tag: str) -> Aggregator:
    """DnC on the coordinates that the reference drew, with the attackers that it was told of."""
    recorded = jnp.asarray(np.asarray(arrays[f"{tag}__subsample_indices"])[:10_000], jnp.int32)
    num_clients = len(arrays["online_clients"])
    return guarded(
        dnc.with_draw(
            lambda key, iterations, num_coordinates, size: recorded[None],
            variant="reference",
            attackers=int(ATTACKER_RATE[tag] * num_clients),
        )
    )


def whole_state(arrays: Arrays, layout: Layout, tag: str, upload: Upload) -> Upload:
    """Batch statistics and counters as further leaves, because the reference's DnC scores them too.

    They stand behind the others and not in state order, which matters only where a subset of coordinates is drawn.
    """
    del tag
    old = split(arrays["global_state"], layout)[1]
    return upload._replace(
        global_params=upload.global_params + old, client_params=upload.client_params + upload.client_stats
    )


def dnc_skip(arrays: Arrays, source: str) -> str:
    """Where clients are absent the reference averages their old models; unequal counters drown everything else."""
    del source
    if len(arrays["online_clients"]) < len(arrays["client_state"]):
        return "the reference averages models of absent clients"
    return unequal_counters(arrays, layout_of(arrays))


def own_weights(arrays: Arrays, layout: Layout, tag: str) -> Aggregator:
    """RLR with batch statistics averaged by each client's own examples: only its updates get another client's."""
    del arrays, layout
    rule = aggregators.make("rlr", variant="reference", **RLR_OPTIONS[tag])

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        params, verdict, state = rule.aggregate(upload, state, key)
        examples = jnp.where(upload.participating, upload.num_examples, 0.0)
        return params, verdict._replace(weights=examples / examples.sum()), state

    return rule._replace(aggregate=aggregate)


RLR_OPTIONS: dict[str, dict[str, Any]] = {
    "RLR": {},
    "RLR_thr7_lr05": {"threshold": 7.0, "server_learning_rate": 0.5},
}


def frozen_statistics(arrays: Arrays, layout: Layout, tag: str) -> Aggregator:
    """RSA with the server's batch statistics kept, as the reference: weights of 0 average none."""
    del arrays, layout, tag
    rule = aggregators.make("rsa", variant="reference")

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        params, verdict, state = rule.aggregate(upload, state, key)
        return params, verdict._replace(weights=jnp.zeros_like(verdict.weights)), state

    return rule._replace(aggregate=aggregate)


CRFL_OPTIONS: dict[str, dict[str, Any]] = {
    "CRFL": {},
    "CRFL_clip1": {"norm_cap": 1.0},
    "CRFL_clip1_lastround": {"norm_cap": 1.0},
    "CRFL_scale2_lastround": {"scale": 2.0},
}


def crfl_rule(arrays: Arrays, layout: Layout, tag: str) -> Aggregator:
    """CRFL with the noise that the reference added, where it was recorded; elsewhere it is the last round's, none."""

    def draw(key: PRNGKey, params: Params) -> Params:
        del key
        if f"{tag}__noise" not in arrays:
            return jax.tree.map(jnp.zeros_like, params)
        state = np.zeros(len(layout.counters), np.float32)
        state[np.repeat(layout.trainable, layout.sizes)] = arrays[f"{tag}__noise"]
        # The rule multiplies by the standard deviation.
        return jax.tree.map(lambda x: x / 1e-4, split(state, layout)[0])

    return guarded(crfl.with_draw(draw, variant="reference", rounds=ROUNDS, **CRFL_OPTIONS[tag]))


def crfl_round(arrays: Arrays, layout: Layout, tag: str, upload: Upload) -> Upload:
    """The round index of the tag: the first where noise was recorded, else the last."""
    del layout
    return upload._replace(round=jnp.int32(0 if f"{tag}__noise" in arrays else ROUNDS - 1))


TAGS: dict[str, Tag] = {
    **{tag: Tag("dnc", rule=dnc_rule, prepare=whole_state, skip=dnc_skip) for tag in ATTACKER_RATE},
    **{tag: Tag("rlr", rule=own_weights) for tag in RLR_OPTIONS},
    "RSA": Tag("rsa", weights=False, rule=frozen_statistics),
    **{tag: Tag("crfl", rule=crfl_rule, prepare=crfl_round) for tag in CRFL_OPTIONS},
    "FoolsGold": Tag("foolsgold", {"variant": "reference"}, second_round=True),
}
