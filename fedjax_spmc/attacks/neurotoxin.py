"""Neurotoxin: the attacker moves only coordinates that benign training moves least, so that the backdoor lasts.

Beside any poisoning of data: `attack.name=(badnets,neurotoxin)`. The mask is made once in each attack round, before
local training, of a gradient G that stands for benign training; True = may change = small in G.

Source: Zhang, Panda, Song, Yang, Mahoney, Gonzalez, Ramchandran, Mittal, "Neurotoxin: Durable Backdoors in Federated
    Learning", ICML 2022, Algorithm 1, and its published code.
Knows: the models that the server broadcasts; with `mask_data=pool` other clients' data; with `subtract_own` the
    server's rule.
Controls: its own gradients and weights in local training.
Cost: for prev_update about fifty counting passes over a model, O(D) each, once a round. For clean_grad an epoch of
    gradients on all clients that it reads. With `subtract_own` two aggregations more.
Deviations: the paper's text speaks of the top k % coordinates of the benign gradient that the attacker observes;
    prev_update takes it from the last aggregated update. The code reads other clients' data: clean_grad. It masks
    gradients before weight decay is added, so that masked coordinates still decay: `strict=False`. There the pool is
    drawn among all but the attacker, here among benign clients. While it makes the mask the code moves the batch
    statistics of the global model; here they stay. Which of several equal magnitudes are kept is not said there: here
    the first in order.
"""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks._masks import masks
from fedjax_spmc.attacks._pool import clean_gradient, draw_pool
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.options import FRACTION, TRACED, Range, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Params, PRNGKey, Upload


class NeurotoxinState(NamedTuple):
    """What the attack keeps.

    Attributes:
        mask: bool, like the parameters: what may change in this round; True everywhere before the first attack round.
        pool: [P] int32, ids of the clients whose data are read; [0] where none are.
        share: like the parameters, what of the update of round `sent` was the attackers' own; () without
            `subtract_own`.
        sent: int32 scalar, the last round in which they sent anything; -1 = none.
    """

    mask: Any
    pool: Array
    share: Any
    sent: Array


