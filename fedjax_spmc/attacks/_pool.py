"""Clients whose data an attacker reads, as the codes of some attacks do, and gradients on clean data."""

import jax
import jax.numpy as jnp

from fedjax_spmc.keys import purpose_key
from fedjax_spmc.losses import cross_entropy
from fedjax_spmc.types import Array, AttackContext, Params, PRNGKey, Roster


def draw_pool(roster: Roster, size: int, key: PRNGKey) -> Array:
    """[P] int32: ids of `size` clients, all where there are fewer; malicious ones only where benign are too few."""
    num_clients = roster.malicious.shape[0]
    drawn = jax.random.permutation(key, num_clients).astype(jnp.int32)
    return drawn[jnp.argsort(roster.malicious[drawn], stable=True)][:size]


def clean_gradient(ctx: AttackContext, client_ids: Array, counted: Array, key: PRNGKey) -> Params:
    """The sum over clients and over the batches of an epoch of the gradients of the mean cross entropy.

    Taken at the broadcast model, in training mode, whose batch statistics are thrown away.

    Args:
        ctx: of a round.
        client_ids: [n] int32, added up in this order.
        counted: [n] bool, which of them count.
        key: for networks that draw random numbers.
    """
    params, stats = ctx.variables

    def loss(params: Params, data_of: Array, step: Array) -> Array:
        batch = ctx.clean_data(data_of).gather(step, key)
        step_key = purpose_key(key, "step", data_of, step)
        logits, _ = ctx.model.apply(params, stats, batch.inputs, True, step_key, batch.valid)
        return cross_entropy(logits, batch.labels, batch.valid)

    def add_client(total: Params, row: tuple[Array, Array]) -> tuple[Params, None]:
        client_id, counts = row

        def add_batch(step: Array, total: Params) -> Params:
            return jax.tree.map(jnp.add, total, jax.grad(loss)(params, client_id, step))

        batches = jnp.where(counts, ctx.clean_data(client_id).num_batches, 0)
        return jax.lax.fori_loop(0, batches, add_batch, total), None

    return jax.lax.scan(add_client, jax.tree.map(jnp.zeros_like, params), (client_ids, counted))[0]
