"""Median: every number of the model is the median of the clients' numbers.

Source: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
    ICML 2018, Definition 1 and Algorithm 1, option I.
Assumes: fewer than half of the uploads are malicious.
Cost: O(K D).
Deviations: the paper takes the median of gradients, here it is that of the uploaded models, which is the same for the
    median of models that begin at one global model.
"""

from fedjax_spmc.aggregators import _order
from fedjax_spmc.aggregators._coordinates import by_coordinate, by_distance
from fedjax_spmc.registry import aggregators
from fedjax_spmc.types import Aggregator, Params, PRNGKey, State, Traits, Upload, Verdict


@aggregators.register("median")
def median() -> Aggregator:
    """Coordinate-wise median of the uploads; of an even number of them the mean of the two middle values.

    A client's weight is the share of numbers of which it holds the middle (half of each of two middles); clients with
    the same number share alike. Scores are distances from the new model. Nobody is flagged: nobody is left out whole.

    Traits: not linear, because every number comes from other clients than the next."""

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        del key
        model, weights = by_coordinate(
            lambda block: _order.median(block, upload.participating), upload, upload.client_params
        )
        return model, by_distance(upload, model, weights), state

    return Aggregator(
        init=lambda global_params, num_clients: (),
        aggregate=aggregate,
        traits=Traits(linear=False, consensus=True, permutation=True, robust=True, stateless=True),
        flags=False,
    )
