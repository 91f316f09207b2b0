"""SGD: plain local training, the local half of federated averaging.

Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
    Algorithm 1, ClientUpdate.
Assumes: nothing.
Cost: one gradient a step.
"""

from typing import Any

import jax

from fedjax_spmc.losses import cross_entropy
from fedjax_spmc.models.on_batch import train_logits
from fedjax_spmc.registry import local_rules
from fedjax_spmc.types import Array, Batch, Context, LocalRule, Params, PRNGKey, State, Stats


@local_rules.register("sgd")
def sgd() -> LocalRule:
    """Mean cross entropy; the optimiser (momentum, weight decay) is the config's.

    The SPMC code trains one local epoch with it, whatever the setting: so does the preset `reference`.
    """

    def gradients(
        ctx: Context, params: Params, stats: Stats, batch: Batch, client_state: State, key: PRNGKey
    ) -> tuple[Params, Stats, dict[str, Array]]:
        del client_state

        def loss(params: Params) -> tuple[Array, Any]:
            logits, new_stats = train_logits(ctx.model, params, stats, batch.inputs, batch.valid, key)
            return cross_entropy(logits, batch.labels, batch.valid), new_stats

        (value, new_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, new_stats, {"loss": value}

    return LocalRule(gradients=gradients)