@attacks.register("neurotoxin")
def neurotoxin(
    source: Literal["prev_update", "clean_grad"] = "prev_update",
    ratio: Annotated[float, FRACTION, TRACED] = 0.95,
    scope: Literal["global", "per_tensor"] = "global",
    strict: bool = True,
    subtract_own: bool = False,
    mask_data: Literal["pool", "own"] = "pool",
    mask_pool: Annotated[int, Range(1, 10**6)] = 30,
    mask_drawn: Annotated[int, Range(1, 10**6)] | None = None,
) -> Attack:
    """Masks the attackers' gradients: of n coordinates int(n ratio) may change, those smallest in |G|.

    Where G is zero everywhere there is nothing to go by, and nothing is masked: for prev_update that is round 0, also
    behind a `model.start`, and a round behind a failed one. NaN counts as the largest magnitude, zeros as the smallest;
    of equal ones the first in the order of the parameters may change. Batch statistics are never masked.

    Args:
        source: what G is. "prev_update" (the paper) is the broadcast model minus that of the round before;
            "clean_grad" (the code) the sum of the gradients of an epoch of clean batches at the broadcast model, each
            that of a batch's mean cross entropy.
        ratio: share of the coordinates that may change; 1 masks nothing. The number is int(n ratio) with the product of
            floats, cut off: 56 of 100 for 0.57.
        scope: "global" ranks all coordinates together, "per_tensor" those of each tensor apart: a tensor with a single
            number is then never changed.
        strict: whether masked coordinates stay as they were broadcast. False masks the gradient alone, so that weight
            decay moves them (the code).
        subtract_own: of prev_update: whether what the attackers sent in the round before is taken out of G. It is what
            the server's rule makes of their uploads beside clients that send the broadcast model back, minus what it
            makes of such clients alone, under the attackers' own key, times the server's learning rate: under a mean,
            with clipping to a given norm or without, the attackers' part of the update exactly. Uploads count as the
            parts of the list before this one left them. The others' uploads are not looked at.
        mask_data: of clean_grad: "pool" reads the clean data of clients drawn once for the run, benign ones first (the
            code), "own" those of the clients that attack in the round.
        mask_pool: clients in the pool; all where there are fewer.
        mask_drawn: how many of the pool are read in a round, drawn anew each time; None = all, in the pool's order.
    """
    if source == "prev_update":
        unused = {"mask_data": mask_data, "mask_pool": mask_pool, "mask_drawn": mask_drawn}
        refuse_unused(neurotoxin, "source = 'prev_update'", unused, "attack")
    else:
        refuse_unused(neurotoxin, "source = 'clean_grad'", {"subtract_own": subtract_own}, "attack")
        if mask_data == "own":
            unused = {"mask_pool": mask_pool, "mask_drawn": mask_drawn}
            refuse_unused(neurotoxin, "mask_data = 'own'", unused, "attack")
    reads_pool = source == "clean_grad" and mask_data == "pool"

    def init(ctx: AttackContext, key: PRNGKey) -> NeurotoxinState:
        params = ctx.variables.params
        return NeurotoxinState(
            mask=jax.tree.map(lambda x: jnp.ones(x.shape, bool), params),
            pool=draw_pool(ctx.roster, mask_pool, key) if reads_pool else jnp.zeros(1, jnp.int32),
            share=jax.tree.map(jnp.zeros_like, params) if subtract_own else (),
            sent=jnp.int32(-1),
        )

    def observed(ctx: AttackContext, own: NeurotoxinState, key: PRNGKey) -> tuple[Params, Array]:
        """G, and whether there is anything to go by."""
        if source == "prev_update":
            update = jax.tree.map(jnp.subtract, ctx.variables.params, ctx.previous.params)
            moved = _moves(update)
            if subtract_own:
                counts = (own.sent == ctx.round - 1).astype(jnp.float32)
                update = jax.tree.map(lambda u, mine: u - counts * mine, update, own.share)
            return update, moved
        if mask_data == "own":
            gradient = clean_gradient(ctx, ctx.client_ids, ctx.roster.attacks_now(ctx.client_ids), key)
        else:
            read = own.pool
            if mask_drawn is not None:
                read = jax.random.permutation(purpose_key(key, "sampling"), own.pool)[:mask_drawn]
            gradient = clean_gradient(ctx, read, jnp.ones(read.shape, bool), key)
        return gradient, _moves(gradient)

    def begin_round(ctx: AttackContext, own: NeurotoxinState, key: PRNGKey) -> NeurotoxinState:
        gradient, moved = observed(ctx, own, key)
        return own._replace(mask=jax.tree.map(lambda may: may | ~moved, masks(gradient, ratio, scope)))

    def mask_gradients(
        ctx: AttackContext, own: NeurotoxinState, grads: Params, params: Params, client_id: Array, step: Array
    ) -> Params:
        del ctx, params, client_id, step
        return jax.tree.map(lambda g, may: jnp.where(may, g, 0.0), grads, own.mask)

    def after_step(ctx: AttackContext, own: NeurotoxinState, params: Params, client_id: Array, step: Array) -> Params:
        del client_id, step
        return jax.tree.map(jnp.where, own.mask, params, ctx.variables.params)

    def craft(ctx: AttackContext, own: NeurotoxinState, upload: Upload, key: PRNGKey) -> tuple[Upload, NeurotoxinState]:
        del key
        idle = trees.broadcast(upload.global_params, len(upload.num_examples))
        alone = trees.where_rows(ctx.roster.attacks_now(ctx.client_ids), upload.client_params, idle)
        (with_us, _), (without, _) = (ctx.defend(upload._replace(client_params=rows)) for rows in (alone, idle))
        share = jax.tree.map(lambda a, b: ctx.server_learning_rate * (a - b), with_us, without)
        return upload, own._replace(share=share, sent=ctx.round)

    return Attack(
        init=init,
        begin_round=begin_round,
        mask_gradients=mask_gradients,
        after_step=after_step if strict else None,
        craft=craft if subtract_own else None,
    )


def _moves(tree: Params) -> Array:
    """bool scalar: some number of the tree is not 0."""
    return jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(tree)]).any()
