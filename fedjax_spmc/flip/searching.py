"""The searches of a FLIP client in a round: on what, from where, and what takes their place in ablations."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.flip import sequential
from fedjax_spmc.flip.books import Begun
from fedjax_spmc.flip.inversion import Samples, Triggers, draws_of, invert
from fedjax_spmc.flip.options import Options
from fedjax_spmc.flip.starts import random_start
from fedjax_spmc.types import Array, Batch, ClientData, Context, PRNGKey, Variables


class Own(NamedTuple):
    """A client's examples by class.

    Attributes:
        labels: [M] int32 in stored order, -1 behind the client's last.
        counts: [C] int32.
        inputs_at: positions [n] -> pixels [n, H, W, C] in [0, 1].
    """

    labels: Array
    counts: Array
    inputs_at: Callable[[Array], Array]

    def some_of(self, label: Array, wanted: int, draws: Array | None = None) -> tuple[Array, Array]:
        """Positions [wanted] of examples of a class and whether each is one; the first ones, or those drawn."""
        rank = jnp.arange(len(self.labels)) / len(self.labels) if draws is None else draws
        wanted = min(wanted, len(self.labels))
        order = jnp.argsort(jnp.where(self.labels == label, rank, 2.0))[:wanted]
        return order, self.labels[order] == label


class Pixels(NamedTuple):
    """Between what a model takes and pixels in [0, 1]: inputs -> pixels, and back."""

    of: Callable[[Array], Array]
    back: Callable[[Array], Array]


def pixels_of(ctx: Context) -> Pixels:
    """By the mean and standard deviation that the task takes out of pixels; without a task they are pixels."""
    if ctx.task is None or ctx.task.mean is None:
        return Pixels(lambda inputs: inputs, lambda pixels: pixels)
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (ctx.task.mean, ctx.task.std))
    return Pixels(lambda inputs: inputs * std + mean, lambda pixels: (pixels - mean) / std)


def own_of(ctx: Context, data: ClientData, key: PRNGKey) -> Own:
    """The examples of a client.

    Raises:
        ValueError: the data cannot be read in stored order.
    """
    if data.take is None or data.order is None:
        raise ValueError("the local rule flip needs data with `take` and `order`")
    take, pixels = data.take, pixels_of(ctx)
    positions = jnp.arange(len(jax.eval_shape(data.order, key)), dtype=jnp.int32)
    labels = jnp.where(positions < data.size, take(positions, key).labels, -1)
    classes = ctx.model.num_classes
    counts = (labels[:, None] == jnp.arange(classes)[None]).sum(axis=0, dtype=jnp.int32)
    return Own(labels, counts, lambda at: pixels.of(take(at, key).inputs))


def predictor(ctx: Context, variables: Variables, key: PRNGKey) -> Callable[[Array], Array]:
    """Pixels -> logits of a model in evaluation."""
    pixels = pixels_of(ctx)

    def predict(inputs: Array) -> Array:
        return ctx.model.apply(variables.params, variables.stats, pixels.back(inputs), False, key)[0]

    return predict


def begun_or_random(options: Options, key: PRNGKey, begun: Begun, shape: tuple[int, ...], prior: str) -> Triggers:
    """The known triggers, and random ones in place of the others."""
    fresh = random_start(key, len(begun.known), shape, options.mask_init, prior if options.oracle_mask_prior else "")
    return trees.where_rows(begun.known, begun.triggers, fresh)


def noise(options: Options, key: PRNGKey, count: int, shape: tuple[int, ...]) -> Triggers:
    """Random patterns on a few random pixels, or nothing: what stands for triggers in ablations."""
    masks = jnp.zeros((count, shape[0] * shape[1]))
    if options.triggers == "noise":
        draws = jax.random.uniform(jax.random.fold_in(key, 0), masks.shape)
        last = jnp.sort(draws, axis=1)[:, min(options.noise_pixels, masks.shape[1]) - 1]
        masks = (draws <= last[:, None]).astype(jnp.float32)
    patterns = jax.random.uniform(jax.random.fold_in(key, 1), (count, *shape))
    return Triggers(masks.reshape(count, *shape[:2]), patterns)


def universal_samples(options: Options, own: Own, targets: Array) -> Samples:
    """The first few examples of each class that has enough, for each target t those of all classes but t.

    Args:
        options: `universal_samples` and `more_than`.
        own: the client's examples.
        targets: [T] int32.
    """
    classes = jnp.arange(len(own.counts), dtype=jnp.int32)
    positions, there = jax.vmap(lambda label: own.some_of(label, options.universal_samples))(classes)
    there = there & (own.counts > options.more_than)[:, None]
    each = positions.shape[1]
    inputs, label = own.inputs_at(positions.ravel()), jnp.repeat(classes, each)
    mine = there.ravel()[None] & (label[None] != targets[:, None])  # [T, rows]
    count = len(targets)
    share = mine[:, :, None] * jnp.eye(count)[:, None]
    return Samples(
        inputs=jnp.tile(inputs, (count, *(1,) * (inputs.ndim - 1))),
        wanted=jnp.repeat(targets, len(label)),
        share=share.reshape(-1, count),
    )


def find_one(
    options: Options,
    ctx: Context,
    variables: Variables,
    own: Own,
    key: PRNGKey,
    search: sequential.Search,
    batch: Batch,
) -> Triggers:
    """The search that one batch asks for, on the batch's own examples; a universal one on the client's."""
    shape, labels = batch.inputs.shape[1:], jnp.where(batch.valid, batch.labels, -1)
    if options.triggers != "inverted":
        found = noise(options, key, 2, shape)
        second = jnp.stack([search.kind > sequential.NOTHING, search.kind == sequential.BOTH_WAYS])
        return trees.zero_rows(second, found)
    of_start, of_jitter, of_model = (jax.random.fold_in(key, i) for i in range(3))
    predict, nothing = predictor(ctx, variables, of_model), random_start(of_start, 2, shape)
    source, target = search.source, search.target

    def searched(samples: Samples, count: int, prior: str, mean: bool) -> Triggers:
        begun = jax.tree.map(lambda x: x[:count], search.begun)
        start = begun_or_random(options, of_start, begun, shape, prior)
        draw = draws_of(of_jitter, start, options.jitter)
        found = invert(predict, samples, start, draw, search.steps, search.cost, options.search(), mean)
        return jax.tree.map(lambda x: jnp.pad(x, ((0, 2 - count), *((0, 0),) * (x.ndim - 1))), found)

    def universal() -> Triggers:
        return searched(universal_samples(options, own, target[None]), 1, "single", True)

    def both_ways() -> Triggers:
        share = jnp.stack([labels == source, labels == target], axis=1).astype(jnp.float32)
        return searched(Samples(batch.inputs, jnp.where(labels == source, target, source), share), 2, "pair", False)

    def one_way() -> Triggers:
        share = (labels == source)[:, None].astype(jnp.float32)
        return searched(Samples(batch.inputs, jnp.full_like(labels, target), share), 1, "single", True)

    nowhere = lambda: jax.tree.map(jnp.zeros_like, nothing)  # noqa: E731
    return jax.lax.switch(search.kind, [nowhere, universal, both_ways, one_way])
