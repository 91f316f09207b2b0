"""FedProx: local training that is pulled back towards the model that was broadcast.

Source: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
    equation (2): h(w) = F_k(w) + mu / 2 |w - w_t|^2; Algorithm 2.
Assumes: nothing; mu is tuned by hand.
Cost: one gradient a step.
Deviations: every client works for the config's number of epochs, where the paper lets each solve the problem only up to
    its own accuracy gamma_k; the local solver is SGD with the config's momentum.
"""

from typing import Annotated, Literal

import jax

from fedjax_spmc.local_rules.sgd import sgd
from fedjax_spmc.options import NON_NEGATIVE, TRACED
from fedjax_spmc.registry import local_rules
from fedjax_spmc.types import Array, Batch, Context, LocalRule, Params, PRNGKey, State, Stats

REFERENCE_FACTOR = 0.01
"""What the SPMC code multiplies mu with."""


@local_rules.register("fedprox")
def fedprox(
    variant: Literal["paper", "reference"] = "paper", mu: Annotated[float, NON_NEGATIVE, TRACED] = 0.01
) -> LocalRule:
    """SGD on the mean cross entropy plus the proximal term: gradient + mu (w - g), g the broadcast model.

    Reference:
        * The pull is 0.01 mu (w - g), a hundredth of the paper's.

    Args:
        variant: "paper" or "reference".
        mu: weight of the proximal term. The paper tunes it for each data set within 0.001 to 1; 0.01 is what the SPMC
            code sets.
    """
    plain = sgd()
    strength = mu if variant == "paper" else REFERENCE_FACTOR * mu

    def gradients(
        ctx: Context, params: Params, stats: Stats, batch: Batch, client_state: State, key: PRNGKey
    ) -> tuple[Params, Stats, dict[str, Array]]:
        grads, new_stats, metrics = plain.gradients(ctx, params, stats, batch, client_state, key)
        pulled = jax.tree.map(lambda d, w, g: d + strength * (w - g), grads, params, ctx.variables.params)
        return pulled, new_stats, metrics

    return LocalRule(gradients=gradients)
