"""Mimic: all attackers send what one benign client sends, so that its data count too much.

Source: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022, the
    mimic attack, and its code; a fixed client is the form of the library byzfl 0.0.11.
Knows: the benign uploads of the round, or its own alone (`knowledge`).
Controls: its own upload.
Cost: O(K D); the state holds 2 D numbers. With `knowledge="own"` in a list that reaches into training, a second
    training of each attacking client.
Deviations: time is counted in rounds in which someone attacks. Where the client that is copied for good does not take
    part, the one is copied that the rule of the warm-up chooses. With "benign" knowledge batch statistics and extras
    are copied too.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks._search import unit
from fedjax_spmc.attacks._updates import Knowledge, Known, mean_of, what_is_known
from fedjax_spmc.options import TRACED, Range, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, State, Upload


class Followed(NamedTuple):
    """State of the attack.

    Attributes:
        time: int32 scalar, attack rounds so far.
        axis: [D], the direction in which the known updates vary most, as far as it is learned.
        mean: [D], running mean of their means.
        client: int32 scalar, the id of the client copied last; -1 before.
    """

    time: Array
    axis: Array
    mean: Array
    client: Array


@attacks.register("mimic")
def mimic(
    number: Annotated[int, Range(0, 10**6)] | None = None,
    warmup: Annotated[int, Range(1, 10**9), TRACED] = 1,
    pick: Literal["most", "least"] = "most",
    knowledge: Knowledge = "benign",
) -> Attack:
    """Uploads a copy of one upload that is known.

    In the first attack rounds the direction z in which the updates u_k vary most is learned by a power iteration on
    u_k - mu, mu being the running mean, and the client with the largest <u_k, z> is copied; then that one for ever.

    Args:
        number: always the known upload that stands at this place in the round, from 0 (the last one where there are
            fewer), in place of that choice (byzfl: 0); None = by that choice.
        warmup: attack rounds in which the choice is made anew.
        pick: "most" takes the largest <u_k, z>, "least" the smallest.
        knowledge: "benign": all uploads of the round but the attackers'; "own": what the attacking clients train on
            their clean data.
    """
    if number is not None:
        refuse_unused(mimic, "a number that is given", {"warmup": warmup, "pick": pick}, "attack")

    def init(ctx: AttackContext, key: PRNGKey) -> Followed:
        leaves = jax.tree.leaves(ctx.variables.params)
        size, kind = sum(leaf.size for leaf in leaves), jnp.result_type(*leaves)
        axis = jax.random.normal(key, (size,), kind)
        return Followed(jnp.int32(0), axis, jnp.zeros_like(axis), jnp.int32(-1))

    def craft(ctx: AttackContext, own: State, upload: Upload, key: PRNGKey) -> tuple[Upload, State]:
        del key
        known = what_is_known(ctx, upload, knowledge)
        if number is None:
            row, new = follow(own, known.updates, known.mask, ctx.client_ids, warmup, pick)
            own = trees.where(known.mask.any(), new, own)
        else:
            row = numbered(known, number)
        copied = {"client_params": known.models}
        if knowledge == "benign":
            copied |= {"client_stats": upload.client_stats, "extras": dict(upload.extras)}
        some, num_clients = known.mask.any(), len(known.mask)

        def copy(rows: Array, old: Array) -> Array:
            return jnp.where(some, jnp.broadcast_to(rows[row][None], (num_clients, *rows.shape[1:])), old)

        old = {
            "client_params": upload.client_params,
            "client_stats": upload.client_stats,
            "extras": dict(upload.extras),
        }
        return upload._replace(**{field: jax.tree.map(copy, rows, old[field]) for field, rows in copied.items()}), own

    return Attack(init=init if number is None else None, craft=craft)


def numbered(known: Known, number: int) -> Array:
    """The row of the known upload at place `number`, or of the last one."""
    place = jnp.minimum(number, known.mask.sum() - 1)
    return jnp.argmax(jnp.cumsum(known.mask) > place)


def follow(
    own: Followed,
    updates: Array,
    mask: Array,
    client_ids: Array,
    warmup: int | Array,
    pick: Literal["most", "least"],
) -> tuple[Array, Followed]:
    """The row that is copied in a round, and the state behind it.

    Args:
        own: before.
        updates: [K, D].
        mask: [K] bool, which rows are known.
        client_ids: [K].
        warmup, pick: see `mimic`.
    """
    time = own.time.astype(updates.dtype)
    mean = (time * own.mean + mean_of(updates, mask)) / (1 + time)
    gaps = jnp.where(mask[:, None], updates - mean[None], 0.0)
    turned = _product(_product(gaps, own.axis), gaps)
    turned = turned / unit(_length(turned))
    axis = (time * own.axis + turned) / (1 + time)
    axis = jnp.where(own.time == 0, turned, axis / unit(_length(axis)))
    warm = own.time < warmup
    axis, mean = jnp.where(warm, axis, own.axis), jnp.where(warm, mean, own.mean)

    likeness = _product(updates, axis) * (1 if pick == "most" else -1)
    chosen = jnp.argmax(jnp.where(mask, likeness, -jnp.inf))
    same = mask & (client_ids == own.client)
    row = jnp.where(warm | ~same.any(), chosen, jnp.argmax(same))
    client = jnp.where(warm, client_ids[row], own.client).astype(jnp.int32)
    return row, Followed(own.time + 1, axis, mean, client)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _length(vector: Array) -> Array:
    return trees.root(jnp.sum(vector * vector))
