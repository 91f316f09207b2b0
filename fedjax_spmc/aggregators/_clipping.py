"""What the rules that measure and cut the length of updates share, and those that add noise."""

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.types import Array, Params, PRNGKey, Upload


def median_of(values: Array, mask: Array) -> Array:
    """The median of those of [K] values for which the mask holds (the mean of the middle two); 0 if there is none."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    count = mask.sum()
    middle = (ordered[jnp.maximum(count - 1, 0) // 2] + ordered[jnp.minimum(count // 2, len(values) - 1)]) / 2
    return jnp.where(count > 0, middle, 0.0)


def clip_factors(norms: Array, bound: float | Array) -> Array:
    """min(1, bound / norm), elementwise; 1 for a norm of 0."""
    return jnp.where(norms > bound, bound / jnp.where(norms > bound, norms, 1.0), 1.0)


def median_clipped_mean(upload: Upload, updates: Params, admitted: Array) -> tuple[Params, Array, Array]:
    """The mean of the admitted updates, each cut to the median length of all usable ones, added to the global model.

    Args:
        upload: whose rows `participating` are measured.
        updates: stacked; the uploads minus the global model.
        admitted: [K] bool, which rows enter the mean.

    Returns:
        The model; [K] shares of sum 1 in the clipped mean, all 0 if nobody is admitted; the median length.
    """
    norms = trees.client_norm(updates)
    bound = median_of(norms, upload.participating)
    factors = jnp.where(admitted, clip_factors(norms, bound), 0.0)
    step = trees.weighted_mean(updates, factors / jnp.maximum(admitted.sum(), 1))
    # With a median of 0 the factors may vanish for all of them: the admitted then share alike in the global model.
    shares = jnp.where(factors.sum() > 0, factors, admitted.astype(jnp.float32))
    return jax.tree.map(jnp.add, upload.global_params, step), shares / jnp.maximum(shares.sum(), 1e-30), bound


def standard_noise(key: PRNGKey, params: Params) -> Params:
    """Standard normal numbers shaped like `params`."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return structure.unflatten([jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def is_noisy(level: float | Array) -> bool:
    """Whether noise of this strength is added: a traced one may be anything, only a plain 0 is known to be none."""
    return not isinstance(level, (int, float)) or level > 0
