"""FT-SAM: average, then fine-tune the average on clean data with sharpness-aware minimisation.

Source: Zhu, Wei, Shen, Fan, Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV
    2023, section 3: min over w of max over |T_w^-1 e| <= rho of L(w + e), with T_w = diag(|w|) as in Kwon et al.,
    "ASAM", ICML 2021, so that large weights are shaken more. After each round's federated averaging.
Assumes: clean data on the server.
Cost: O(K D) and the server's training, two gradients a step.
Deviations: the paper defends one finished model, for 100 epochs; here every round is followed by `epochs` passes. Its
    authors' label smoothing, falling learning rate and augmentation are left out. Batch statistics stay the average of
    the clients'.
"""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_spmc.aggregators._server_training import Gradient, batch_order, common_stats, hyper_of, required, train
from fedjax_spmc.aggregators.finetuning import mean_then
from fedjax_spmc.options import NON_NEGATIVE, POSITIVE, TRACED, Range
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Params, PRNGKey, ServerData, Stats, Upload


@aggregators.register("ft_sam")
def ft_sam(
    variant: Literal["paper", "reference"] = "paper",
    rho: Annotated[float, POSITIVE, TRACED] | None = None,
    epochs: Annotated[int, Range(1, 10**6)] = 1,
    learning_rate: Annotated[float, POSITIVE, TRACED] | None = None,
    momentum: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
    weight_decay: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
    server: ServerData | None = None,
) -> Aggregator:
    """The mean, weighted by the number of examples, then SGD along gradients taken at w + e; e climbs the loss.

    e = rho T^2 d / (|T d| + 1e-12) with d the gradient at w and T = diag(|w|); the norm is that of all parameters.

    Reference:
        * The mean is uniform.
        * Plain SAM: T is the identity and rho is 0.05.
        * The fine-tuned model is evaluated and saved but never sent: clients go on from the mean.
        * Together with FedProx, gradients left in the server's model enter the first step; not here.

    Traits: the paper's rule is neither linear nor consensus, because the mean is trained further, and not robust,
        because nothing keeps an outlier out of the mean. The reference is not robust, as it is the plain mean; not
        stateless, because the state holds the fine-tuned model.

    Args:
        variant: "paper", or "reference" for what the SPMC code does.
        rho: radius of the neighbourhood; None = 2 in the paper (its value for CIFAR-10), 0.05 in the reference.
        epochs: passes over the server's data in each round.
        learning_rate: of fine-tuning; None = the clients'.
        momentum: of fine-tuning; None = the clients'.
        weight_decay: of fine-tuning; None = the clients'.
        server: clean data on the server.
    """
    adaptive = variant == "paper"
    default = 2.0 if adaptive else 0.05
    radius = default if rho is None else rho

    def step_gradient(gradient: Gradient, params: Params) -> tuple[Params, Stats]:
        climb = ascent(params, gradient(params)[0], radius, adaptive)
        return gradient(jax.tree.map(jnp.add, params, climb))

    def tune(upload: Upload, params: Params, key: PRNGKey) -> Params:
        data = required(server, "ft_sam")
        hyper = hyper_of(data, upload, learning_rate, momentum, weight_decay)
        return train(data, params, common_stats(upload), batch_order(data, epochs, key), hyper, key, step_gradient)

    return mean_then(tune, reference=variant == "reference")


def ascent(params: Params, gradient: Params, rho: Any, adaptive: bool) -> Params:
    """The step e of length rho, in the norm |T^-1 e|, that raises the loss most to first order."""
    scaled = jax.tree.map(lambda w, d: jnp.abs(w) * d, params, gradient) if adaptive else gradient
    factor = rho / (optax.tree.norm(scaled) + 1e-12)
    if adaptive:
        return jax.tree.map(lambda w, s: factor * jnp.abs(w) * s, params, scaled)
    return jax.tree.map(lambda d: factor * d, gradient)
