"""FDCR, client half: plain local training, then the Fisher information of the client's own data is sent along.

Source: Huang et al., "Parameter Disparities Dissection for Backdoor Defense in Heterogeneous Federated Learning",
    NeurIPS 2024, Eq. 5 and Algorithm 1.
Assumes: clients send an honest Fisher.
Cost: one gradient a step, one more pass over the client's data, and one more model to send.
Deviations: the paper's clients send the importances of Eq. 6; as in the code the server makes them from the Fisher.
    The code also evaluates the Fisher before training in round 0 and throws it away.
"""

from typing import Annotated, Any

from fedjax_spmc import fisher
from fedjax_spmc.local_rules.sgd import sgd
from fedjax_spmc.options import Range, refuse_unused
from fedjax_spmc.registry import local_rules
from fedjax_spmc.types import ClientData, Context, LocalRule, PRNGKey, State, Variables


@local_rules.register("fdcr")
def fdcr(
    fisher_kind: fisher.Kind = "per_sample", fisher_chunk: Annotated[int, Range(1, 10**6)] | None = None
) -> LocalRule:
    """SGD; sends extras["fisher"] at the trained model, over one epoch that is shuffled and augmented anew.

    The data are the client's training data, which are poisoned where the client is malicious; an incomplete batch is
    left out where training leaves it out (`local.drop_last`).

    Args:
        fisher_kind: "per_sample" (the paper's Eq. 5), "batch" (a public reproduction) or "authors" (the authors'
            optimiser); see `fedjax_spmc.fisher.estimate`.
        fisher_chunk: samples whose gradients "per_sample" holds at once; what None stands for is said there.
    """
    if fisher_kind != "per_sample":
        refuse_unused(fdcr, f"fisher_kind = {fisher_kind!r}", {"fisher_chunk": fisher_chunk}, "local")

    def finish(
        ctx: Context, variables: Variables, client_state: State, data: ClientData, key: PRNGKey
    ) -> dict[str, Any]:
        del client_state
        trained = ctx.epochs * data.num_batches
        behind = data._replace(gather=lambda step, key: data.gather(trained + step, key))
        return {"fisher": fisher.estimate(fisher_kind, ctx.model, variables, behind, fisher_chunk, False, key)}

    return LocalRule(gradients=sgd().gradients, finish=finish, sends=("fisher",), extra_passes=1)
