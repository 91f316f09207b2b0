"""FLIP's trigger inversion against `flip_inversion`: each search from its recorded start, with its recorded jitter."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.flip.inversion import Progress, Samples, Search, Seen, Triggers, begin, make_step, opened
from fedjax_spmc.flip.starts import start_masks
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.parity.recorded_nets import below
from fedjax_spmc.types import Array

TRIGGERS, TRACE, GRADIENTS = 5e-5, 1e-6, 1e-5
SIZES = 1e-3
"""Of sums over a mask, of losses and of cross entropies, which the file has in float64."""
TIED_FROM = 10
"""Behind this many steps round-off decides among equals in a search of a pair with a large cost."""
THRESHOLD, COST, MINIBATCH = 0.85, 1e-3, 4


def network(weights: Mapping[str, np.ndarray]) -> Callable[[Array], Array]:
    """The files' network: 3x3 with padding, ReLU, linear; [B, H, W, C] -> [B, classes]."""
    kernel, bias, last, last_bias = (
        jnp.asarray(weights[name]) for name in ("conv.weight", "conv.bias", "fc.weight", "fc.bias")
    )

    def predict(inputs: Array) -> Array:
        images = inputs.transpose(0, 3, 1, 2)
        maps = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME") + bias[None, :, None, None]
        return jax.nn.relu(maps).reshape(len(inputs), -1) @ last.T + last_bias[None]

    return predict


def one_way(found: Mapping[str, np.ndarray], variant: str) -> tuple[Samples, bool]:
    """What the name of a variant says of the examples: those of a class, or all but the target's."""
    labels = np.asarray(found["y"])
    said = re.search(r"source(\d+)_target(\d+)", variant)
    source, target = (int(said[1]), int(said[2])) if said else (None if variant.startswith("universal") else 0, 1)
    rows = np.flatnonzero(labels != target if source is None else labels == source)
    inputs = jnp.asarray(channels_last(found["x"]))[rows]
    return Samples(inputs, jnp.full(len(rows), target, jnp.int32), jnp.ones((len(rows), 1))), True


def both_ways(found: Mapping[str, np.ndarray], variant: str) -> tuple[Samples, bool]:
    """The recorded examples of a pair of classes."""
    del variant
    first = np.asarray(found["pair/m"], np.float32)
    share = jnp.asarray(np.stack([first, 1 - first], axis=1))
    return Samples(jnp.asarray(channels_last(found["pair/x"])), jnp.asarray(found["pair/y"], jnp.int32), share), False


