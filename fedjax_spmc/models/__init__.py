"""Networks by name, and their parameters as torch lays them out.

`jax.tree.leaves(params)` of every model stands in torch's registration order and every leaf in torch's layout, so that
the flat vector of a model is the concatenation of its raveled leaves.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import registry
from fedjax_spmc.keys import root_key
from fedjax_spmc.models.layers import paths
from fedjax_spmc.types import Array, Model, Params, Variables

__all__ = ["describe", "from_torch", "from_torch_dict", "make", "names", "to_torch", "to_torch_dict"]

make = registry.models.make
names = registry.models.names
describe = registry.models.describe


def _shapes(model: Model) -> Variables:
    return jax.eval_shape(model.init, root_key(0))


def from_torch(model: Model, flat: Any) -> Params:
    """Cuts a flat vector [D] in torch's registration order into parameters; keeps its dtype.

    Raises:
        ValueError: the vector is not as long as the model has parameters.
    """
    flat = jnp.asarray(flat)
    leaves, structure = jax.tree.flatten(_shapes(model).params)
    size = sum(math.prod(leaf.shape) for leaf in leaves)
    if flat.shape != (size,):
        raise ValueError(f"this model has {size} parameters, but the flat vector has the shape {flat.shape}.")
    ends = np.cumsum([math.prod(leaf.shape) for leaf in leaves])[:-1]
    parts = [part.reshape(leaf.shape) for part, leaf in zip(jnp.split(flat, ends), leaves, strict=True)]
    return jax.tree.unflatten(structure, parts)


def to_torch(params: Params) -> Array:
    """The parameters as one flat vector [D] in torch's registration order: the inverse of `from_torch`."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(params)])


def to_torch_dict(variables: Variables) -> dict[str, np.ndarray]:
    """Parameters and batch statistics under torch's names ("conv1.weight") and in torch's shapes."""
    named: dict[str, np.ndarray] = {}
    for tree in variables:
        for path, leaf in zip(paths(tree), jax.tree.leaves(tree), strict=True):
            named[".".join(path)] = np.asarray(leaf)
    return named


def from_torch_dict(model: Model, mapping: Mapping[str, Any]) -> Variables:
    """Reads what `to_torch_dict` wrote, or a torch state dictionary turned into arrays.

    Raises:
        ValueError: an entry is missing, unknown or of another shape.
    """
    shapes = _shapes(model)
    expected = [".".join(path) for tree in shapes for path in paths(tree)]
    for name in expected:
        if name not in mapping:
            raise ValueError(f"entry {name!r} is missing.")
    for name in mapping:
        if name not in expected:
            raise ValueError(f"entry {name!r} is unknown to this model; it knows {', '.join(expected)}.")
    leaves, structure = jax.tree.flatten(shapes)
    values = []
    for name, leaf in zip(expected, leaves, strict=True):
        value = jnp.asarray(mapping[name], leaf.dtype)
        if value.shape != leaf.shape:
            raise ValueError(f"entry {name!r} has the shape {value.shape}, but the model needs {leaf.shape}.")
        values.append(value)
    return jax.tree.unflatten(structure, values)
