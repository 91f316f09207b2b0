"""What the rules that work on single numbers and on sorted uploads share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import trees
from fedjax_spmc.aggregators import _order
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Array, Params, Upload, Verdict

MOMENTUM = 0.9
"""Server momentum of several rules of the SPMC code."""


class Bound(NamedTuple):
    """How many attackers f a rule withstands: it needs slope * f + offset uploads.

    Attributes:
        rule: its name.
        slope, offset: what f attackers need.
        attackers: f as given, or None for the largest.
    """

    rule: str
    slope: int
    offset: int
    attackers: int | None

    def needed(self) -> int:
        """The fewest usable uploads."""
        return self.slope * (self.attackers or 0) + self.offset

    def attackers_among(self, usable: Array, num_clients: int) -> Array:
        """f among `usable` uploads (traced) of at most `num_clients`.

        Raises:
            ConfigError: so many attackers cannot be withstood by `num_clients` uploads.
        """
        if self.attackers is None:
            return jnp.maximum((usable - self.offset) // self.slope, 0)
        if num_clients < self.needed():
            raise ConfigError(
                f"aggregator.options.attackers = {self.attackers} is not allowed with {num_clients} uploads a round: "
                f"{self.rule} needs {self.slope} f + {self.offset} = {self.needed()}."
            )
        return jnp.asarray(self.attackers)

    def chosen(self, num_clients: int) -> dict[str, Any]:
        """What `attackers` = None means for `num_clients` uploads."""
        if self.attackers is not None:
            return {}
        return {"attackers": max((num_clients - self.offset) // self.slope, 0)}


def by_coordinate(
    function: Callable[[Array], tuple[Array, Array]], upload: Upload, stacked: Params
) -> tuple[Params, Array]:
    """Applies a rule for single numbers to every number of the model.

    Args:
        function: [K, B] -> ([B] values, [K, B] shares), see `_order.by_columns`.
        upload: for the structure of the model.
        stacked: leaves [K, ...], what the rule is applied to.

    Returns:
        The values as a tree like the model, and [K] shares averaged over all numbers.
    """
    values, shares = _order.by_columns(function, trees.ravel_clients(stacked).astype(jnp.float32))
    return unravel(values, upload.global_params), shares


def unravel(vector: Array, like: Params) -> Params:
    """The tree whose leaves, raveled and joined, are `vector`; shapes and dtypes as in `like`."""
    leaves, structure = jax.tree.flatten(like)
    ends: Sequence[int] = np.cumsum([leaf.size for leaf in leaves]).tolist()
    pieces = [
        vector[end - leaf.size : end].reshape(leaf.shape).astype(leaf.dtype)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, pieces)


def by_distance(upload: Upload, model: Params, weights: Array, flagged: Array | None = None) -> Verdict:
    """A verdict whose scores are the distances of the uploads from the new model."""
    scores = trees.client_norm(trees.subtract(upload.client_params, model)).astype(jnp.float32)
    return Verdict(
        weights=weights,
        scores=jnp.where(upload.participating, scores, 0.0),
        flagged=jnp.zeros_like(upload.participating) if flagged is None else flagged,
    )


def add(tree: Params, other: Params, factor: float = 1.0) -> Params:
    """factor * tree + other, leaf by leaf."""
    return jax.tree.map(lambda x, y: factor * x + y, tree, other)
