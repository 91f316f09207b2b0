"""The third-party form of SPMC's server half against `defences_spmc_margin*`."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind
from fedjax_spmc.types import Aggregator, Upload, Verdict

THIRD_PARTY = {"mapping": "relu_softmax", "space": "updates", "eps": 0.0}


@kind(r"defences_spmc_margin.*")
def margin(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Cosines, weights and the sum of each case's updates, within 1e-5; its zeros of weights are flags."""
    compared = {field: Comparison(f"spmc margin {field}") for field in ("cosines", "weights", "aggregate")}
    flags = Comparison("spmc margin flags", 0.0)
    for case in (str(name) for name in arrays["case_names"]):
        rule = aggregators.make("spmc", temperature=float(arrays[f"{case}__temperature"]), **THIRD_PARTY)
        aggregate, verdict = margin_of(rule, np.asarray(arrays[f"{case}__updates"], np.float32))
        made = {"cosines": -np.asarray(verdict.scores), "weights": np.asarray(verdict.weights), "aggregate": aggregate}
        for field, comparison in compared.items():
            comparison.add(f"{case}__{field}", made[field], np.asarray(arrays[f"{case}__{field}"]))
        flags.add(f"{case}__weights == 0", verdict.flagged, np.asarray(arrays[f"{case}__weights"]) == 0)
    for comparison in (*compared.values(), flags):
        yield comparison.outcome(source)


def margin_of(rule: Aggregator, updates: np.ndarray) -> tuple[np.ndarray, Verdict]:
    """[D] and the verdict: a rule's new model, begun at zero, for updates [K, D]."""
    num_clients, size = updates.shape
    upload = Upload(
        global_params={"w": jnp.zeros(size)},
        client_params={"w": jnp.asarray(updates)},
        num_examples=jnp.ones(num_clients),
        participating=jnp.ones(num_clients, bool),
        client_ids=jnp.arange(num_clients),
    )
    params, verdict, _ = jax.jit(rule.aggregate)(upload, (), root_key(0))
    return np.asarray(params["w"]), verdict
