"""What a FLIP client keeps from round to round: scores and sizes of all ordered pairs of classes, and triggers."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.flip.inversion import Triggers
from fedjax_spmc.flip.options import Options
from fedjax_spmc.store import Store
from fedjax_spmc.types import Array


class Memory(NamedTuple):
    """Of one client; [source, target] where there are two classes.

    Attributes:
        visited: bool scalar, whether the client has taken part before.
        warm: [C, C] the size of the last trigger of a pair, 0 = none yet.
        gain: [C, C] by what share sizes have changed lately: pairs that changed most are searched first. -inf = never.
        has: [S] bool, where a trigger is kept; S is C * C, C (of the targets) or 0, see `place`.
        triggers: [S] of them.
    """

    visited: Array
    warm: Array
    gain: Array
    has: Array
    triggers: Triggers


def empty(classes: int, shape: tuple[int, ...], options: Options) -> Memory:
    """Before a client takes part for the first time.

    Args:
        classes: C.
        shape: (H, W, C) of an input.
        options: `storage` and `half`.
    """
    places = {"pairs": classes * classes, "targets": classes, "none": 0}[options.storage]
    dtype = jnp.float16 if options.half else jnp.float32
    return Memory(
        visited=jnp.zeros((), bool),
        warm=jnp.zeros((classes, classes)),
        gain=jnp.full((classes, classes), -jnp.inf),
        has=jnp.zeros(places, bool),
        triggers=Triggers(jnp.zeros((places, *shape[:2]), dtype), jnp.zeros((places, *shape), dtype)),
    )


def place(memory: Memory, source: Array, target: Array) -> Array:
    """Where the trigger of a pair is kept; with a place for each target alone the source does not matter."""
    classes = len(memory.warm)
    return target if len(memory.has) == classes else source * classes + target


def recall(memory: Memory, source: Array, target: Array) -> tuple[Triggers, Array]:
    """The trigger of a pair in float32, and whether there is one."""
    if not len(memory.has):
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], jnp.float32), memory.triggers)
        return nothing, jnp.zeros((), bool)
    at = place(memory, source, target)
    return jax.tree.map(lambda x: x[at].astype(jnp.float32), memory.triggers), memory.has[at]


def keep(memory: Memory, source: Array, target: Array, trigger: Triggers, when: Array) -> Memory:
    """Puts the trigger of a pair where `when` holds."""
    if not len(memory.has):
        return memory
    at = place(memory, source, target)
    triggers = jax.tree.map(
        lambda old, new: old.at[at].set(jnp.where(when, new.astype(old.dtype), old[at])), memory.triggers, trigger
    )
    return memory._replace(has=memory.has.at[at].set(memory.has[at] | when), triggers=triggers)


def keep_all(memory: Memory, sources: Array, targets: Array, triggers: Triggers, when: Array) -> Memory:
    """Puts many triggers [n], one after another."""

    def one(i: Array, memory: Memory) -> Memory:
        return keep(memory, sources[i], targets[i], jax.tree.map(lambda x: x[i], triggers), when[i])

    return jax.lax.fori_loop(0, len(sources), one, memory)


def rated(memory: Memory, source: Array, target: Array, size: Array, when: Array) -> Memory:
    """Scores of a pair whose trigger has this size now: the mean of the old gain and the share by which it changed.

    The first size of a pair gives no gain; a size of 0, no trigger, leaves the last one standing.
    """
    warm, gain = memory.warm[source, target], memory.gain[source, target]
    first = warm <= 0
    changed = jnp.where(first, 0.0, (gain + (size - warm) / jnp.where(first, 1.0, warm)) / 2)
    renewed = jnp.where(size > 0, size, warm)
    return memory._replace(
        warm=memory.warm.at[source, target].set(jnp.where(when, renewed, warm)),
        gain=memory.gain.at[source, target].set(jnp.where(when, changed, gain)),
    )


def normalised(gain: Array) -> Array:
    """Gains of the universal triggers, as shares of the largest; zeros stay zeros where all are."""
    return gain / jnp.maximum(gain.max(), jnp.finfo(jnp.float32).tiny)


def shown(clients: Memory | Store, malicious: np.ndarray) -> dict[str, np.ndarray]:
    """What one client keeps, for pictures: the benign one that has found triggers of the most pairs.

    Args:
        clients: stacked, of all N clients; or the rows of those that were ever drawn.
        malicious: [N] bool.

    Returns:
        client_id; warm [C, C], sizes of masks; where triggers are kept also has [C, C] or, with a place for each target
        alone, [C], masks and patterns of the same leading axes, float32. {} where no benign client has taken part.
    """
    if isinstance(clients, Store):
        best, most = None, -1
        for one in clients.ids:  # one at a time: together they may not fit into memory
            row = clients.take(np.array([one]))
            if row.visited[0] and not malicious[one] and (row.warm > 0).sum() > most:
                best, most = one, (row.warm > 0).sum()
        if best is None:
            return {}
        return {**shown(clients.take(np.array([best])), np.zeros(1, bool)), "client_id": np.array(best, np.int32)}
    visited = np.asarray(clients.visited) & ~malicious
    if not visited.any():
        return {}
    found = (np.asarray(clients.warm) > 0).sum(axis=(1, 2))
    client = int(np.argmax(np.where(visited, found, -1)))
    arrays = {"client_id": np.int32(client), "warm": np.asarray(clients.warm[client])}
    if clients.has.shape[1]:
        classes = clients.warm.shape[1]
        lead = (classes,) if clients.has.shape[1] == classes else (classes, classes)
        arrays["has"] = np.asarray(clients.has[client]).reshape(lead)
        for name, stacked in clients.triggers._asdict().items():
            one = np.asarray(stacked[client], np.float32)
            arrays[name] = one.reshape(*lead, *one.shape[1:])
    return arrays


class PairDraws(NamedTuple):
    """What decides on a pair: uniform numbers, the largest wins.

    Attributes:
        explore: scalar in [0, 1]; below `random_pair` the pair is drawn from the two next.
        source, target: [C].
        tie: [C, C], among equal gains.
    """

    explore: Array
    source: Array
    target: Array
    tie: Array


def next_pair(
    memory: Memory, present: Array, previous: Array, draws: PairDraws, random_pair: Array | float
) -> tuple[Array, Array]:
    """The pair that a client takes next.

    Now and then a random source that is present and a random other class; else the pair of the largest gain whose
    source is present and is not the previous one.

    Args:
        memory: its gains.
        present: [C] bool.
        previous: int32 scalar, the last source; -1 = none.
        draws: see there.
        random_pair: how often a random pair is taken.

    Returns:
        source and target, int32; -1 where no pair can be had.
    """
    classes = len(present)
    every = jnp.arange(classes)
    source = jnp.argmax(jnp.where(present, draws.source, -1.0))
    target = jnp.argmax(jnp.where(every == source, -1.0, draws.target))
    allowed = (present & (every != previous))[:, None] & ~jnp.eye(classes, dtype=bool)
    best = jnp.max(jnp.where(allowed, memory.gain, -jnp.inf))
    equal = allowed & (memory.gain == best)
    first = jnp.argmax(jnp.where(equal, draws.tie, -1.0))
    drawn = draws.explore < random_pair
    found = present.any() & (drawn | allowed.any())
    pair = jnp.where(drawn, source, first // classes), jnp.where(drawn, target, first % classes)
    return tuple(jnp.where(found, one, -1).astype(jnp.int32) for one in pair)  # pyright: ignore[reportReturnType]


def pair_draws(key: Array, classes: int) -> PairDraws:
    """From a key."""
    keys = jax.random.split(key, 4)
    shapes = ((), (classes,), (classes,), (classes, classes))
    return PairDraws(*(jax.random.uniform(k, shape) for k, shape in zip(keys, shapes, strict=True)))
