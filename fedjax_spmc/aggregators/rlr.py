"""RLR (robust learning rate): go backwards in every coordinate whose sign too few clients agree on.

Source: Ozdayi, Kantarcioglu, Gel, "Defending against Backdoors in Federated Learning with Robust Learning Rate",
    AAAI 2021, Equations 1 (the weighted mean of updates) and 2 (the learning rate of a coordinate).
Assumes: f < `threshold` <= n - f.
Cost: O(K D).
Deviations: none in the server step. The paper leaves the threshold to the user.
"""

import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators.dnc import by_position
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("rlr")
def rlr(
    variant: Literal["paper", "reference"] = "paper",
    threshold: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
    server_learning_rate: Annotated[float, POSITIVE, TRACED] = 1.0,
) -> Aggregator:
    """New model = g + rate * weighted mean of updates; rate = +eta where |sum of signs| >= theta, else -eta.

    Scores are the share of coordinates in which a client's sign is against the vote.

    Reference:
        * theta is 4 whatever the number of uploads.
        * The update of client j is taken for that of the client at position j of the drawn order, so that it gets that
          client's sample weight.
        * With absent clients it raises; here a client whose id is no position keeps its own weight.
        * With fewer uploads than theta it steps backwards in every coordinate; the paper's variant then keeps the
          global model where a threshold is given.

    Traits: not linear, because coordinates without agreement move away from the mean; not robust, because signs see no
        length: an outlier that grows pulls as hard as in the mean. The reference is not permutation invariant, because
        it mixes up positions and client ids. With an eta other than 1, and in the reference with fewer uploads than
        theta, there is no consensus, because the step is scaled or turned round.

    Args:
        variant: the publication or the SPMC code.
        threshold: f + 1 or more: theta, the agreement that a coordinate needs. None is (n - 1) // 2 + 1 of n usable
            uploads, the least that a minority cannot reach on its own: f + 1 for the largest f that leaves
            f + 1 <= n - f; in the reference 4.
        server_learning_rate: eta.

    Raises:
        ConfigError: a given threshold above the number of uploads a round, which no vote could reach.
    """
    paper = variant == "paper"

    def assumed(usable: Any) -> Any:
        """Theta for a number of usable uploads, which may be traced."""
        if threshold is not None:
            return threshold
        return (usable - 1) // 2 + 1 if paper else 4.0

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        if isinstance(threshold, (int, float)) and threshold > len(present):
            raise ConfigError(
                f"aggregator.options.threshold = {threshold} is not allowed with {len(present)} uploads a round: no "
                f"vote of theirs can reach more than {len(present)}."
            )
        updates = trees.subtract(upload.client_params, upload.global_params)
        signs, votes = sign_votes(updates, present)
        examples = upload.num_examples if paper else mistaken_examples(upload)
        weights = jnp.where(present, examples, 0.0)
        weights = weights / jnp.maximum(weights.sum(), 1e-30)
        theta = assumed(present.sum())

        def step(start: Array, mean: Array, vote: Array) -> Array:
            return start + jnp.where(jnp.abs(vote) >= theta, 1.0, -1.0) * server_learning_rate * mean

        mean = jax.tree.map(jnp.subtract, trees.weighted_mean(upload.client_params, weights), upload.global_params)
        model = jax.tree.map(step, upload.global_params, mean, votes)
        verdict = Verdict(weights, opposition(signs, votes, present), flagged=jnp.zeros_like(present))
        return model, verdict, state

    unscaled = isinstance(server_learning_rate, (int, float)) and server_learning_rate == 1
    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=unscaled, permutation=paper, robust=False, stateless=True),
        flags=False,
        # Fewer votes than a given threshold could agree on nothing, and the whole model would step back.
        min_clients=math.ceil(threshold) if paper and isinstance(threshold, (int, float)) else 1,
        chosen=lambda num_clients: {"threshold": float(assumed(num_clients))} if threshold is None else {},
    )


def sign_votes(updates: Params, present: Array) -> tuple[Params, Params]:
    """The signs of all stacked updates (0 for absent rows) and their sum over the clients."""
    signs = jax.tree.map(lambda x: jnp.where(trees.column(present, x), jnp.sign(x), 0.0), updates)
    # Whole numbers below 2^24: the product is exact, and on a CPU faster than a sum along the first axis.
    return signs, trees.weighted_mean(signs, jnp.ones(len(present), jnp.float32))


def opposition(signs: Params, votes: Params, present: Array) -> Array:
    """[K] share of coordinates in which a client's sign is against the sign of the sum; 0 for absent rows."""
    size = sum(leaf.size for leaf in jax.tree.leaves(votes))
    products = jax.tree.map(lambda sign, vote: sign * jnp.sign(vote)[None], signs, votes)
    # Of products in {-1, 0, 1} the sum of x (x - 1) / 2 counts those that are -1.
    opposed = trees.client_dot(products, jax.tree.map(lambda x: 0.5 * (x - 1.0), products))
    return jnp.where(present, opposed / max(size, 1), 0.0)


def mistaken_examples(upload: Upload) -> Array:
    """[K]: for the client of id j the number of examples of the one at position j; its own where there is none."""
    positions = upload.client_ids
    within = positions < upload.participating.sum()
    at_position = by_position(upload.num_examples, upload.participating)
    return jnp.where(within, at_position[jnp.where(within, positions, 0)], upload.num_examples)
