"""Sageflow: drop models that are unsure on public data, weigh the others by how small their loss is there.

Source: Park, Han, Choi, Moon, "Sageflow: Robust Federated Learning against Both Stragglers and Adversaries", NeurIPS
    2021, section 3: entropy-based filtering and loss-weighted averaging, for clients that are all on time.
Assumes: clean ("public") data on the server.
Cost: O(K D) and one pass of every upload over the server's data.
Deviations: no client is late, so that the grouping by staleness has one group of full weight. Where every model is
    filtered, the paper leaves open what happens; the global model is kept.
"""

import math
from typing import Annotated, Literal

import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._server_training import common_stats, evaluate, model_stats, required
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED
from fedjax_spmc.registry import aggregators
from fedjax_spmc.training import auto_client_batch, map_clients
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, ServerData, State, Traits, Upload, Verdict


@aggregators.register("sageflow")
def sageflow(
    variant: Literal["paper", "reference"] = "paper",
    threshold: Annotated[float, POSITIVE, TRACED] | None = None,
    exponent: Annotated[float, NON_NEGATIVE, TRACED] = 1.0,
    server: ServerData | None = None,
) -> Aggregator:
    """sum_k beta_k w_k with beta_k proportional to m_k / F_k^exponent; beta_k = 0 where the entropy is too large.

    F_k is the mean cross entropy of client k's model on the server's data and m_k its number of examples; the entropy
    is the mean Shannon entropy of the model's predictions there. A model whose loss is not finite is filtered too.
    Scores are the F_k.

    Reference:
        * Entropy and loss are those of the global model, for every client: all weights come out alike.
        * The model runs in train mode, on full batches: an incomplete last one is dropped.
        * Weights are 1 / loss^exponent (0 where the entropy reaches the threshold) plus 1e-5, without m_k; with all
          clients over the threshold they are alike too.

    Traits: in the paper's rule consensus holds but where the uploads' common entropy is above the threshold: then the
        global model is kept. The reference is not robust, because it is the plain mean.

    Args:
        variant: "paper", or "reference" for what the SPMC code does.
        threshold: the largest allowed entropy, in nats. With 10 classes the paper's authors take 1 for untargeted
            attacks and 2 for backdoors. None: 2 with 10 classes and the same share of the largest entropy, ln(classes),
            with any other number; in the reference 2.
        exponent: delta, how strongly a loss counts; the paper's authors take 1, and 5 for backdoors.
        server: clean data on the server.
    """

    def paper(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        data, present = required(server, "sageflow"), upload.participating

        def judge(client: tuple[Params, Params]) -> tuple[Array, Array]:
            return evaluate(data, client[0], model_stats(client[1]))

        rows = (upload.client_params, upload.client_stats)
        entropy, losses = map_clients(judge, rows, auto_client_batch(len(present)))
        finite = jnp.isfinite(entropy) & jnp.isfinite(losses)
        limit = 2.0 * math.log(data.model.num_classes) / math.log(10) if threshold is None else threshold
        kept = present & finite & (entropy <= limit)
        losses = jnp.where(finite, losses, jnp.max(jnp.where(finite & present, losses, 0.0)) + 1.0)
        weights = loss_weights(losses, upload.num_examples, kept, exponent)
        verdict = Verdict(weights, jnp.where(present, losses, 0.0), present & ~kept)
        return trees.weighted_mean(upload.client_params, weights), verdict, state

    def reference(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        data, present = required(server, "sageflow"), upload.participating
        full = len(data.labels) // data.batch_size * data.batch_size
        whole_batches = data._replace(labels=data.labels[:full], inputs=data.inputs[:full])
        entropy, loss = evaluate(whole_batches, upload.global_params, common_stats(upload), train=True)
        passed = jnp.where(entropy < (2.0 if threshold is None else threshold), 1.0, 0.0)
        raw = jnp.where(present, passed / loss**exponent + 1e-5, 0.0)
        weights = raw / jnp.maximum(raw.sum(), 1e-30)
        verdict = Verdict(weights, jnp.where(present, loss, 0.0), present & (passed == 0))
        return trees.weighted_mean(upload.client_params, weights), verdict, state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=paper if variant == "paper" else reference,
        traits=Traits(linear=True, consensus=True, permutation=True, robust=variant == "paper", stateless=True),
    )


def loss_weights(losses: Array, num_examples: Array, kept: Array, exponent: float) -> Array:
    """[K]: num_examples / losses^exponent over the clients in `kept`, sum 1; all 0 where nobody is kept.

    Losses are divided by the smallest first, so that no power over- or underflows for the best client.
    """
    floored = jnp.maximum(losses, 1e-30)
    smallest = jnp.min(jnp.where(kept, floored, jnp.inf))
    ratios = jnp.where(kept, smallest / floored, 0.0)
    raw = jnp.where(kept, num_examples * ratios**exponent, 0.0)
    return raw / jnp.where(raw.sum() > 0, raw.sum(), 1.0)
