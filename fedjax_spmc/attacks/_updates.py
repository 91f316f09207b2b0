"""What attacks that craft uploads share: the updates that attackers know, their mean and spread, and the sending.

An update is an upload minus the broadcast model. Updates are [K, D] with a mask [K] of the rows that are known; of the
others nothing is read. Every function keeps the dtype of the updates.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.types import Array, AttackContext, Params, PRNGKey, State, Upload

Knowledge = Literal["benign", "own"]
"""benign: all uploads of the round but the attackers'; own: what the attacking clients themselves train on clean data.
"""


class Known(NamedTuple):
    """What the attackers of a round know.

    Attributes:
        updates: [K, D], the rows in `mask`; the others are 0.
        mask: [K] bool, b of them.
        attackers: int32 scalar f, how many of the round's uploads are the attackers'.
        pretended: int32 scalar, with how many crafted uploads they try out a server: f where they know the others, else
            max(1, floor(f / 3)) beside their own f, which are the published code's numbers for f of 4, 5, 8, 10, 12.
        models: stacked, the rows of `updates` as models.
        places: [K] bool, the rows in which crafted uploads are tried out on a server: the attackers' own, or, as many
            as pretended, those of others.
        present: [K] bool, the rows that such a server gets.
    """

    updates: Array
    mask: Array
    attackers: Array
    pretended: Array
    models: Params
    places: Array
    present: Array


Make = Callable[[AttackContext, State, Known, Upload, PRNGKey], tuple[Array, State]]
"""(ctx, own, known, upload, key) -> the updates that attackers send, [D] for all or [K, D], and the state."""


def crafting(knowledge: Knowledge, make: Make) -> Callable[..., tuple[Upload, State]]:
    """The `craft` slot of an attack that sends made-up updates; batch statistics and extras stay as they were trained.

    Where nothing is known, because no such upload is finite or takes part, uploads and state stay as they are.
    """

    def craft(ctx: AttackContext, own: State, upload: Upload, key: PRNGKey) -> tuple[Upload, State]:
        known = what_is_known(ctx, upload, knowledge)
        vectors, new = make(ctx, own, known, upload, key)
        some = known.mask.any()
        models = trees.where(some, models_of(upload, vectors), upload.client_params)
        return upload._replace(client_params=models), trees.where(some, new, own)

    return craft


def what_is_known(ctx: AttackContext, upload: Upload, knowledge: Knowledge) -> Known:
    """The updates that attackers know; rows that are absent or not finite are not among them."""
    attacking = ctx.roster.attacks_now(ctx.client_ids) & upload.participating
    attackers = attacking.sum(dtype=jnp.int32)
    if knowledge == "benign":
        models, pretended = upload.client_params, attackers
        mask = upload.participating & ~attacking & trees.finite_rows(upload.client_stats)
    else:
        models, mask, pretended = clean_models(ctx, upload, attacking), attacking, jnp.maximum(attackers // 3, 1)
    mask = mask & trees.finite_rows(models)
    updates = trees.ravel_clients(trees.zero_rows(mask, trees.subtract(models, upload.global_params)))
    places, present = attacking, upload.participating
    if knowledge == "own":
        places = ~attacking & (jnp.cumsum(~attacking) <= pretended)
        present = mask | places
    return Known(updates, mask, attackers, pretended, models, places, present)


def clean_models(ctx: AttackContext, upload: Upload, attacking: Array) -> Params:
    """Stacked models of which the attacking rows are what these clients train on their clean data.

    That is what they trained in this round where the attack leaves training alone, else one training each.
    """
    if ctx.trained_clean or ctx.benign is None:
        return upload.client_params
    order, benign = jnp.argsort(~attacking, stable=True), ctx.benign

    def train(place: Array, models: Params) -> Params:
        row = order[place]
        trained = benign(ctx.client_ids[row]).params
        return jax.tree.map(lambda rows, one: rows.at[row].set(one), models, trained)

    return jax.lax.fori_loop(0, attacking.sum(), train, upload.client_params)


def models_of(upload: Upload, updates: Array) -> Params:
    """Stacked models of updates: [K, D], or [D] for every client."""
    rows = jnp.broadcast_to(updates, (len(upload.participating), updates.shape[-1]))
    leaves, structure = jax.tree.flatten(upload.global_params)
    made, start = [], 0
    for leaf in leaves:
        piece = rows[:, start : start + leaf.size].reshape(len(rows), *leaf.shape)
        made.append((leaf[None] + piece).astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, made)


def mean_of(updates: Array, mask: Array) -> Array:
    """[D]: mean of the rows in `mask`; 0 where there is none."""
    return jnp.where(mask[:, None], updates, 0.0).sum(axis=0) / jnp.maximum(mask.sum(), 1).astype(updates.dtype)


def std_of(updates: Array, mask: Array) -> Array:
    """[D]: standard deviation over the b rows in `mask` with b - 1 in the denominator; 0 for a single row."""
    gaps = jnp.where(mask[:, None], updates - mean_of(updates, mask)[None], 0.0)
    return jnp.sqrt(jnp.square(gaps).sum(axis=0) / jnp.maximum(mask.sum() - 1, 1).astype(updates.dtype))


def squared_distances(updates: Array, mask: Array) -> Array:
    """[K, K]: squared distances between the rows, from one Gram matrix around the mean of those in `mask`."""
    centered = jnp.where(mask[:, None], updates - mean_of(updates, mask)[None], 0.0)
    gram = jnp.matmul(centered, centered.T, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.diagonal(gram)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - gram - gram.T, 0.0)
    return jnp.where(jnp.eye(len(mask), dtype=bool), 0.0, distances)
