"""Server rules against `spmc_server_*`: golden trees enter as tuples in file order, buffers as batch statistics."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, trees
from fedjax_spmc.federation import average_stats
from fedjax_spmc.parity.walker import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.types import Aggregator, Upload, Verdict

TAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Equal": ("mean", {"weights": "uniform"}),
    "Weight": ("mean", {"weights": "size"}),
    "SPMD": ("spmc", {}),
    "MultiMetric": ("spmc", {}),  # line for line the same computation in the reference
    "SPMD_euc": ("spmc", {"score": "euclidean"}),
    "SPMD_was": ("spmc", {"score": "wasserstein"}),
    "SPED": ("spmc", {"score": "chebyshev"}),
}
"""Tag of the reference -> aggregator and options."""


STATE_SCORES = ("SPMD_euc", "SPED")
"""Rules whose reference scores the whole state, batch statistics and counters included."""


class Layout(NamedTuple):
    """How a state vector splits into tensors: sizes, shapes, whether each is trainable, and integer counters."""

    sizes: list[int]
    shapes: list[tuple[int, ...]]
    trainable: list[bool]
    counters: np.ndarray


def layout_of(arrays: Arrays) -> Layout:
    """Reads the layout of a golden file."""
    names, sizes = [str(name) for name in arrays["tensor_names"]], [int(size) for size in arrays["tensor_sizes"]]
    shapes = [tuple(int(n) for n in str(text).strip("()").split(",") if n.strip()) for text in arrays["tensor_shapes"]]
    trainable = (
        [bool(one) for one in arrays["tensor_is_parameter"]] if "tensor_is_parameter" in arrays else [True] * len(names)
    )
    counters = np.repeat([name.endswith("num_batches_tracked") for name in names], sizes)
    return Layout(sizes, shapes, trainable, counters)


def split(vectors: np.ndarray, layout: Layout) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """State vectors [..., D] as (parameters, buffers), tuples of float32 tensors in file order."""
    pieces = np.split(np.asarray(vectors, np.float32), np.cumsum(layout.sizes)[:-1], axis=-1)
    lead = np.shape(vectors)[:-1]
    shaped = [jnp.asarray(p.reshape(lead + shape)) for p, shape in zip(pieces, layout.shapes, strict=True)]
    chosen = list(zip(shaped, layout.trainable, strict=True))
    return tuple(x for x, keep in chosen if keep), tuple(x for x, keep in chosen if not keep)


def join(params: Any, stats: Any, layout: Layout, rows: bool = False) -> np.ndarray:
    """The state vector(s) of (parameters, buffers), in file order; with `rows`, [K, D]."""
    trainable, buffers = iter(jax.tree.leaves(params)), iter(jax.tree.leaves(stats))
    ordered = [np.asarray(next(trainable) if keep else next(buffers)) for keep in layout.trainable]
    return np.concatenate([x.reshape(len(x), -1) if rows else x.ravel() for x in ordered], axis=-1)


def upload_of(arrays: Arrays, layout: Layout, absent_rows: bool = False) -> Upload:
    """The upload that the reference's rules saw: one row for each online client, in order.

    With `absent_rows` the offline clients stand in it too, as rows that do not participate.
    """
    online = np.asarray(arrays["online_clients"], np.int64)
    ids = online
    if absent_rows:
        ids = np.concatenate([online, np.setdiff1d(np.arange(len(arrays["client_state"])), online)])
    global_params, _ = split(arrays["global_state"], layout)
    params, stats = split(arrays["client_state"][ids], layout)
    return Upload(
        global_params=global_params,
        client_params=params,
        num_examples=jnp.asarray(arrays["sample_counts"][ids], jnp.float32),
        participating=jnp.arange(len(ids)) < len(online),
        client_ids=jnp.asarray(ids, jnp.int32),
        client_stats=stats,
    )


@functools.cache
def _rule(name: str, **options: Any) -> Aggregator:
    """A rule under jit, one object for all files, so that equal shapes are compiled once."""
    rule = aggregators.make(name, **options)
    return rule._replace(aggregate=jax.jit(rule.aggregate))


_coalitions = jax.jit(trees.leave_one_out_mean)


def aggregate(tag: str, upload: Upload, arrays: Arrays, layout: Layout) -> tuple[np.ndarray, Verdict]:
    """Our new state vector and verdict for a tag of the reference."""
    name, options = TAGS[tag]
    rule = _rule(name, **options)
    state = rule.init(upload.global_params, len(arrays["client_state"]))
    params, verdict, _ = rule.aggregate(upload, state, jax.random.key(0))
    _, old_stats = split(arrays["global_state"], layout)
    stats = average_stats(upload, upload.participating, verdict, old_stats)
    return join(params, stats, layout), verdict


@kind(r"spmc_server_(toy|cnn)_.*")
def server_rules(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Every tag of a file: compared, or skipped with the reason."""
    layout = layout_of(arrays)
    tags = dict.fromkeys(name.split("__")[0] for name in arrays if "__" in name)
    for tag in tags:
        if tag not in TAGS:
            continue
        upload = upload_of(arrays, layout)
        if tag in STATE_SCORES and layout.counters.any():
            reason = "the reference scores integer counters, which no upload of ours holds among its weights"
            yield skipped(f"server {tag}", source, reason)
            continue
        fault = reference_fault(arrays, tag)
        if fault:
            yield _skip_fault(tag, source, fault, upload, arrays, layout)
        else:
            yield _compare(tag, source, upload, arrays, layout)
    unknown = [tag for tag in tags if tag not in TAGS]
    if unknown:
        yield skipped("server rules", source, f"no rule of ours yet for {', '.join(unknown)}")


