"""A FLIP client's round: searches and steps of training, all searches first or batch by batch."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_spmc import lanes
from fedjax_spmc.flip import parallel, sequential
from fedjax_spmc.flip.inversion import Triggers
from fedjax_spmc.flip.memory import Memory
from fedjax_spmc.flip.options import Options
from fedjax_spmc.flip.searching import find_one, own_of, pixels_of
from fedjax_spmc.keys import name_key, purpose_key
from fedjax_spmc.training import Carry, Hooks, step_of_sgd
from fedjax_spmc.types import Array, Batch, ClientData, Context, LocalRule, PRNGKey, Variables


def in_parallel(
    options: Options,
    rule: LocalRule,
    ctx: Context,
    variables: Variables,
    memory: Memory,
    data: ClientData,
    steps: Array,
    key: PRNGKey,
    hooks: Hooks,
) -> tuple[Carry, Memory, Array]:
    """All searches, then all steps: (the training's carry, the memory, how many steps trained)."""
    own_key = name_key(key, "flip")
    own = own_of(ctx, data, purpose_key(key, "take"))
    search_key, stamp_key = (jax.random.fold_in(own_key, i) for i in range(2))
    memory, prepared = parallel.search_all(options, ctx, variables, memory, own, steps > 0, search_key)
    pixels, shape = pixels_of(ctx), ctx.model.input.shape

    def body(step: Array, carry: Any) -> Any:
        training, trained = carry
        batch = data.gather(step, purpose_key(key, "poison", step))
        stamps = jax.random.uniform(jax.random.fold_in(stamp_key, step), (2, len(batch.labels)))
        raw = batch._replace(inputs=pixels.of(batch.inputs))
        made, wanted = parallel.harden_batch(options, shape, prepared, raw, step, stamps)
        made = made._replace(inputs=pixels.back(made.inputs))
        return _stepped(rule, ctx, variables, data, key, hooks, made, wanted, step, training), trained + wanted

    start = step_of_sgd(rule, ctx, variables, (), data, key, hooks)[1]
    training, trained = lanes.loop(steps, body, (start, jnp.int32(0)))
    return training, memory, trained


def one_after_another(
    options: Options,
    rule: LocalRule,
    ctx: Context,
    variables: Variables,
    memory: Memory,
    data: ClientData,
    steps: Array,
    key: PRNGKey,
    hooks: Hooks,
) -> tuple[Carry, Memory, Array]:
    """The code's schedule: the same as `in_parallel` gives."""
    own_key = name_key(key, "flip")
    own = own_of(ctx, data, purpose_key(key, "take"))
    draw_key, search_key = (jax.random.fold_in(own_key, i) for i in range(2))
    pixels, shape, classes = pixels_of(ctx), ctx.model.input.shape, ctx.model.num_classes
    first_visit, mine = ~memory.visited, own.counts > 0

    def body(step: Array, carry: Any) -> Any:
        training, client, trained = carry
        now = Variables(training[0], training[1])
        batch = data.gather(step, purpose_key(key, "poison", step))
        raw = batch._replace(inputs=pixels.of(batch.inputs))
        draws = sequential.draws_of(jax.random.fold_in(draw_key, step), classes, len(batch.labels))

        def find(search: sequential.Search, batch: Batch) -> Triggers:
            return find_one(options, ctx, now, own, jax.random.fold_in(search_key, step), search, batch)

        client, made, event = sequential.one_batch(options, shape, first_visit, mine, client, raw, step, draws, find)
        made = made._replace(inputs=pixels.back(made.inputs))
        wanted = event.trained
        return _stepped(rule, ctx, variables, data, key, hooks, made, wanted, step, training), client, trained + wanted

    start = step_of_sgd(rule, ctx, variables, (), data, key, hooks)[1]
    client = sequential.start(memory, shape)
    training, client, trained = lanes.loop(steps, body, (start, client, jnp.int32(0)))
    return training, client.memory, trained


def _stepped(
    rule: LocalRule,
    ctx: Context,
    variables: Variables,
    data: ClientData,
    key: PRNGKey,
    hooks: Hooks,
    batch: Batch,
    wanted: Array,
    step: Array,
    training: Carry,
) -> Carry:
    """One step of training on a batch, where it is wanted."""
    only = data._replace(gather=lambda step, key: batch)
    once = step_of_sgd(rule, ctx, variables, (), only, key, hooks)[0]
    return jax.lax.cond(wanted, lambda carry: once(step, carry), lambda carry: carry, training)
