"""The server's optimiser: the aggregator's model is no longer installed, it is what the server steps towards.

Source: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021,
    Algorithm 1 (SGD) and Algorithm 2 (FedAdagrad, FedAdam, FedYogi); momentum is FedAvgM.
Deviations: the paper averages, here any aggregator makes the model. Of the v_{-1} >= tau^2 that Algorithm 2 allows,
    v_{-1} = tau^2 is taken. Batch statistics, which the paper does not speak of, move at the learning rate too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_spmc import trees
from fedjax_spmc.types import Array, Params, State, Variables

SETTINGS: dict[str, Any] = {"learning_rate": None, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
"""The numbers of an optimiser and their defaults; a learning rate of None is `default_rate`."""

TAKES: dict[str, tuple[str, ...]] = {
    "none": (),
    "sgd": ("learning_rate",),
    "momentum": ("learning_rate", "beta1"),
    "adagrad": ("learning_rate", "beta1", "tau"),
    "adam": ("learning_rate", "beta1", "beta2", "tau"),
    "yogi": ("learning_rate", "beta1", "beta2", "tau"),
}
"""Optimiser -> the settings that it has a use for."""


class ServerOptimizer(NamedTuple):
    """The server's optimiser.

    Attributes:
        init: params -> state.
        step: (old Variables, the aggregator's Variables, state) -> (new Variables, state, whether all of it is finite,
            bool scalar).
        learning_rate: float or scalar.
    """

    init: Callable[[Params], State]
    step: Callable[[Variables, Variables, State], tuple[Variables, State, Array]]
    learning_rate: Any


def default_rate(name: str) -> float:
    """The learning rate where none is given: 1 for sgd and momentum, whose step then is the aggregator's, else 0.01."""
    return 1.0 if name in ("sgd", "momentum") else 0.01


def make(name: str, **settings: Any) -> ServerOptimizer | None:
    """The optimiser called `name`; None for "none", which installs the aggregator's model.

    The pseudo-gradient is the broadcast model minus the aggregator's. Batch statistics go from the old ones the share
    `learning_rate` of the way to the averaged ones.

    Args:
        name: a key of `TAKES`.
        **settings: learning_rate, beta1, beta2, tau: floats or traced scalars, those that are missing or None at their
            defaults. beta1 is the share of the old first moment (the paper's FedAdagrad has 0), for momentum the factor
            of the old velocity in v = beta1 v + d; beta2 that of the old second moment; tau is added to its root.
    """
    if name == "none":
        return None
    given = SETTINGS | {setting: value for setting, value in settings.items() if value is not None}
    rate = default_rate(name) if given["learning_rate"] is None else given["learning_rate"]
    update = server_optimizer(name, rate, given["beta1"], given["beta2"], given["tau"])

    def step(old: Variables, aggregated: Variables, state: State) -> tuple[Variables, State, Array]:
        gradient = jax.tree.map(jnp.subtract, old.params, aggregated.params)
        move, state = update.update(gradient, state, old.params)
        stats = jax.tree.map(lambda x, mean: (x + rate * (mean - x)).astype(x.dtype), old.stats, aggregated.stats)
        new = Variables(optax.apply_updates(old.params, move), stats)
        return new, state, trees.all_finite((new, state))

    return ServerOptimizer(init=update.init, step=step, learning_rate=rate)


def server_optimizer(
    name: str, rate: float | Array, beta1: float | Array, beta2: float | Array, tau: float | Array
) -> optax.GradientTransformation:
    """The optimiser called `name` on pseudo-gradients; see `make`."""
    if name in ("sgd", "momentum"):
        return optax.sgd(rate, momentum=beta1 if name == "momentum" else None)
    return optax.chain(scale_by_moments(name, beta1, beta2, tau), optax.scale_by_learning_rate(rate))


class Moments(NamedTuple):
    """First and second moment, like the parameters."""

    first: Any
    second: Any


def scale_by_moments(
    name: str, beta1: float | Array, beta2: float | Array, tau: float | Array
) -> optax.GradientTransformation:
    """m / (sqrt(v) + tau) of Algorithm 2, for adagrad, adam or yogi; Optax's own forms correct the moments' bias."""

    def second_moment(v: Array, d: Array) -> Array:
        square = d * d
        if name == "adagrad":
            return v + square
        if name == "adam":
            return beta2 * v + (1 - beta2) * square
        return v - (1 - beta2) * square * jnp.sign(v - square)

    def init(params: Any) -> Moments:
        return Moments(
            first=jax.tree.map(jnp.zeros_like, params),
            second=jax.tree.map(lambda x: jnp.full_like(x, jnp.square(tau)), params),
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Moments]:
        del params
        first = jax.tree.map(lambda m, d: beta1 * m + (1 - beta1) * d, state.first, updates)
        second = jax.tree.map(second_moment, state.second, updates)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + tau), first, second), Moments(first, second)

    return optax.GradientTransformation(init, update)