def reference_fault(arrays: Arrays, tag: str) -> str:
    """Why the reference itself fails on a case, or "": it raised, or every number that it gave is NaN."""
    if f"{tag}__error" in arrays:
        return f"the reference raises {str(arrays[f'{tag}__error'])[:80]}"
    outputs = [arrays[name] for name in arrays if name.startswith(f"{tag}__global") or name == f"{tag}__weights"]
    # A few NaN among numbers are no failure of the reference but a damaged file: they are compared, and fail.
    return "the reference gives NaN" if outputs and all(np.isnan(one).all() for one in outputs) else ""


def _skip_fault(tag: str, source: str, fault: str, upload: Upload, arrays: Arrays, layout: Layout) -> Outcome:
    try:
        ours, _ = aggregate(tag, upload, arrays, layout)
    except ValueError as error:
        return skipped(f"server {tag}", source, f"{fault}; ours raises ValueError: {error}")
    if not np.isfinite(ours).all():
        return Outcome(f"server {tag}", source, 1, float("inf"), None, "failed", f"{fault}; ours is not finite either")
    return skipped(f"server {tag}", source, f"{fault}; ours is finite")


def _compare(tag: str, source: str, upload: Upload, arrays: Arrays, layout: Layout) -> Outcome:
    comparison = Comparison(f"server {tag}")
    ours, verdict = aggregate(tag, upload, arrays, layout)
    stride = int(arrays["sample_stride"]) if "sample_stride" in arrays else 1
    slack = np.where(layout.counters, 1.0, 0.0)
    weights = np.asarray(verdict.weights)
    # The files hold different forms of the new model; every form that is there is compared, and one must be.
    forms = {
        "global": (ours, slack),
        "global_sample": (ours[::stride], slack[::stride]),
        "global_norm_and_sum": (
            np.array([np.linalg.norm(ours.astype(np.float64)), ours.astype(np.float64).sum()]),
            0.0,
        ),
    }
    present = [name for name in forms if f"{tag}__{name}" in arrays]
    if "global" not in present and "global_sample" not in present:
        raise KeyError(f"array '{tag}__global' is missing")
    for name in present:
        comparison.add(name, forms[name][0], arrays[f"{tag}__{name}"], forms[name][1])
    comparison.add("weights", weights, arrays[f"{tag}__weights"])
    if f"{tag}__aggregated_weights" in arrays:
        comparison.add("aggregated_weights", weights, arrays[f"{tag}__aggregated_weights"])
    if f"{tag}__exp_argument" in arrays:
        similarity = -np.asarray(verdict.scores, np.float64)
        shift = {"SPMD": similarity.max() - 1e-5, "MultiMetric": similarity.max() - 1e-5, "SPED": similarity.max()}
        comparison.add("exp_argument", similarity - shift.get(tag, 0.0), arrays[f"{tag}__exp_argument"])
    coalitions = None
    if any(name.startswith(f"{tag}__coalitions") for name in arrays):
        rows = _coalitions(upload.client_params), _coalitions(upload.client_stats)
        coalitions = join(*rows, layout, rows=True)
    if coalitions is not None and f"{tag}__coalitions" in arrays:
        comparison.add("coalitions", coalitions, arrays[f"{tag}__coalitions"], slack[None])
    if coalitions is not None and f"{tag}__coalitions_sample" in arrays:
        comparison.add("coalitions_sample", coalitions[:, ::stride], arrays[f"{tag}__coalitions_sample"])
    if len(arrays["online_clients"]) < len(arrays["client_state"]):
        beside, _ = aggregate(tag, upload_of(arrays, layout, absent_rows=True), arrays, layout)
        comparison.add("the same beside absent rows", beside, ours, slack)
    return comparison.outcome(source)
