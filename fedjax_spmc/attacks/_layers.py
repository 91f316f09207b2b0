"""Backdoor-critical layers: which tensors carry a backdoor, and uploads that take these alone from a poisoned model.

A layer is one tensor of the parameters; weights and biases stand apart, batch statistics are none. Lists of layers are
prefixes of one order: they are given by their length.

Source: Zhuang, Yu, Wang, Hua, Zhang, Yuan, "Backdoor Federated Learning by Poisoning Backdoor-Critical Layers", ICLR
2024, section 4, and its published code.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._distances import cosine_distances
from fedjax_spmc.attacks import _trial
from fedjax_spmc.attacks._updates import squared_distances
from fedjax_spmc.clustering.hdbscan import hdbscan
from fedjax_spmc.types import Array, Params, Variables

Tested = Callable[[Variables], Array]
"""model -> its success with the trigger, in percent."""
Accepted = Callable[[Variables], Array]
"""crafted model -> whether the server would take it: bool scalar."""
Shrink = Literal["reference", "accepted", "grow"]
Defence = Literal["krum", "multi_krum", "flame"]


def with_layers(model: Params, other: Params, chosen: Array) -> Params:
    """`model` with the layers of `other` where `chosen` [L] holds."""
    leaves, structure = jax.tree.flatten(model)
    pairs = zip(leaves, jax.tree.leaves(other), strict=True)
    return jax.tree.unflatten(structure, [jnp.where(chosen[i], b, a) for i, (a, b) in enumerate(pairs)])


def changes(tested: Tested, malicious: Variables, benign: Variables) -> tuple[Array, Array]:
    """Forward substitution: [L], by how many percent points the success of the malicious model rises when one layer is
    the benign model's; and that success."""
    number = len(jax.tree.leaves(malicious.params))

    def without(layer: Array) -> Array:
        """Without this layer; with a number that no layer has, of the whole model."""
        one = jnp.arange(number) == layer
        return tested(malicious._replace(params=with_layers(malicious.params, benign.params, one)))

    successes = jax.lax.map(without, jnp.arange(number + 1))  # the network is compiled once
    return successes[:-1] - successes[-1], successes[-1]


def ranks_of(change: Array) -> Array:
    """[L] int32: 0 for the layer whose loss costs most; of equal ones the first in order comes first."""
    return jnp.argsort(jnp.argsort(change, stable=True), stable=True).astype(jnp.int32)


def enough(tested: Tested, ranks: Array, malicious: Variables, benign: Variables, wanted: Array) -> Array:
    """Backward substitution: the length of the shortest list with which the benign model's success is `wanted` percent.

    All layers where none reaches it; 0 where nothing is wanted. Batch statistics are the benign model's.
    """

    def goes_on(state: tuple[Array, Array]) -> Array:
        length, success = state
        return (success < wanted) & (length < len(ranks))

    def longer(state: tuple[Array, Array]) -> tuple[Array, Array]:
        length = state[0] + 1
        return length, tested(benign._replace(params=with_layers(benign.params, malicious.params, ranks < length)))

    return jax.lax.while_loop(goes_on, longer, (jnp.int32(0), jnp.float32(0)))[0]


def crafted(
    broadcast: Params, malicious: Params, center: Variables, chosen: Array, scale: Array | float, flip: bool = False
) -> Variables:
    """The center with w + scale (m - w) + max(0, 1 - scale) (c - w) in the chosen layers, w being the broadcast model.

    With `flip` it is 2 w - m in these layers.
    """

    def layer(w: Array, m: Array, c: Array) -> Array:
        if flip:
            return 2 * w - m
        return w + scale * (m - w) + jnp.maximum(0.0, 1.0 - scale) * (c - w)

    return center._replace(
        params=with_layers(center.params, jax.tree.map(layer, broadcast, malicious, center.params), chosen)
    )


