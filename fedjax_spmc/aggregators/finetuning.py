"""Fine-tuning: average, then train the average a little on the server's clean data.

Source: fine-tuning on clean data as a defence against backdoors, a baseline of Liu, Dolan-Gavitt, Garg, "Fine-Pruning",
    RAID 2018, section 3; here after each round's federated averaging (McMahan et al., AISTATS 2017, Algorithm 1).
Assumes: clean data on the server.
Cost: O(K D) and the server's training.
Deviations: no augmentation on the server. Batch statistics stay the average of the clients'.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators._server_training import batch_order, common_stats, hyper_of, required, train
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED, Range
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, ServerData, State, Traits, Upload, Verdict


@aggregators.register("finetuning")
def finetuning(
    variant: Literal["paper", "reference"] = "paper",
    epochs: Annotated[int, Range(1, 10**6)] = 1,
    learning_rate: Annotated[float, POSITIVE, TRACED] | None = None,
    momentum: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
    weight_decay: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
    server: ServerData | None = None,
) -> Aggregator:
    """The mean, weighted by the number of examples, then SGD on the server's data; the result is the global model.

    Reference:
        * The mean is uniform.
        * The fine-tuned model is evaluated and saved but never sent: clients go on from the mean, and the next round's
          aggregation forgets it.
        * Together with FedProx the code pulls clients towards the fine-tuned model; here towards the mean.

    Traits: the paper's rule is neither linear nor consensus, because the mean is trained further, and not robust,
        because nothing keeps an outlier out of the mean. The reference is not robust, as it is the plain mean; not
        stateless, because the state holds the fine-tuned model.

    Args:
        variant: "paper", or "reference" for what the SPMC code does.
        epochs: passes over the server's data in each round.
        learning_rate: of fine-tuning; None = the clients'.
        momentum: of fine-tuning; None = the clients'.
        weight_decay: of fine-tuning; None = the clients'.
        server: clean data on the server.
    """

    def tune(upload: Upload, params: Params, key: PRNGKey) -> Params:
        data = required(server, "finetuning")
        hyper = hyper_of(data, upload, learning_rate, momentum, weight_decay)
        return train(data, params, common_stats(upload), batch_order(data, epochs, key), hyper, key)

    return mean_then(tune, reference=variant == "reference")


def mean_then(tune: Callable[[Upload, Params, PRNGKey], Params], reference: bool) -> Aggregator:
    """The rule that averages and hands the average to `tune`.

    Args:
        tune: (upload, mean, key) -> the fine-tuned model.
        reference: the mean is uniform and stays the global model; the fine-tuned one is only evaluated.
    """

    def shares(upload: Upload) -> Array:
        share = upload.participating.astype(jnp.float32)
        share = share if reference else share * upload.num_examples
        return share / jnp.maximum(share.sum(), 1e-30)

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        weights = shares(upload)
        mean = trees.weighted_mean(upload.client_params, weights)
        tuned = tune(upload, mean, key)
        none = jnp.zeros_like(weights)
        verdict = Verdict(weights, none, none > 0)
        return (mean, verdict, tuned) if reference else (tuned, verdict, state)

    traits = Traits(linear=reference, consensus=reference, permutation=True, robust=False, stateless=not reference)
    if not reference:
        return Aggregator(init=lambda global_params, num_clients: (), aggregate=aggregate, traits=traits, flags=False)
    return Aggregator(
        init=lambda global_params, num_clients: global_params,
        aggregate=aggregate,
        traits=traits,
        flags=False,
        evaluated=lambda params, state: state,
    )
