"""State vectors of `spmc_server_*` as trees: tensors enter as tuples in file order."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.parity.comparison import Arrays
from fedjax_spmc.types import Upload


class Layout(NamedTuple):
    """How a state vector splits into tensors.

    Attributes:
        sizes, shapes: of each tensor.
        trainable: for each tensor whether it is a leaf of the model; the others are batch statistics.
        counters: [D] bool, the entries that are integer counters.
    """

    sizes: list[int]
    shapes: list[tuple[int, ...]]
    trainable: list[bool]
    counters: np.ndarray


def layout_of(arrays: Arrays, buffers: bool = False) -> Layout:
    """Reads the layout of a golden file; with `buffers` all tensors but the integer counters are leaves."""
    names, sizes = [str(name) for name in arrays["tensor_names"]], [int(size) for size in arrays["tensor_sizes"]]
    shapes = [tuple(int(n) for n in str(text).strip("()").split(",") if n.strip()) for text in arrays["tensor_shapes"]]
    counted = [name.endswith("num_batches_tracked") for name in names]
    trainable = [True] * len(names)
    if buffers:
        trainable = [not counter for counter in counted]
    elif "tensor_is_parameter" in arrays:
        trainable = [bool(one) for one in arrays["tensor_is_parameter"]]
    return Layout(sizes, shapes, trainable, np.repeat(counted, sizes))


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


def upload_of(arrays: Arrays, layout: Layout, absent_rows: bool = False, second: bool = False) -> Upload:
    """The upload that the reference's rules saw: one row for each online client, in order.

    Args:
        arrays: of the golden file.
        layout: of its vectors.
        absent_rows: the offline clients stand in it too, behind the others, as rows that do not participate.
        second: the clients of the second call.
    """
    suffix = "_round2" if second else ""
    states = arrays[f"client_state{suffix}"]
    online = np.asarray(arrays[f"online_clients{suffix}"], np.int64)
    ids = np.concatenate([online, np.setdiff1d(np.arange(len(states)), online)]) if absent_rows else online
    params, stats = split(states[ids], layout)
    return Upload(
        global_params=split(arrays["global_state"], layout)[0],
        client_params=params,
        num_examples=jnp.asarray(arrays["sample_counts"][ids], jnp.float32),
        participating=jnp.arange(len(ids)) < len(online),
        client_ids=jnp.asarray(ids, jnp.int32),
        round=jnp.int32(second),
        client_stats=stats,
    )


def unequal_counters(arrays: Arrays, layout: Layout) -> str:
    """The reason to skip a rule that works on the whole state where the clients' integer counters differ, else ""."""
    counted = np.asarray(arrays["client_state"])[np.asarray(arrays["online_clients"])][:, layout.counters]
    unequal = (counted != counted[:1]).any()
    return "integer counters, unequal among the clients, enter the reference's arithmetic" if unequal else ""
