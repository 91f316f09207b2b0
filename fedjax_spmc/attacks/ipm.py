"""IPM, inner product manipulation: attackers send a negative multiple of the mean update of the others.

Source: Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI 2019;
    the factor and the search for it are those of the library byzfl 0.0.11.
Knows: the benign uploads of the round, or its own alone (`knowledge`); with `optimise` the server's rule.
Controls: its own upload.
Cost: O(K D); with `optimise` 20 aggregations; with `knowledge="own"` in a list that reaches into training, a second
    training of each attacking client.
Deviations: made for gradients, which the server subtracts; on updates the formula is the same. Batch statistics and
    extras are sent as they were trained.
"""

from typing import Annotated

from fedjax_spmc.attacks._search import line_search, through_the_server
from fedjax_spmc.attacks._updates import Knowledge, Known, crafting, mean_of
from fedjax_spmc.options import NON_NEGATIVE, TRACED, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, State, Upload

EPSILON = 2.0


@attacks.register("ipm")
def ipm(
    epsilon: Annotated[float, NON_NEGATIVE, TRACED] | None = None,
    optimise: bool = False,
    knowledge: Knowledge = "benign",
) -> Attack:
    """Uploads g - epsilon m, with g the broadcast model and m the mean of the updates that are known.

    Args:
        epsilon: how far; None = 2 (byzfl). A small one stays among the others, one above (K - f) / f turns the mean of
            all uploads round.
        optimise: whether epsilon is searched anew in each round, so that the server's model comes to lie far from the
            mean of the updates that are known.
        knowledge: "benign": all uploads of the round but the attackers'; "own": what the attacking clients train on
            their clean data.
    """
    if optimise:
        refuse_unused(ipm, "optimise = True", {"epsilon": epsilon}, "attack")

    def make(ctx: AttackContext, own: State, known: Known, upload: Upload, key: PRNGKey) -> tuple[Array, State]:
        del key
        mean = mean_of(known.updates, known.mask)
        if not optimise:
            return -(EPSILON if epsilon is None else epsilon) * mean, own
        distance = through_the_server(ctx, known, upload, lambda strength: -strength * mean)
        return -line_search(distance, mean.dtype) * mean, own

    return Attack(craft=crafting(knowledge, make))