def shrunk(accepted: Callable[[Array], Array], length: Array, layers: int, how: Shrink) -> Array:
    """The length of the list that is sent.

    Args:
        accepted: length -> whether the server would take the upload with this list.
        length: of the list that is enough for the backdoor. With 0, as with "grow", the longest list is sent up to
            which all are accepted; it may be empty.
        layers: L.
        how: else lists are shortened until one is accepted: "accepted" sends that one, "reference" the one that was
            tried before it (the code), which is the same where the first is accepted. A single layer where none is.
    """
    growing = (length == 0) | (how == "grow")

    def goes_on(state: tuple[Array, Array]) -> Array:
        tried, ends = state
        return ~ends & (tried > 0) & (tried <= layers)

    def try_next(state: tuple[Array, Array]) -> tuple[Array, Array]:
        tried, _ = state
        taken = accepted(tried)
        ends = taken != growing
        return tried + jnp.where(ends, 0, jnp.where(growing, 1, -1)), ends

    end, _ = jax.lax.while_loop(goes_on, try_next, (jnp.where(growing, 1, length), jnp.zeros((), bool)))
    shorter = jnp.minimum(end + 1, length) if how == "reference" else end
    return jnp.where(growing, end - 1, jnp.maximum(shorter, 1))


def searched_scale(accepted: Callable[[Array], Array], trials: int = 20) -> Array:
    """The scale that the code's search ends with: from 1 doubled while accepted, then halfway between the last accepted
    and the last refused; 1 where nothing was accepted."""

    def try_out(_: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        scale, lower, upper = state
        taken = accepted(scale)
        lower, upper = jnp.where(taken, scale, lower), jnp.where(taken, upper, scale)
        return jnp.where(upper == 0, 2 * scale, (lower + upper) / 2), lower, upper

    scale, lower, _ = jax.lax.fori_loop(0, trials, try_out, (jnp.float32(1), jnp.float32(0), jnp.float32(0)))
    return jnp.where(lower == 0, 1.0, scale)


def taken_by(
    defence: Defence, models: Variables, mask: Array, broadcast: Params, copies: Array | int, assumed: int
) -> Accepted:
    """Whether a server takes one of the copies of a crafted model that stand beside other models.

    Args:
        defence: "krum", "multi_krum" (by squared distances over parameters and batch statistics) or "flame" (by cosine
            distances of the parameters, as the aggregator has it by default).
        models: stacked [K, ...], the others.
        mask: [K] bool, which of them are there.
        broadcast: the model that was broadcast.
        copies: how many of the crafted one; at most one more than rows that are not there.
        assumed: f of Krum; lowered to (n - 3) / 2 where fewer than 2 f + 3 models are there.
    """
    points = trees.ravel_clients(tuple(trees.zero_rows(mask, models)))
    count = mask.sum(dtype=jnp.int32) + copies
    attackers = jnp.minimum(assumed, jnp.maximum((count - 3) // 2, 0))
    pairs = squared_distances(points, mask)

    def by_krum(model: Variables) -> Array:
        vector = trees.ravel_clients(jax.tree.map(lambda x: x[None], tuple(model)))
        seen = _trial.crowd(pairs, mask, jnp.square(points - vector).sum(axis=1), copies, 1)
        takes = _trial.krum_takes_a_copy if defence == "krum" else _trial.multi_krum_takes_a_copy
        return takes(seen, attackers)

    def by_flame(model: Variables) -> Array:
        others = jnp.pad(trees.ravel_clients(models.params), ((0, 1), (0, 0)))
        there = jnp.pad(mask, (0, 1))
        are_copies = ~there & (jnp.cumsum(~there) <= copies)
        vector, start = (trees.ravel_clients(jax.tree.map(lambda x: x[None], x)) for x in (model.params, broadcast))
        present = there | are_copies
        rows = jnp.where(are_copies[:, None], vector, jnp.where(there[:, None], others, 0.0))
        labels = hdbscan(
            cosine_distances(rows, start[0], present), present, present.sum() // 2 + 1, allow_single_cluster=True
        )
        return (are_copies & (labels >= 0)).any()

    return by_flame if defence == "flame" else by_krum
