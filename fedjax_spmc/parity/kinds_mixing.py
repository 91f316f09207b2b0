"""Pre-aggregators against `defences_mixing*`, and beside the library byzfl where it is installed."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import preaggregators
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import TOLERANCE, Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.kinds_byzfl import COLUMNS, UPLOADS, installed
from fedjax_spmc.preaggregators.bucketing import with_draw
from fedjax_spmc.types import PreAggregator, Upload

INPUTS = ("updates", "f", "bucket", "bucket_permutation", "clip_bound", "malicious", "monna_pivot")
DRAWS = "_draws"


@kind(r"defences_mixing.*")
def mixing(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The rows that nnm, bucketing and clip make of each case's updates; relative to the largest number of a case."""
    cases = [str(name) for name in arrays["case_names"]]
    made = {field: Comparison(f"mixing {field}") for field in ("nnm", "bucketing", "clipping")}
    for case in cases:
        updates = np.asarray(arrays[f"{case}__updates"], np.float32)
        permutation = jnp.asarray(arrays[f"{case}__bucket_permutation"])
        parts = {
            "nnm": preaggregators.make(["nnm"], **{"nnm.attackers": int(arrays[f"{case}__f"])})["nnm"],
            "bucketing": with_draw(lambda key, count, drawn=permutation: drawn, int(arrays[f"{case}__bucket"])),
            "clipping": preaggregators.make(["clip"], **{"clip.bound": float(arrays[f"{case}__clip_bound"])})["clip"],
        }
        for field, part in parts.items():
            _add(made[field], f"{case}__{field}", mixed(part, updates), arrays[f"{case}__{field}"])
    for comparison in made.values():
        yield comparison.outcome(source)
    fields = {key.partition("__")[2] for key in arrays if "__" in key}
    other = sorted(one for one in fields - {*INPUTS, *made} if not one.endswith(DRAWS))
    if other:
        yield skipped("mixing", source, f"no such pre-aggregator or rule here: {', '.join(other)}")
    yield from beside_the_library()


def mixed(part: PreAggregator, updates: np.ndarray) -> np.ndarray:
    """[R, D]: the rows that come out of a pre-aggregator for updates [K, D]."""
    num_clients, size = updates.shape
    upload = Upload(
        global_params={"w": jnp.zeros(size)},
        client_params={"w": jnp.asarray(updates, jnp.float32)},
        num_examples=jnp.ones(num_clients),
        participating=jnp.ones(num_clients, bool),
        client_ids=jnp.arange(num_clients),
        steps=jnp.ones(num_clients, jnp.int32),
    )
    made = jax.jit(lambda upload: part.mix(upload, root_key(0))[0])(upload)
    return np.asarray(made.client_params["w"])


def beside_the_library() -> Iterator[Outcome]:
    """Made-up updates, 5 to 20 a round, one of them ten times as long, to nnm and clip and to those of byzfl."""
    byzfl, reason = installed()
    if byzfl is None:
        yield skipped("mixing, byzfl installed", "byzfl", reason)
        return
    rng = np.random.default_rng(0)
    comparisons = {name: Comparison(f"mixing, byzfl installed: {name}") for name in ("nnm", "clip")}
    for uploads in UPLOADS:
        attackers, bound = (uploads - 1) // 4, 5.0
        updates = rng.normal(size=(uploads, COLUMNS)).astype(np.float32)
        updates[-1] *= 10
        theirs = {"nnm": byzfl.NNM(attackers), "clip": byzfl.Clipping(bound)}
        chain = preaggregators.make(["nnm", "clip"], **{"nnm.attackers": attackers, "clip.bound": bound})
        for name, comparison in comparisons.items():
            _add(comparison, f"{name} of {uploads}", mixed(chain[name], updates), theirs[name](updates.copy()))
    for comparison in comparisons.values():
        yield comparison.outcome("byzfl")


def _add(comparison: Comparison, name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Compares within 1e-5 of the largest number."""
    scale = max(float(np.abs(theirs).max(initial=0.0)), TOLERANCE)
    comparison.add(name, ours / scale, np.asarray(theirs) / scale)
