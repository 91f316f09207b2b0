"""How the reference schedule keeps triggers and scores: by ordered pair, or as FLIP's code does.

What the code does, taken from recorded runs: it keeps one or two triggers for an unordered pair. It takes the first of
two for the way of the source, whichever class is the lower. A trigger of one way that comes behind another pushes the
older out if it is larger than the one from which its search began. Where a search fails, the trigger from which it
began takes its place. Sizes are sums over all channels behind a universal search, three times one channel of both ways
and one channel of one way.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.flip.inversion import Triggers
from fedjax_spmc.flip.memory import Memory, keep, keep_all, rated, recall
from fedjax_spmc.types import Array


class Turn(NamedTuple):
    """The pair in progress.

    Attributes:
        source, target, previous: int32; -1 = none.
        visit: int32, batches of it so far.
        last: one trigger, found in the visit before by a search one way.
        has_last: bool.
        bar: float, the size that a new trigger of one way must exceed to be kept (the code).
        failed: [2] bool, which ways failed when both were last searched for.
        failed_one_way: bool, whether a search of one way failed last.
        total: [2] sizes, summed over the visits.
        visits_counted: int32, of these.
    """

    source: Array
    target: Array
    previous: Array
    visit: Array
    last: Triggers
    has_last: Array
    bar: Array
    failed: Array
    failed_one_way: Array
    total: Array
    visits_counted: Array


class Begun(NamedTuple):
    """From where a search begins: triggers [n] and which of them are known, [n] bool."""

    triggers: Triggers
    known: Array


def new_turn(shape: tuple[int, ...], pair: tuple[Array, Array] | None = None, previous: Array | int = -1) -> Turn:
    """A pair that no batch has had yet."""
    source, target = (jnp.int32(-1), jnp.int32(-1)) if pair is None else pair
    return Turn(
        source=source,
        target=target,
        previous=jnp.asarray(previous, jnp.int32),
        visit=jnp.int32(0),
        last=Triggers(jnp.zeros(shape[:2]), jnp.zeros(shape)),
        has_last=jnp.zeros((), bool),
        bar=jnp.float32(0),
        failed=jnp.zeros(2, bool),
        failed_one_way=jnp.zeros((), bool),
        total=jnp.zeros(2),
        visits_counted=jnp.int32(0),
    )


def _pair(first: Triggers, second: Triggers) -> Triggers:
    return jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second)


def _one(triggers: Triggers, index: int) -> Triggers:
    return jax.tree.map(lambda x: x[index], triggers)


class Ordered:
    """A trigger for each ordered pair, the newest that was found; sizes are sums over one channel."""

    def __init__(self, channels: int) -> None:
        del channels

    def before_universal(self, memory: Memory, target: Array) -> Begun:
        """Where a universal search begins: nowhere."""
        trigger, known = recall(memory, target, target)
        return Begun(_pair(trigger, trigger), jnp.zeros(2, bool) & known)

    def after_universal(self, memory: Memory, mine: Array, target: Array, found: Triggers) -> Memory:
        """Keeps a universal trigger for each class that the client has."""
        size = found.sizes()[0]
        classes = jnp.arange(len(mine), dtype=jnp.int32)
        others = mine & (classes != target)
        triggers = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (len(mine), *x.shape[1:])), found)
        memory = keep_all(memory, classes, jnp.full(len(mine), target), triggers, others & (size > 0))
        return _universal_scores(memory, others, target, size)

    def before_pair(self, memory: Memory, turn: Turn) -> Begun:
        """Where a search of both ways begins."""
        first, there = recall(memory, turn.source, turn.target)
        second, back = recall(memory, turn.target, turn.source)
        return Begun(_pair(first, second), jnp.stack([there, back]))

    def after_pair(self, memory: Memory, turn: Turn, begun: Begun, found: Triggers) -> tuple[Memory, Turn, Triggers]:
        """Keeps what was found; a way that failed is stamped as it was known."""
        worked = found.sizes() > 0
        used = trees.where_rows(worked, found, trees.zero_rows(begun.known, begun.triggers))
        memory = keep(memory, turn.source, turn.target, _one(found, 0), worked[0])
        memory = keep(memory, turn.target, turn.source, _one(found, 1), worked[1])
        turn = turn._replace(total=turn.total + used.sizes(), visits_counted=turn.visits_counted + 1)
        return memory, turn, used

    def before_one_way(self, memory: Memory, turn: Turn) -> Begun:
        """Where a search of one way begins."""
        trigger, known = recall(memory, turn.source, turn.target)
        return Begun(_pair(trigger, trigger), jnp.stack([known, jnp.zeros((), bool)]))

    def after_one_way(self, memory: Memory, turn: Turn, begun: Begun, found: Triggers) -> tuple[Memory, Turn, Triggers]:
        """Keeps what was found."""
        worked = found.sizes() > 0
        used = trees.where_rows(worked, found, trees.zero_rows(begun.known, begun.triggers))
        memory = keep(memory, turn.source, turn.target, _one(found, 0), worked[0])
        return memory, turn._replace(total=turn.total + used.sizes()[0], visits_counted=turn.visits_counted + 1), used

    def settled(self, memory: Memory, turn: Turn, both: Array, when: Array) -> Memory:
        """Scores behind the last visit."""
        size = turn.total / jnp.maximum(turn.visits_counted, 1)
        when = when & (turn.visits_counted > 0)
        memory = rated(memory, turn.source, turn.target, size[0], when)
        return rated(memory, turn.target, turn.source, size[1], when & both)


class AsTheCode:
    """One or two triggers for an unordered pair, at [low, high] and [high, low]; see the module."""

    def __init__(self, channels: int) -> None:
        self._channels = channels

    def before_universal(self, memory: Memory, target: Array) -> Begun:
        """The first trigger of class 0 and the target, which at that point is the universal one of class 0."""
        trigger, known = recall(memory, jnp.zeros_like(target), target)  # the key (0, target)
        return Begun(_pair(trigger, trigger), jnp.stack([known & (target > 0), jnp.zeros((), bool)]))

    def after_universal(self, memory: Memory, mine: Array, target: Array, found: Triggers) -> Memory:
        """Keeps a universal trigger for each class that the client has, found or not."""
        classes = jnp.arange(len(mine), dtype=jnp.int32)
        others, new = mine & (classes != target), _one(found, 0)

        def one(i: Array, memory: Memory) -> Memory:
            return _pushed(memory, jnp.minimum(i, target), jnp.maximum(i, target), new, others[i])

        memory = jax.lax.fori_loop(0, len(mine), one, memory)
        return _universal_scores(memory, others, target, self._channels * found.sizes()[0])

    def before_pair(self, memory: Memory, turn: Turn) -> Begun:
        """Both triggers of a pair that has two, the first for the way of the source."""
        low, high = _ends(turn)
        (first, one), (second, two) = recall(memory, low, high), recall(memory, high, low)
        triggers = _pair(first, second)
        return Begun(triggers, jnp.broadcast_to(one & two & (triggers.sizes() > 0).all(), (2,)))

    def after_pair(self, memory: Memory, turn: Turn, begun: Begun, found: Triggers) -> tuple[Memory, Turn, Triggers]:
        """Both take the places of those that the search began with; where one was missing nothing is kept."""
        low, high = _ends(turn)
        worked = found.sizes() > 0
        used = trees.where_rows(worked | ~begun.known, found, begun.triggers)
        two = recall(memory, low, high)[1] & recall(memory, high, low)[1]
        kept = begun.known | ~two
        memory = keep(memory, low, high, _one(used, 0), kept[0])
        memory = keep(memory, high, low, _one(used, 1), kept[1])
        total = turn.total + 3 * used.sizes()
        return memory, turn._replace(total=total, visits_counted=turn.visits_counted + 1), found

    def before_one_way(self, memory: Memory, turn: Turn) -> Begun:
        """The first trigger of the pair; in a second visit what the first one found."""
        kept, known = recall(memory, *_ends(turn))
        known = known & (kept.sizes() > 0)
        trigger = trees.where(turn.has_last, turn.last, kept)
        return Begun(_pair(trigger, trigger), jnp.stack([known | turn.has_last, jnp.zeros((), bool)]))

    def after_one_way(self, memory: Memory, turn: Turn, begun: Begun, found: Triggers) -> tuple[Memory, Turn, Triggers]:
        """A second trigger comes before the first one; later ones push the older out if they are large enough."""
        low, high = _ends(turn)
        new, size, known = _one(found, 0), found.sizes()[0], begun.known[0]
        used = trees.where(known & (size <= 0), _one(begun.triggers, 0), new)
        used_size = used.sizes()
        (kept, first), second = recall(memory, low, high), recall(memory, high, low)[1]
        bar = jnp.where(turn.has_last, turn.bar, jnp.where(known, begun.triggers.sizes()[0], used_size))
        pushes = first & second & known & (used_size > bar)
        memory = _pushed(memory, low, high, new, ~first | (first & ~second))
        memory = _pushed(memory, low, high, used, pushes)
        counted = jnp.where(first & ~second, kept.sizes(), used_size)
        turn = turn._replace(
            last=used,
            has_last=jnp.ones((), bool),
            bar=bar,
            total=turn.total + counted,
            visits_counted=turn.visits_counted + 1,
        )
        return memory, turn, found

    def settled(self, memory: Memory, turn: Turn, both: Array, when: Array) -> Memory:
        """Scores behind the last visit; one way sets those of the way back to zero."""
        size = turn.total / jnp.maximum(turn.visits_counted, 1)
        when = when & (turn.visits_counted > 0)
        there, back = jnp.where(both, size, size.mean())
        source, target = turn.source, turn.target
        first = memory.warm[source, target] <= 0
        memory = rated(memory, source, target, there, when)
        memory = rated(memory, target, source, back, when & both)
        gain, warm = memory.gain, memory.warm
        gain = gain.at[target, source].set(jnp.where(when & (first | ~both), 0.0, gain[target, source]))
        warm = warm.at[target, source].set(jnp.where(when & ~both, 0.0, warm[target, source]))
        return memory._replace(gain=gain, warm=warm)


BOOKS = {"ordered": Ordered, "reference": AsTheCode}
"""`pair_key` -> how it is done."""


def _universal_scores(memory: Memory, others: Array, target: Array, size: Array) -> Memory:
    """Size and gain of all classes towards the target; 0 where the client has none of a class."""
    sizes = jnp.where(others, size, 0.0)
    itself = jnp.arange(len(others)) == target
    gain = jnp.where(itself, memory.gain[:, target], sizes)
    return memory._replace(warm=memory.warm.at[:, target].set(sizes), gain=memory.gain.at[:, target].set(gain))


def _ends(turn: Turn) -> tuple[Array, Array]:
    return jnp.minimum(turn.source, turn.target), jnp.maximum(turn.source, turn.target)


def _pushed(memory: Memory, low: Array, high: Array, new: Triggers, when: Array) -> Memory:
    """A new trigger first, the one that stood first second; the first alone where there was none."""
    old, had = recall(memory, low, high)
    memory = keep(memory, high, low, old, when & had)
    return keep(memory, low, high, new, when)
