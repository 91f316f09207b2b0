"""Mean: federated averaging, with a server optimiser if wanted.

Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, Algorithm 1 (weights n_k / n).
    Server optimisers: Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated
    Optimization", ICLR 2021, Algorithm 1 (SGD) and Algorithm 2 (FedAdagrad, FedAdam, FedYogi); momentum is FedAvgM.
Assumes: nothing; it withstands no attack.
Cost: O(K D).
Deviations: none; of the v_{-1} >= tau^2 that Algorithm 2 allows, v_{-1} = tau^2 is taken.
"""

from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_spmc import trees
from fedjax_spmc.options import POSITIVE, TRACED, Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict

Optimizer = Literal["none", "sgd", "momentum", "adam", "adagrad", "yogi"]
BELOW_ONE = Range(0, 1, high_open=True)

TAKES: dict[str, tuple[str, ...]] = {
    "none": (),
    "sgd": ("server_learning_rate",),
    "momentum": ("server_learning_rate", "beta1"),
    "adagrad": ("server_learning_rate", "beta1", "tau"),
    "adam": ("server_learning_rate", "beta1", "beta2", "tau"),
    "yogi": ("server_learning_rate", "beta1", "beta2", "tau"),
}
"""Optimizer -> the options that it has a use for."""


@aggregators.register("mean")
def mean(
    weights: Literal["size", "uniform"] = "size",
    optimizer: Optimizer = "none",
    server_learning_rate: Annotated[float, POSITIVE, TRACED] | None = None,
    beta1: Annotated[float, BELOW_ONE, TRACED] = 0.9,
    beta2: Annotated[float, BELOW_ONE, TRACED] = 0.99,
    tau: Annotated[float, POSITIVE, TRACED] = 1e-3,
) -> Aggregator:
    """Averages the uploads, or takes the global model minus their mean as the gradient of a server optimiser.

    Traits: not robust, because the mean is what an outlier is measured against. With an optimizer neither linear nor
        consensus, because it steps from the old model by its own length; with moments not stateless.

    Args:
        weights: "size" weights a client by its number of examples (Algorithm 1; `Weight` in the SPMC code), "uniform"
            gives every participant the same (`Equal` in the SPMC code).
        optimizer: "none" installs the mean; "sgd", "momentum", "adam", "adagrad" and "yogi" step towards it.
        server_learning_rate: step size of the optimizer; None = 1 for sgd and momentum, else 0.01.
        beta1: share of the old first moment (adam, adagrad, yogi; the paper's FedAdagrad has 0); for momentum the
            factor of the old velocity in v = beta1 v + d.
        beta2: share of the old second moment (adam, yogi).
        tau: added to the root of the second moment (adam, adagrad, yogi).

    Raises:
        ConfigError: an option that the optimizer has no use for.
    """
    settings = {"server_learning_rate": server_learning_rate, "beta1": beta1, "beta2": beta2, "tau": tau}
    unused = {name: value for name, value in settings.items() if name not in TAKES[optimizer]}
    refuse_unused(mean, f"optimizer = {optimizer!r}", unused)
    rate = server_learning_rate
    if rate is None:
        rate = 1.0 if optimizer in ("none", "sgd", "momentum") else 0.01
    update = server_optimizer(optimizer, rate, beta1, beta2, tau)

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        share = upload.participating.astype(upload.num_examples.dtype)
        if weights == "size":
            share = share * upload.num_examples
        share = share / jnp.maximum(share.sum(), 1e-30)
        none = jnp.zeros_like(share)
        verdict = Verdict(share, none, none > 0)
        average = trees.weighted_mean(upload.client_params, share)
        if update is None:
            return average, verdict, state
        gradient = jax.tree.map(jnp.subtract, upload.global_params, average)
        step, state = update.update(gradient, state, upload.global_params)
        return optax.apply_updates(upload.global_params, step), verdict, state

    plain = optimizer == "none"
    return Aggregator(
        init=lambda global_params, num_clients: () if update is None else update.init(global_params),
        aggregate=aggregate,
        traits=Traits(
            linear=plain, consensus=plain, permutation=True, robust=False, stateless=optimizer in ("none", "sgd")
        ),
        chosen=lambda num_clients: {} if plain or server_learning_rate is not None else {"server_learning_rate": rate},
    )


def server_optimizer(
    name: str, rate: float | Array, beta1: float | Array, beta2: float | Array, tau: float | Array
) -> optax.GradientTransformation | None:
    """The optimiser called `name` on pseudo-gradients, or None; see the options of `mean`."""
    if name == "none":
        return None
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
