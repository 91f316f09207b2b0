"""FLIP with all searches of a round at once, against the model that the client received; then it hardens.

The code searches batch by batch, each time against the model as it is by then; here a few large passes through the
network take the place of many small ones that wait for each other.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.flip.books import Begun, Ordered
from fedjax_spmc.flip.hardening import chosen, counts_of, hardened
from fedjax_spmc.flip.inversion import Samples, Triggers, draws_of, invert
from fedjax_spmc.flip.memory import Memory, keep_all, next_pair, normalised, pair_draws, rated, recall
from fedjax_spmc.flip.options import Options
from fedjax_spmc.flip.searching import Own, begun_or_random, noise, predictor, universal_samples
from fedjax_spmc.types import Array, Batch, Context, PRNGKey, Variables


class Prepared(NamedTuple):
    """What a client hardens with in a round.

    Attributes:
        first_visit: bool scalar.
        universal: [C] triggers, read in a first visit alone.
        source, target: [P] int32, the pairs; -1 = none, behind all others.
        pairs: [2 P] triggers, from source to target and back, pair after pair.
    """

    first_visit: Array
    universal: Triggers
    source: Array
    target: Array
    pairs: Triggers


def search_all(
    options: Options, ctx: Context, variables: Variables, memory: Memory, own: Own, active: Array, key: PRNGKey
) -> tuple[Memory, Prepared]:
    """All searches of a client in a round.

    Args:
        options: static settings.
        ctx, variables: the network, and the model that was received.
        memory: before the round.
        own: the client's examples.
        active: bool scalar; a client without a batch searches for nothing.
        key: of this client in this round.
    """
    shape, classes = ctx.model.input.shape, ctx.model.num_classes
    of_universal, of_pairs, of_samples, of_search, of_model = (jax.random.fold_in(key, i) for i in range(5))
    predict = predictor(ctx, variables, of_model)
    first_visit, present, mine = ~memory.visited, own.counts > options.more_than, own.counts > 0
    every = jnp.arange(classes, dtype=jnp.int32)

    def all_universal() -> Triggers:
        if options.triggers != "inverted":
            return noise(options, of_universal, classes, shape)
        of_start, of_jitter = (jax.random.fold_in(of_universal, i) for i in range(2))
        nowhere = Begun(
            Triggers(jnp.zeros((classes, *shape[:2])), jnp.zeros((classes, *shape))), jnp.zeros(classes, bool)
        )
        start = begun_or_random(options, of_start, nowhere, shape, "single")
        return invert(
            predict,
            universal_samples(options, own, every),
            start,
            draws_of(of_jitter, start, options.jitter),
            jnp.where(active, options.universal_steps, 0),
            options.cost,
            options.search(),
        )

    nothing = Triggers(jnp.zeros((classes, *shape[:2])), jnp.zeros((classes, *shape)))
    universal = jax.lax.cond(first_visit & active, all_universal, lambda: nothing)

    def after_universal() -> Memory:
        def one(target: Array, memory: Memory) -> Memory:
            found = jax.tree.map(lambda x: x[target][None], universal)
            return Ordered(shape[-1]).after_universal(memory, mine, target, found)

        known = jax.lax.fori_loop(0, classes, one, memory)
        return known._replace(gain=normalised(known.gain))

    memory = jax.lax.cond(first_visit & active, after_universal, lambda: memory)
    source, target = choose_pairs(options, memory, present, of_pairs)
    ways = jnp.stack([source, target], axis=1).ravel(), jnp.stack([target, source], axis=1).ravel()
    begun = Begun(*jax.vmap(lambda s, t: recall(memory, jnp.maximum(s, 0), jnp.maximum(t, 0)))(*ways))
    begun = begun._replace(known=begun.known & (ways[0] >= 0))
    searched = active & (ways[0] >= 0) & present[jnp.maximum(ways[0], 0)]
    count = len(ways[0])
    if options.triggers == "inverted":
        start = begun_or_random(options, jax.random.fold_in(of_search, 0), begun, shape, "pair")
        samples = pair_samples(options, own, *ways, of_samples)
        one_way = ~present[jnp.maximum(ways[1], 0)]
        found = invert(
            predict,
            samples,
            start,
            draws_of(jax.random.fold_in(of_search, 1), start, options.jitter),
            jnp.where(searched, options.pair_steps, 0),
            options.cost,
            options.search(),
            one_way,
        )
    else:
        found = noise(options, of_search, count, shape)
    worked = searched & (found.sizes() > 0)
    memory = keep_all(memory, jnp.maximum(ways[0], 0), jnp.maximum(ways[1], 0), found, worked)
    used = trees.where_rows(worked, found, trees.zero_rows(begun.known & searched, begun.triggers))
    sizes = used.sizes()

    def rate(i: Array, memory: Memory) -> Memory:
        return rated(memory, jnp.maximum(ways[0][i], 0), jnp.maximum(ways[1][i], 0), sizes[i], searched[i])

    memory = jax.lax.fori_loop(0, count, rate, memory)
    memory = memory._replace(visited=memory.visited | active)
    return memory, Prepared(first_visit, universal, source, target, used)


def choose_pairs(options: Options, memory: Memory, present: Array, key: PRNGKey) -> tuple[Array, Array]:
    """The pairs of a round, [P] sources and [P] targets: as the code chooses one after another, each once."""
    classes = len(present)

    def one(carry: tuple[Memory, Array], i: Array) -> tuple[tuple[Memory, Array], tuple[Array, Array]]:
        memory, previous = carry
        draws = pair_draws(jax.random.fold_in(key, i), classes)
        source, target = next_pair(memory, present, previous, draws, options.random_pair)
        s, t = jnp.maximum(source, 0), jnp.maximum(target, 0)
        gain = jnp.where(source < 0, memory.gain, memory.gain.at[s, t].set(-jnp.inf).at[t, s].set(-jnp.inf))
        taken = memory.gain[s, t] == -jnp.inf
        source, target = jnp.where(taken, -1, source), jnp.where(taken, -1, target)
        return (memory._replace(gain=gain), source), (source, target)

    known = memory._replace(gain=jnp.where(jnp.isinf(memory.gain), jnp.finfo(jnp.float32).min, memory.gain))
    _, (source, target) = jax.lax.scan(one, (known, jnp.int32(-1)), jnp.arange(options.pairs))
    first = jnp.argsort(source < 0, stable=True)
    return source[first], target[first]


def pair_samples(options: Options, own: Own, sources: Array, targets: Array, key: PRNGKey) -> Samples:
    """A few examples of the source of each way, drawn anew in each round."""
    count = len(sources)
    keys = jax.random.split(key, count)

    def some(source: Array, key: PRNGKey) -> tuple[Array, Array]:
        positions, there = own.some_of(source, options.pair_samples, jax.random.uniform(key, own.labels.shape))
        return positions, there & (source >= 0)

    positions, there = jax.vmap(some)(sources, keys)
    share = there[:, :, None] * jnp.eye(count)[:, None]
    return Samples(
        inputs=own.inputs_at(positions.ravel()),
        wanted=jnp.repeat(jnp.maximum(targets, 0), positions.shape[1]),
        share=share.reshape(-1, count),
    )


def harden_batch(
    options: Options, shape: tuple[int, ...], prepared: Prepared, batch: Batch, step: Array, stamps: Array
) -> tuple[Batch, Array]:
    """The batch that a step trains on, and whether it does.

    Args:
        options: static settings.
        shape: (H, W, C).
        prepared: the round's triggers.
        batch: pixels in [0, 1].
        step: int32 scalar, from 0 in a round.
        stamps: [2, B] uniform numbers, the smallest of which say what is stamped.
    """
    classes, rows = len(prepared.universal.masks), len(batch.labels)
    counts = counts_of(batch, classes)
    present = counts > options.more_than
    universal = prepared.first_visit & (step < classes)
    behind = step - jnp.where(prepared.first_visit, classes, 0)
    pairs = (prepared.source >= 0).sum(dtype=jnp.int32)
    turn = (jnp.maximum(behind, 0) // options.visits) % jnp.maximum(pairs, 1)
    source, target = jnp.maximum(prepared.source[turn], 0), jnp.maximum(prepared.target[turn], 0)
    usable = ~universal & (pairs > 0) & present[source]
    both = usable & present[target]

    triggers = jax.tree.map(
        lambda one, two: jnp.where(
            universal,
            jnp.stack([one[jnp.minimum(step, classes - 1)]] * 2),
            jnp.stack([two[2 * turn], two[2 * turn + 1]]),
        ),
        prepared.universal,
        prepared.pairs,
    )
    eligible = batch.valid & jnp.where(universal, batch.labels != step, batch.labels == source)
    total = eligible.sum(dtype=jnp.int32)
    count = options.stamped_of(jnp.where(both, jnp.minimum(total, counts[target]), total), rows)
    used = (universal & present.any()) | usable
    too_large = shape[-1] * triggers.sizes() > options.limit(shape)
    oversized = ~universal & (too_large[0] | (both & too_large[1]))
    trained = used & ~oversized & ((count > 0) | both | universal)
    first = chosen(eligible, stamps[0], count) & trained
    second = chosen(batch.valid & (batch.labels == target), stamps[1], count) & both & trained
    made = hardened(batch, first, second, triggers)
    return made, batch.valid.any() if options.also_train_clean else trained
