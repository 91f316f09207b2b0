"""FLTrust: trust a client as far as its update points where the server's own does.

Source: Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021,
    Algorithm 2, Equations 4 to 6.
Assumes: a small clean data set on the server.
Cost: O(K D) and the server's own training, as long as one client's.
Deviations: the root model trains with the clients' optimiser, momentum and weight decay included (the paper: plain SGD
    for both), without augmentation. Where no client is trusted, Equation 6 divides zero by zero; the global model is
    kept.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._server_training import batch_order, common_stats, hyper_of, required, train
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED, Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Params, PRNGKey, ServerData, State, Traits, Upload, Verdict


@aggregators.register("fltrust")
def fltrust(
    variant: Literal["paper", "reference"] = "paper",
    root_epochs: Annotated[int, Range(1, 10**6)] | None = None,
    server_rate: Annotated[float, POSITIVE, TRACED] = 1.0,
    momentum: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
    weight_decay: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
    server: ServerData | None = None,
) -> Aggregator:
    """g + server_rate * sum_i TS_i (|r| / |u_i|) u_i / sum_i TS_i, with TS_i = max(0, cos(u_i, r)).

    u_i are the clients' updates, r is that of a root model trained on the server from the same g. The verdict's weight
    of a client is TS_i / sum TS: all rescaled updates are equally long. Scores are -cos.

    Reference:
        * Each update is multiplied by t_i = TS_i |r| / (|u_i| + 1e-5), and the sum is divided by the sum of the t_i in
          place of that of the TS_i: the rescaling cancels, and a convex combination of the updates is left.
        * 1e-5 is added to the product of norms in the cosine and to the sum of the t_i; there is no server rate.
        * Updates cover the batch statistics too, whose integer counters outweigh all else; here weights alone.
        * The root model trains for 10 epochs, whatever the clients do.

    Traits: not linear, because every update is rescaled to the length of the server's, or in the reference because of
        the 1e-5 in the denominator; not consensus, for the same reasons.

    Args:
        variant: "paper", or "reference" for what the SPMC code does.
        root_epochs: passes over the server's data; None = as many as a client makes, and 10 in the reference.
        server_rate: the global learning rate alpha; the reference has none and refuses it.
        momentum: of the root model's training; None = the clients'.
        weight_decay: of the root model's training; None = the clients'.
        server: clean data on the server.

    Raises:
        ConfigError: `server_rate` with the reference.
    """
    if variant == "reference":
        refuse_unused(fltrust, "variant = 'reference'", {"server_rate": server_rate})

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        data = required(server, "fltrust")
        default_epochs = data.epochs if variant == "paper" else 10
        order = batch_order(data, default_epochs if root_epochs is None else root_epochs, key)
        hyper = hyper_of(data, upload, momentum=momentum, weight_decay=weight_decay)
        root = train(data, upload.global_params, common_stats(upload), order, hyper, key)
        root_update = jax.tree.map(jnp.subtract, root, upload.global_params)
        combined, verdict = combine(upload, root_update, variant == "reference", server_rate)
        return jax.tree.map(jnp.add, upload.global_params, combined), verdict, state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=False, permutation=True, robust=True, stateless=True),
    )


def combine(upload: Upload, root_update: Params, reference: bool, server_rate: float) -> tuple[Params, Verdict]:
    """The step of the global model and the verdict, given the server's own update (Equations 4 to 6)."""
    present = upload.participating
    updates = trees.zero_rows(present, trees.subtract(upload.client_params, upload.global_params))
    roots = trees.broadcast(root_update, len(present))
    cosines = trees.client_cosine(updates, roots, 1e-5 if reference else 0.0)
    trust = jnp.where(present, jnp.maximum(cosines, 0.0), 0.0)
    lengths, root_length = trees.client_norm(updates), trees.client_norm(roots)
    if reference:
        scaled = trust * root_length / (lengths + 1e-5)
        coefficients, weights = scaled / (scaled.sum() + 1e-5), scaled
    else:
        weights = trust
        shares = trust / jnp.where(trust.sum() > 0, trust.sum(), 1.0)
        coefficients = server_rate * shares * root_length / jnp.where(lengths > 0, lengths, 1.0)
    weights = weights / jnp.where(weights.sum() > 0, weights.sum(), 1.0)
    verdict = Verdict(weights, -cosines, flagged=present & (trust == 0))
    return trees.weighted_mean(updates, coefficients), verdict
