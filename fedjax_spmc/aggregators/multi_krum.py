"""Multi-Krum: average the uploads that lie closest to their neighbours.

Source: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", NeurIPS 2017, section 4 (the score) and the Multi-Krum variant of their experiments.
Assumes: at most f of the n uploads are malicious, n >= 2 f + 3.
Cost: O(K^2 D): one Gram matrix, and one more for every group of uploads that lie much closer to each other than to the
    rest; memory O(K^2 + K D).
Deviations: ties go to the lowest row. The paper leaves m, the number of uploads to average, open.
"""

from typing import Annotated, Literal

import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators import _krum
from fedjax_spmc.aggregators._coordinates import Bound
from fedjax_spmc.aggregators.krum import momentum_on_private_model, select
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import Range, refuse_unused
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Traits, Upload, Verdict

REFERENCE_KEEP = 5


@aggregators.register("multi_krum")
def multi_krum(
    variant: Literal["paper", "reference"] = "paper",
    attackers: Annotated[int, Range(0, 10**6)] | None = None,
    keep: Annotated[int, Range(1, 10**6)] | None = None,
) -> Aggregator:
    """Averages the m uploads with the smallest sums of squared distances to their n - f - 2 nearest others.

    Weights are 1 / m for the selected clients and 0 for the others, who are flagged; scores are the sums of distances.

    Reference:
        * Sums plain distances, not squared ones, and to all others.
        * Averages the 5 uploads of lowest score.
        * The scores of the first two clients of the round stand in swapped places when ranks are read as rows: either
          is selected on the strength of the other's score.
        * Server momentum 0.9 on the averaged update.
        * The momentum moves a private model that begins as a freshly drawn random network, as in `krum`.

    Traits: the reference is not linear, not stateless and has no consensus, because the new model is the private model
        moved by its momentum; not permutation and not robust, because of the swap of the first two clients.

    Args:
        variant: the paper's rule or that of the SPMC code.
        attackers: f; None: the largest that the theory allows for n usable uploads, (n - 3) // 2 or 0.
        keep: m, how many uploads to average; None: n - f.

    Raises:
        ConfigError: too many attackers for the uploads, more to keep than there are, or options with the reference.
    """
    if variant == "reference":
        refuse_unused(multi_krum, "variant = 'reference'", {"attackers": attackers, "keep": keep})
        return momentum_on_private_model(_reference_selection, permutation=False)
    bound = Bound("multi_krum", 2, 3, attackers)

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        present = upload.participating
        if keep is not None and keep > len(present):
            raise ConfigError(
                f"aggregator.options.keep = {keep} is not allowed with {len(present)} uploads a round: it must be at "
                "most their number."
            )
        usable = present.sum()
        assumed = bound.attackers_among(usable, len(present))
        scores = _krum.krum_scores(_krum.squared_distances(upload), present, assumed)
        verdict = select(scores, present, usable - assumed if keep is None else keep)
        return trees.weighted_mean(upload.client_params, verdict.weights), verdict, state

    def chosen(num_clients: int) -> dict[str, int]:
        filled = bound.chosen(num_clients)
        if keep is None:
            filled["keep"] = num_clients - (filled.get("attackers", 0) if attackers is None else attackers)
        return filled

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=True, consensus=True, permutation=True, robust=True, stateless=True),
        min_clients=bound.needed(),
        chosen=chosen,
    )


def _reference_selection(scores: Array, present: Array) -> Array:
    selected = _krum.lowest(scores, present, jnp.clip(present.sum(), 1, REFERENCE_KEEP))
    first = jnp.argmax(present)
    second = jnp.argmax(present & (jnp.arange(len(present)) != first))
    # With a single client both are its own row or an absent one, and nothing is swapped.
    swapped = selected.at[first].set(selected[second]).at[second].set(selected[first])
    return jnp.where(present.sum() > 1, swapped, selected)
