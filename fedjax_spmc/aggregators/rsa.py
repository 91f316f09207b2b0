"""RSA: the server steps by the signs of its differences to the clients' models, never by their size.

Source: Li, Xu, Chen, Giannakis, Ling, "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning
    from Heterogeneous Datasets", AAAI 2019, Algorithm 1 with the l1 penalty (Equations 7 and 8), server side.
Assumes: nothing about the number of malicious clients; the error grows with it.
Cost: O(K D).
Deviations: in the paper every worker keeps its own model, pulls it towards the server's by the same penalty, and both
    step once per batch. Here an upload is a model freshly trained from the broadcast one, without the penalty, and the
    server steps once a round. Its step size is therefore larger than the paper's (0.001 / sqrt(iteration)).
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators.rlr import opposition, sign_votes
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict

RUNNING_LIMIT = 3.0
"""The bound of the reference's running sum of signs."""


@aggregators.register("rsa")
def rsa(
    variant: Literal["paper", "reference"] = "paper",
    step_size: Annotated[float, POSITIVE, TRACED] | None = None,
    penalty: Annotated[float, POSITIVE, TRACED] | None = None,
    regularizer: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
) -> Aggregator:
    """New model = g - alpha (lambda sum_k sign(g - w_k) + rho g), the regulariser being f_0 = rho / 2 |x|^2.

    Every client has one vote in each coordinate, so all weights are alike; scores are the share of coordinates in which
    a client votes against the sum.

    Reference:
        * The sum of signs is clipped to [-3, 3] after every client, so that late clients count more.
        * Step size 0.05, penalty 0.1, regulariser 0.001: at most 0.015 per coordinate and round.
        * Batch statistics of the server never change; here they are averaged as in every rule.

    Traits: not linear, because only signs enter; no consensus, because the step has a fixed length. The reference is
        not permutation invariant, because its running clip depends on the order. Neither is differentiable: a sign
        has no slope.

    Args:
        variant: the publication or the SPMC code.
        step_size: alpha; None is 0.02 (own choice: 0.014 per coordinate and round with ten clients who agree), in the
            reference 0.05.
        penalty: lambda; None is 0.07 as in the authors' experiments, in the reference 0.1.
        regularizer: rho; None is 0.01 as in the authors' experiments, in the reference 0.001.
    """
    paper = variant == "paper"
    defaults = {"step_size": 0.02, "penalty": 0.07, "regularizer": 0.01}
    if not paper:
        defaults = {"step_size": 0.05, "penalty": 0.1, "regularizer": 0.001}
    given = {"step_size": step_size, "penalty": penalty, "regularizer": regularizer}
    missing = {name: value for name, value in defaults.items() if given[name] is None}
    alpha, strength, decay = ({**given, **missing}[name] for name in ("step_size", "penalty", "regularizer"))

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        signs, votes = sign_votes(trees.subtract(upload.client_params, upload.global_params), present)
        pull = votes if paper else running_votes(signs)
        model = jax.tree.map(lambda g, vote: g + alpha * (strength * vote - decay * g), upload.global_params, pull)
        weights = present / jnp.maximum(present.sum(), 1)
        return model, Verdict(weights, opposition(signs, votes, present), jnp.zeros_like(present)), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(
            linear=False, consensus=False, permutation=paper, robust=True, stateless=True, differentiable=False
        ),
        flags=False,
        chosen=lambda num_clients: dict(missing),
    )


def running_votes(signs: Params) -> Params:
    """The sum of stacked signs, row after row, clipped after every row; rows of zeros change nothing."""

    def add(total: Params, row: Params) -> tuple[Params, None]:
        def clipped(x: Array, y: Array) -> Array:
            return jnp.clip(x + y, -RUNNING_LIMIT, RUNNING_LIMIT)

        return jax.tree.map(clipped, total, row), None

    return jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros_like(x[0]), signs), signs)[0]
