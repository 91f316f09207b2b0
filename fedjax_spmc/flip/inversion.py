"""Trigger inversion: the smallest masked pattern that a network takes for a class, as FLIP's clients search for it.

A trigger is a mask m [H, W] and a pattern p [H, W, C], both in [0, 1]; an input x becomes (1 - m) x + m p. Adam runs on
what tanh maps onto them. As often as enough examples are taken for the wanted class and the mask is smaller than the
best so far, the trigger is kept and the search begins anew beside it; a weight on the mask's size grows while the
search succeeds and falls while it fails.

Many triggers are searched for at once, in one loop and each for itself: one way (examples of one class, or of all
others: universal) or both ways of a pair of classes (symmetric), which is two triggers that share their passes through
the network.

Source: Zhang et al., "FLIP: A Provable Defense Framework for Backdoor Mitigation in Federated Learning", ICLR 2023, its
    published code.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_spmc.types import Array, PRNGKey

STRETCH = 2 - 1e-7
"""Keeps the arguments of atanh below 1."""
COST, COST_SHORT = 1e-3, 1e-2
"""The code's weight on the mask's size at the start of a search, and of a short one that goes on from a trigger."""
JITTER = 0.01
"""A search begins anew within this of the best trigger."""


class Search(NamedTuple):
    """How to search; numbers may be traced.

    Attributes:
        threshold: share of the examples that must be taken for the wanted class (theta; the code: 0.9, CIFAR-10 0.85).
        learning_rate, beta1, beta2: of Adam, whose epsilon is 1e-8.
        growth, fall: the weight is multiplied by `growth` after `patience` steps in a row that succeed, divided by
            `fall` after as many that fail.
        patience: see there.
        margin: a mask must be smaller than the best by more than this. The code: 0, with which round-off decides among
            equals.
        rollback: whether a trigger that is kept also puts all others back to where they stood before the step (the
            code, of the two ways of a pair; where both are kept in one step the first loses its jitter).
    """

    threshold: Any = 0.9
    learning_rate: Any = 0.1
    beta1: Any = 0.5
    beta2: Any = 0.9
    growth: Any = 1.5
    fall: Any = 1.5**1.5
    patience: Any = 10
    margin: Any = 1e-6
    rollback: bool = False


class Samples(NamedTuple):
    """What the triggers are stamped on.

    Attributes:
        inputs: [B, H, W, C] float, in [0, 1].
        wanted: [B] int32, the class that each is to be taken for.
        share: [B, T] float, 1 where example b carries trigger t, else 0; an example carries one at most, and one that
            carries none counts for nothing.
    """

    inputs: Array
    wanted: Array
    share: Array


class Triggers(NamedTuple):
    """Masks [..., H, W] and patterns [..., H, W, C], float in [0, 1]."""

    masks: Array
    patterns: Array

    def sizes(self) -> Array:
        """[...] sum of each mask; 0 = no trigger was found."""
        return jnp.abs(self.masks).sum(axis=(-2, -1))


class Progress(NamedTuple):
    """A search under way.

    Attributes:
        live: what tanh maps onto masks and patterns.
        moments: Adam's.
        best: the smallest triggers so far that succeeded; zeros without one.
        smallest: [T] their sizes; infinite without one.
        cost: [T] weight on a mask's size.
        up, down: [T] int32, steps in a row that succeeded, that failed.
        kept: int32 scalar, how often a trigger was kept, all together.
    """

    live: Triggers
    moments: Any
    best: Triggers
    smallest: Array
    cost: Array
    up: Array
    down: Array
    kept: Array


class Seen(NamedTuple):
    """What a step saw: [T] accuracy, mask's size and cross entropy, and the loss, means over the step's parts."""

    accuracy: Array
    size: Array
    cross_entropy: Array
    loss: Array


Draw = Callable[[Array, Array], Triggers]
"""(step, [T] int32: how often a trigger was kept before) -> jitter of masks [T, H, W] and patterns [T, H, W, C]."""


def opened(live: Any) -> Any:
    """Masks or patterns of what the search moves."""
    return jax.tree.map(lambda x: jnp.tanh(x) / STRETCH + 0.5, live)


def closed(values: Any) -> Any:
    """The inverse of `opened`, of values cut to [0, 1]."""
    return jax.tree.map(lambda x: jnp.arctanh((jnp.clip(x, 0, 1) - 0.5) * STRETCH), values)


def stamped(inputs: Array, triggers: Triggers) -> Array:
    """Inputs [..., H, W, C] with a trigger each, or one for all."""
    mask = triggers.masks[..., None]
    return (1 - mask) * inputs + mask * triggers.patterns


def draws_of(key: PRNGKey, like: Triggers, size: float = JITTER) -> Draw:
    """Jitter from a key: uniform within +- size, apart for each step and trigger."""

    def draw(step: Array, kept: Array) -> Triggers:
        del kept
        keys = jax.random.split(jax.random.fold_in(key, step))
        return Triggers(
            *(jax.random.uniform(k, x.shape, x.dtype, -size, size) for k, x in zip(keys, like, strict=True))
        )

    return draw


def invert(
    predict: Callable[[Array], Array],
    samples: Samples,
    start: Triggers,
    draw: Draw,
    steps: Array | int,
    cost: Array | float = COST,
    search: Search = Search(),
    mean: Array | bool = True,
    parts: Array | None = None,
) -> Triggers:
    """The smallest triggers found; zeros where none was.

    Jit it or vmap it, over clients and seeds too. The loop runs until the last trigger has had its steps; one that has
    had them stays as it is.

    Args:
        predict: inputs [B, H, W, C] -> logits [B, classes], of a network in evaluation.
        samples: see there.
        start: of each search, T triggers.
        draw: jitter with which a search begins anew, see `draws_of`.
        steps: int32 scalar, or [T].
        cost: weight on a mask's size to begin with, a scalar or [T].
        search: see there.
        mean: whether the cross entropy of a trigger is the mean over its examples (the code, one way), or their sum
            (the code, both ways of a pair); a scalar or [T].
        parts: [steps, parts, b] int32, rows of `samples`: a step takes them one after another, Adam moving after each;
            None = all rows at once.
    """
    limit = jnp.broadcast_to(jnp.asarray(steps, jnp.int32), (samples.share.shape[1],))
    progress = begin(start, cost, search)
    step_once = make_step(predict, samples, draw, search, mean)

    def body(step: Array, progress: Progress) -> Progress:
        rows = None if parts is None else parts[step]
        return step_once(progress, step, step < limit, rows)[0]

    return jax.lax.fori_loop(0, limit.max(), body, progress).best


def begin(start: Triggers, cost: Array | float, search: Search) -> Progress:
    """A search before its first step; arguments as of `invert`."""
    count, dtype = len(start.masks), start.masks.dtype
    live = closed(start)
    return Progress(
        live=live,
        moments=_adam(search).init(live),
        best=jax.tree.map(jnp.zeros_like, start),
        smallest=jnp.full(count, jnp.inf, dtype),
        cost=jnp.broadcast_to(jnp.asarray(cost, dtype), (count,)),
        up=jnp.zeros(count, jnp.int32),
        down=jnp.zeros(count, jnp.int32),
        kept=jnp.int32(0),
    )


def make_step(
    predict: Callable[[Array], Array],
    samples: Samples,
    draw: Draw,
    search: Search,
    mean: Array | bool = True,
) -> Callable[[Progress, Array, Array, Array | None], tuple[Progress, Seen]]:
    """One step of a search: (progress, step, active [T] bool, rows [parts, b] or None) -> (progress, what it saw).

    Arguments as of `invert`; a trigger that is not active stays as it is.
    """
    adam = _adam(search)

    def loss_of(live: Triggers, cost: Array, part: Samples) -> tuple[Array, Seen]:
        masks, patterns = opened(live)
        mine = Triggers(_mixed(part.share, masks), _mixed(part.share, patterns))
        logits = predict(stamped(part.inputs, mine))
        each = optax.softmax_cross_entropy_with_integer_labels(logits, part.wanted)
        count = part.share.sum(axis=0)
        several = jnp.maximum(count, 1)
        own = _mixed(part.share.T, each) / jnp.where(mean, several, 1)
        right = _mixed(part.share.T, (jnp.argmax(logits, axis=-1) == part.wanted).astype(each.dtype)) / several
        size = jnp.abs(masks).sum(axis=(1, 2))
        loss = (own + cost * size).sum()
        return loss, Seen(right, size, own, loss)

    def move(live: Triggers, moments: Any, cost: Array, part: Samples) -> tuple[Triggers, Any, Seen]:
        grads, seen = jax.grad(loss_of, has_aux=True)(live, cost, part)
        updates, moments = adam.update(grads, moments)
        live = jax.tree.map(lambda x, u: x - search.learning_rate * u, live, updates)
        return live, moments, seen

    def step_once(progress: Progress, step: Array, active: Array, rows: Array | None) -> tuple[Progress, Seen]:
        if rows is None:
            before = progress.live
            live, moments, seen = move(before, progress.moments, progress.cost, samples)
        else:

            def one(carry: tuple[Any, ...], row: Array) -> tuple[tuple[Any, ...], Seen]:
                live, moments, _ = carry
                part = jax.tree.map(lambda x: x[row], samples)
                moved, moments, seen = move(live, moments, progress.cost, part)
                return (moved, moments, live), seen

            carry = progress.live, progress.moments, progress.live
            (live, moments, before), all_seen = jax.lax.scan(one, carry, rows)
            seen = jax.tree.map(lambda x: x.mean(axis=0), all_seen)

        succeeded = seen.accuracy >= search.threshold
        better = succeeded & (seen.size < progress.smallest - search.margin) & active
        before = opened(before)
        best = _chosen(better, before, progress.best)
        order = progress.kept + jnp.cumsum(better.astype(jnp.int32)) - better
        shaken = closed(jax.tree.map(jnp.add, before, draw(step, order)))
        if search.rollback:
            last = jnp.max(jnp.where(better, jnp.arange(len(better)), -1))
            live = _chosen(jnp.broadcast_to(last >= 0, better.shape), closed(before), live)
            live = _chosen(jnp.arange(len(better)) == last, shaken, live)
        else:
            live = _chosen(better, shaken, live)
        up = jnp.where(succeeded, progress.up + 1, 0)
        down = jnp.where(succeeded, 0, progress.down + 1)
        often, seldom = up >= search.patience, down >= search.patience
        cost = jnp.where(often, progress.cost * search.growth, progress.cost)
        cost = jnp.where(seldom, cost / search.fall, cost)
        after = Progress(
            live=_chosen(active, live, progress.live),
            moments=moments,  # of a trigger that rests they are never read again
            best=best,
            smallest=jnp.where(better, seen.size, progress.smallest),
            cost=jnp.where(active, cost, progress.cost),
            up=jnp.where(active, jnp.where(often, 0, up), progress.up),
            down=jnp.where(active, jnp.where(seldom, 0, down), progress.down),
            kept=progress.kept + better.sum(dtype=jnp.int32),
        )
        return after, seen

    return step_once


def _adam(search: Search) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=search.beta1, b2=search.beta2)


def _mixed(share: Array, values: Array) -> Array:
    """[n, T] times [T, ...]: of each row the value of its trigger, exactly."""
    flat = jnp.matmul(share, values.reshape(len(values), -1), precision=jax.lax.Precision.HIGHEST)
    return flat.reshape(len(share), *values.shape[1:])


def _chosen(condition: Array, yes: Triggers, no: Triggers) -> Triggers:
    """By trigger."""
    return jax.tree.map(lambda a, b: jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b), yes, no)
