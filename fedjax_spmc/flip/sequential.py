"""FLIP's schedule as its code has it: batch by batch a search against the model as it is by then, and a training step.

A client that takes part for the first time searches for a universal trigger of each class in turn, one for a batch.
Then, and in later rounds, it takes pairs of classes one after another, two batches each.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.flip.books import BOOKS, Begun, Turn, new_turn
from fedjax_spmc.flip.hardening import chosen, counts_of, hardened
from fedjax_spmc.flip.inversion import Triggers
from fedjax_spmc.flip.memory import Memory, PairDraws, next_pair, normalised, pair_draws
from fedjax_spmc.flip.options import Options
from fedjax_spmc.types import Array, Batch, PRNGKey

NOTHING, UNIVERSAL, BOTH_WAYS, ONE_WAY = range(4)
"""What a batch is used for."""
VISITS_OF_ONE = 10
"""Batches at the beginning of a later round that have a pair each."""


class Client(NamedTuple):
    """What a batch leaves: the memory, the pair in progress, universal searches so far (int32)."""

    memory: Memory
    turn: Turn
    universal: Array


class Draws(NamedTuple):
    """Of a batch: the pair, and [2, B] uniform numbers, the smallest of which say what is stamped."""

    pair: PairDraws
    stamps: Array


class Search(NamedTuple):
    """A search that a batch asks for.

    Attributes:
        kind: `UNIVERSAL`, `BOTH_WAYS` or `ONE_WAY`; `NOTHING` = none.
        source, target: int32.
        begun: two triggers, of which one way and universal searches use the first.
        steps: int32.
        cost: float.
    """

    kind: Array
    source: Array
    target: Array
    begun: Begun
    steps: Array
    cost: Array


class Event(NamedTuple):
    """What a batch was used for, as the code's own records have it.

    Attributes:
        search: see there.
        first, second: [B] bool, the rows stamped with either trigger.
        oversized: bool, whether a trigger was too large.
        trained: bool, whether the model takes a step.
    """

    search: Search
    first: Array
    second: Array
    oversized: Array
    trained: Array


Find = Callable[[Search, Batch], Triggers]
"""The two triggers that a search finds; zeros where it finds none."""


def draws_of(key: PRNGKey, classes: int, rows: int) -> Draws:
    """Of one batch, from a key."""
    of_pair, of_stamps = jax.random.split(key)
    return Draws(pair_draws(of_pair, classes), jax.random.uniform(of_stamps, (2, rows)))


def start(memory: Memory, shape: tuple[int, ...]) -> Client:
    """A client before the first batch of a round."""
    return Client(memory, new_turn(shape), jnp.int32(0))


def one_batch(
    options: Options,
    shape: tuple[int, ...],
    first_visit: Array,
    mine: Array,
    client: Client,
    batch: Batch,
    step: Array,
    draws: Draws,
    find: Find,
) -> tuple[Client, Batch, Event]:
    """Uses one batch.

    Args:
        options: static settings.
        shape: (H, W, C) of an input.
        first_visit: bool scalar, whether the client takes part for the first time.
        mine: [C] bool, classes of which the client has examples.
        client: before.
        batch: clean.
        step: int32 scalar, from 0 in a round.
        draws: of this batch.
        find: the search.

    Returns:
        the client behind it, the batch to train on, what it was used for.
    """
    classes, rows = len(mine), len(batch.labels)
    books, limit = BOOKS[options.pair_key](shape[-1]), options.limit(shape)
    counts = counts_of(batch, classes)
    present = counts > options.more_than
    universal = first_visit & (step < classes) & present.any()
    warming = first_visit & (step < classes)

    memory = client.memory._replace(
        gain=jnp.where(first_visit & (step == classes), normalised(client.memory.gain), client.memory.gain)
    )
    singly = ~first_visit & (step < VISITS_OF_ONE)
    begins = present.any() & ~warming & (singly | (step % options.visits == 0))
    pair = next_pair(memory, present, client.turn.previous, draws.pair, options.random_pair)
    turn = trees.where(begins, new_turn(shape, pair, pair[0]), client.turn)
    source, target = jnp.maximum(turn.source, 0), jnp.maximum(turn.target, 0)
    usable = present.any() & ~warming & (turn.source >= 0) & present[source]
    both = usable & present[target]
    kind = jnp.where(universal, UNIVERSAL, jnp.where(both, BOTH_WAYS, jnp.where(usable, ONE_WAY, NOTHING)))

    # Which rows are stamped, and with which trigger.
    of_target = jnp.where(universal, client.universal, target)
    eligible = batch.valid & jnp.where(universal, batch.labels != of_target, batch.labels == source)
    total = eligible.sum(dtype=jnp.int32)
    count = options.stamped_of(jnp.where(both, jnp.minimum(total, counts[target]), total), rows)
    first = chosen(eligible, draws.stamps[0], count) & (kind != NOTHING)
    second = chosen(batch.valid & (batch.labels == target), draws.stamps[1], count) & both

    last_failed = turn.failed.any() | (turn.visit == 0)
    shorter = jnp.where(turn.failed_one_way, options.pair_steps // 2, options.short_steps)
    full = (turn.visit == 0) | (not options.shorten_one_way)
    one_way_steps = jnp.where(full, options.pair_steps, shorter)
    one_way_long = full | turn.failed_one_way
    steps = jnp.select(
        [kind == UNIVERSAL, kind == BOTH_WAYS],
        [options.universal_steps, jnp.where(last_failed, options.pair_steps, options.short_steps)],
        one_way_steps,
    )
    long = jnp.select([kind == UNIVERSAL, kind == BOTH_WAYS], [jnp.ones((), bool), last_failed], one_way_long)
    begun = jax.tree.map(
        lambda a, b, c: jnp.select([kind == UNIVERSAL, kind == BOTH_WAYS], [a, b], c),
        books.before_universal(memory, of_target),
        books.before_pair(memory, turn._replace(source=source, target=target)),
        books.before_one_way(memory, turn._replace(source=source, target=target)),
    )
    # Without a row to stamp there is nothing to search for; a pair still trains, one way does not.
    idle = (count == 0) & (kind != UNIVERSAL)
    search = Search(
        kind=jnp.where(idle, NOTHING, kind),
        source=jnp.where(universal, -1, source),
        target=of_target,
        begun=begun,
        steps=steps.astype(jnp.int32),
        cost=jnp.where(long, options.cost, options.cost_short),
    )
    found = find(search, batch)
    oversized = ((shape[-1] * found.sizes() > limit).any()) & (search.kind > UNIVERSAL)
    settle = (search.kind > UNIVERSAL) & ~oversized

    def after_universal() -> tuple[Memory, Turn, Triggers]:
        return books.after_universal(memory, mine, of_target, found), turn, found

    def after(kept: Callable[..., tuple[Memory, Turn, Triggers]]) -> tuple[Memory, Turn, Triggers]:
        return kept(memory, turn, begun, found)

    memory, turn, used = jax.lax.switch(
        jnp.where(settle | universal, search.kind, NOTHING),
        [
            lambda: (memory, turn, found),
            after_universal,
            lambda: after(books.after_pair),
            lambda: after(books.after_one_way),
        ],
    )
    failed = found.sizes() <= 0
    turn = turn._replace(
        failed=jnp.where(search.kind == BOTH_WAYS, failed, turn.failed),
        failed_one_way=jnp.where(search.kind == ONE_WAY, failed[0], turn.failed_one_way),
    )
    ends = settle & (singly | (turn.visit == options.visits - 1))
    memory = books.settled(memory, turn._replace(source=source, target=target), kind == BOTH_WAYS, ends)
    trained = (universal | settle | (idle & both)) & (kind != NOTHING)
    made = hardened(batch, first & trained, second & trained, used)
    if options.also_train_clean:
        trained = batch.valid.any()
    client = Client(
        memory._replace(visited=jnp.ones((), bool)),
        turn._replace(visit=turn.visit + 1),
        client.universal + universal.astype(jnp.int32),
    )
    return client, made, Event(search, first & trained, second & trained, oversized, trained)