def searched(found: Mapping[str, np.ndarray], name: str, variant: str) -> tuple[Progress, Seen, Progress, Array | None]:
    """The search of a variant: [steps] states before each step and behind the last, what each saw, and its first move.

    Returns:
        states behind each step [steps, ...], what each step saw [steps, ...], the state behind the first optimiser
        step, the parts of a step or None.
    """
    of = below(found, f"{name}/{variant}")
    count = 2 if name == "pair" else 1
    samples, mean = (both_ways if name == "pair" else one_way)(found, variant)
    shape = samples.inputs.shape[1:]
    start = Triggers(
        jnp.asarray(np.reshape(found[f"{name}/init_m"], (count, *shape[:2])), jnp.float32),
        jnp.asarray(channels_last(np.reshape(found[f"{name}/init_p"], (count, shape[2], *shape[:2])))),
    )
    jitter = (
        of[name] if name in of else np.zeros((1, *like.shape))
        for name, like in zip(
            ("noise_mask", "noise_pattern"), (start.masks[0], jnp.moveaxis(start.patterns[0], -1, 0)), strict=True
        )
    )  # a search that never succeeds has none
    masks, patterns = jitter
    noise = Triggers(
        jnp.asarray(np.reshape(masks, (-1, *shape[:2])), jnp.float32),
        jnp.asarray(channels_last(np.reshape(patterns, (-1, shape[2], *shape[:2])))),
    )
    said = re.fullmatch(r"cost(.+)", variant)
    search = Search(threshold=THRESHOLD, margin=0.0, rollback=True)
    steps = max(int(one[1]) for one in map(re.compile(r"K(\d+)/mask_best").fullmatch, of) if one)
    parts = None
    if "shuffles" in of:
        order, orders = np.arange(len(samples.wanted)), []
        for shuffle in np.asarray(of["shuffles"])[:steps]:
            order = order[shuffle]
            orders.append(order[: len(order) // MINIBATCH * MINIBATCH].reshape(-1, MINIBATCH))
        parts = jnp.asarray(np.stack(orders), jnp.int32)

    def draw(step: Array, kept: Array) -> Triggers:
        del step
        return jax.tree.map(lambda x: x[jnp.minimum(kept, len(x) - 1)], noise)

    step_once = make_step(network(below(found, "param")), samples, draw, search, mean)
    active = jnp.ones(count, bool)

    @jax.jit
    def run(progress: Progress) -> tuple[Progress, Seen, Progress]:
        def body(progress: Progress, step: Array) -> tuple[Progress, tuple[Progress, Seen]]:
            after, seen = step_once(progress, step, active, None if parts is None else parts[step])
            return after, (after, seen)

        first, _ = step_once(progress, jnp.int32(0), active, None if parts is None else parts[0][:1])
        return *jax.lax.scan(body, progress, jnp.arange(steps))[1], first

    behind, seen, first = run(begin(start, float(said[1]) if said else COST, search))
    return behind, seen, first, parts


@kind(r"flip_inversion.*")
def inversions(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """All searches of all families."""
    for family in sorted({name.split("/")[0] for name in arrays}):
        found = below(arrays, family)
        for name in ("single", "pair"):
            for variant in sorted({one.split("/")[0] for one in below(found, name) if "/" in one}):
                yield from of_variant(found, name, variant, f"inversion {family} {name} {variant}", source)
        yield from starts(found, family, source)


def of_variant(found: Mapping[str, np.ndarray], name: str, variant: str, title: str, source: str) -> Iterator[Outcome]:
    """One search: its triggers after so many steps, and the trace of its counters and losses."""
    of = below(found, f"{name}/{variant}")
    behind, seen, first, parts = searched(found, name, variant)
    tied = name == "pair" and variant.startswith("cost")
    gradients, triggers = Comparison(f"{title}, gradient", GRADIENTS), Comparison(title, TRIGGERS)
    for part, ours in zip(("mask", "pattern"), first.moments.mu, strict=True):
        theirs = of[f"K1/grad_{part}_logit"]
        gradients.add(part, ours / (1 - Search().beta1), of_shape(theirs, part, ours.shape))
    yield gradients.outcome(source)
    for steps in sorted(int(one[1]) for one in map(re.compile(r"K(\d+)/mask_best").fullmatch, of) if one):
        if tied and steps > TIED_FROM:
            continue
        at = jax.tree.map(lambda x, steps=steps: x[steps - 1], (opened(behind.live), behind.best))
        for part, live, best in zip(("mask", "pattern"), *at, strict=True):
            theirs = np.tanh(np.asarray(of[f"K{steps}/{part}_logit"], np.float64)) / (2 - 1e-7) + 0.5
            triggers.add(f"{part} after {steps} steps", live, of_shape(theirs, part, live.shape))
            kept = np.asarray(of[f"K{steps}/{part}_best"])
            if part == "mask" and kept.shape[-3] > 1:
                kept = kept[..., :1, :, :]  # the code repeats it over the channels
            triggers.add(f"best {part} after {steps} steps", best, of_shape(kept, part, best.shape))
    yield triggers.outcome(source)
    counters, losses = Comparison(f"{title}, counters", TRACE), Comparison(f"{title}, losses", SIZES)
    trace = {one: np.asarray(rows) for one, rows in below(of, "trace").items()}
    rows = 1 if parts is None else parts.shape[1]
    shown = TIED_FROM if tied else len(seen.loss)
    for one, ours in (("cost", behind.cost), ("up", behind.up), ("down", behind.down), ("reg_best", behind.smallest)):
        theirs = trace[one].reshape(len(seen.loss), rows, -1)[1:shown, 0]
        comparison = losses if one == "reg_best" else counters
        comparison.add(one, finite(ours)[: shown - 1], finite(theirs))
    for one, ours in (
        ("acc", seen.accuracy), ("reg", seen.size), ("ce", seen.cross_entropy), ("loss", seen.loss[:, None]),
    ):  # fmt: skip
        theirs = trace[one].reshape(len(seen.loss), rows, -1).mean(axis=1)[:shown]
        (counters if one == "acc" else losses).add(one, np.asarray(ours)[:shown], theirs)
    yield counters.outcome(source)
    yield losses.outcome(source)
    if any("relative_loss_drop" in one for one in of):
        yield skipped(f"{title}, relative drop of the loss", source, "no choice of the code goes by it")


def finite(values: Any) -> np.ndarray:
    """With -1 for no size yet."""
    values = np.asarray(values, np.float64)
    return np.where(np.isinf(values), -1, values)


def of_shape(array: Any, part: str, shape: tuple[int, ...]) -> np.ndarray:
    """A recorded mask [..., 1 or nothing, H, W] or pattern [..., C, H, W] in our shape."""
    array = np.asarray(array, np.float32)
    if part == "mask":
        return array.reshape(shape)
    return channels_last(array).reshape(shape)


def starts(found: Mapping[str, np.ndarray], family: str, source: str) -> Iterator[Outcome]:
    """The masks with which a search begins, from NumPy's draws."""
    if not any(one.startswith("default_init/") for one in found):
        return
    comparison = Comparison(f"inversion {family} first masks", 1e-7)
    for name, theirs in below(found, "default_init").items():
        shape = np.asarray(theirs).shape
        draws = np.random.RandomState(0).random_sample(shape)
        prior = "" if family != "cifar" else "pair" if name.startswith("pair") else "single"
        ours = start_masks(jnp.asarray(draws, jnp.float32), "uniform_small" if prior else "uniform", prior)
        comparison.add(name, ours, theirs)
    yield comparison.outcome(source)
