"""Training and evaluation on the server's clean data, shared by the rules that hold such data."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_spmc import trees
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.keys import purpose_key, root_key
from fedjax_spmc.losses import asked, cross_entropy
from fedjax_spmc.training import optimizer
from fedjax_spmc.types import Array, Params, PRNGKey, ServerData, Stats, Upload

Gradient = Callable[[Params], tuple[Params, Stats]]
"""params -> (gradient of one batch's loss, new batch statistics)."""


def required(server: ServerData | None, rule: str) -> ServerData:
    """The server's data.

    Raises:
        ConfigError: there are none, or not enough for one batch.
    """
    if server is None:
        raise ConfigError(
            f"aggregator {rule} needs clean data on the server: make it with server=ServerData(model, inputs, labels, "
            "batch_size)."
        )
    if len(server.labels) < server.batch_size:
        raise ConfigError(
            f"aggregator {rule} needs at least one batch of {server.batch_size} images on the server, not "
            f"{len(server.labels)}."
        )
    return server


def inputs_at(server: ServerData, positions: Array) -> Array:
    """The server's examples at `positions` as the model takes them."""
    chosen = server.inputs[positions]
    return chosen if server.task is None else server.task.prepare(chosen, None)


def batch_order(server: ServerData, epochs: int, key: PRNGKey) -> Array:
    """Which samples make up each batch: [epochs * batches, B] int32, every epoch in an order of its own.

    An incomplete last batch is dropped.
    """
    count, size = len(server.labels), server.batch_size
    batches = count // size

    def epoch_order(key: PRNGKey) -> Array:
        order = jax.random.permutation(key, count) if server.shuffle else jnp.arange(count)
        return order[: batches * size].reshape(batches, size).astype(jnp.int32)

    return jax.vmap(epoch_order)(jax.random.split(purpose_key(key, "shuffle"), epochs)).reshape(epochs * batches, size)


def train(
    server: ServerData,
    params: Params,
    stats: Stats,
    order: Array,
    hyper: dict[str, Any],
    key: PRNGKey,
    step_gradient: Callable[[Gradient, Params], tuple[Params, Stats]] = lambda gradient, params: gradient(params),
) -> Params:
    """SGD on the server's data with a fresh optimiser, in train mode; a pure function of the batches' order.

    A network with dropout draws anew in every step and in every round.

    Args:
        server: the data.
        params: where training starts.
        stats: the model's batch statistics; they move along, and only the parameters come back.
        order: [steps, B] int32, the samples of each batch.
        hyper: learning_rate, momentum, weight_decay: floats or traced scalars.
        key: what dropout draws with.
        step_gradient: (gradient, params) -> (what the optimiser steps along, new batch statistics).
    """
    update = optimizer(hyper)

    def loss(params: Params, stats: Stats, positions: Array, key: PRNGKey) -> tuple[Array, Stats]:
        inputs, labels = inputs_at(server, positions), server.labels[positions]
        logits, new_stats = server.model.apply(params, stats, inputs, True, key)
        return cross_entropy(logits, labels, jnp.ones(len(labels), bool)), new_stats

    def step(carry: tuple[Params, Stats, Any], batch: tuple[Array, Array]) -> tuple[tuple[Params, Stats, Any], None]:
        params, stats, moments = carry
        positions, index = batch
        step_key = purpose_key(key, "step", index)
        gradient = jax.grad(loss, has_aux=True)
        direction, new_stats = step_gradient(lambda at: gradient(at, stats, positions, step_key), params)
        updates, moments = update.update(direction, moments, params)
        return (optax.apply_updates(params, updates), new_stats, moments), None

    (params, _, _), _ = jax.lax.scan(step, (params, stats, update.init(params)), (order, jnp.arange(len(order))))
    return params


def evaluate(server: ServerData, params: Params, stats: Stats, train: bool = False) -> tuple[Array, Array]:
    """Mean entropy of the predictions and mean cross entropy with the labels over all that the server's data ask.

    Args:
        server: the data.
        params, stats: the model.
        train: whether the model runs in train mode, on batch statistics of the images themselves; a network with
            dropout then leaves out the same units in every batch.

    Returns:
        Two float32 scalars, in nats.
    """
    count, size = len(server.labels), server.batch_size
    batches = -(-count // size)
    places = jnp.arange(batches * size).reshape(batches, size)

    def add(sums: tuple[Array, Array], places: Array) -> tuple[tuple[Array, Array], None]:
        positions, valid = jnp.minimum(places, count - 1), places < count
        logits, _ = server.model.apply(params, stats, inputs_at(server, positions), train, root_key(0))
        logs = jax.nn.log_softmax(logits)
        labels = server.labels[positions]
        counted = asked(labels, valid)
        entropy = -jnp.sum(jnp.exp(logs) * logs, axis=-1)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        parts = jnp.where(counted, entropy, 0.0).sum(), jnp.where(counted, losses, 0.0).sum()
        return (sums[0] + parts[0], sums[1] + parts[1]), None

    zero = jnp.zeros((), jnp.float32)
    (entropy, losses), _ = jax.lax.scan(add, (zero, zero), places)
    answers = jnp.maximum((server.labels >= 0).sum(), 1)
    return entropy / answers, losses / answers


def common_stats(upload: Upload) -> Stats:
    """Batch statistics to start from on the server: the mean of the clients'; {} where the model has none."""
    share = upload.participating.astype(jnp.float32)
    return model_stats(trees.weighted_mean(upload.client_stats, share / jnp.maximum(share.sum(), 1.0)))


def model_stats(stats: Stats) -> Stats:
    """Batch statistics as a model takes them: {} for a tree without leaves."""
    return stats if jax.tree.leaves(stats) else {}


def hyper_of(
    server: ServerData, upload: Upload, learning_rate: Any = None, momentum: Any = None, weight_decay: Any = None
) -> dict[str, Any]:
    """The settings of SGD on the server; what is None is as for the clients."""
    return {
        "learning_rate": upload.learning_rate if learning_rate is None else learning_rate,
        "momentum": server.momentum if momentum is None else momentum,
        "weight_decay": server.weight_decay if weight_decay is None else weight_decay,
    }
