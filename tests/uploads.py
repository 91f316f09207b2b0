"""Uploads made up for tests: benign clients around a common step, in a small tree of several ranks."""

import jax.numpy as jnp
import numpy as np

from fedjax_spmc.types import Upload

SHAPES = {"conv": (4, 3, 3, 3), "bias": (4,), "head": (3, 6), "scale": ()}


def random_tree(rng: np.random.Generator, lead: tuple[int, ...] = (), scale: float = 1.0) -> dict:
    return {name: jnp.asarray(scale * rng.normal(size=lead + shape), jnp.float32) for name, shape in SHAPES.items()}


def random_upload(num_clients: int, absent=(), seed: int = 0, spread: float = 0.3, step: float = 0.5) -> Upload:
    """Client k sends g + step * (a common direction) + noise of its own; `absent` rows do not participate."""
    rng = np.random.default_rng(seed)
    global_params = random_tree(rng)
    common = random_tree(rng, scale=step)
    noise = random_tree(rng, (num_clients,), scale=spread)
    client_params = {name: (global_params[name] + common[name])[None] + noise[name] for name in SHAPES}
    participating = np.ones(num_clients, bool)
    participating[np.asarray(absent, int)] = False
    return Upload(
        global_params=global_params,
        client_params=client_params,
        num_examples=jnp.asarray(rng.integers(20, 200, num_clients), jnp.float32),
        participating=jnp.asarray(participating),
        client_ids=jnp.arange(num_clients, dtype=jnp.int32),
        steps=jnp.full(num_clients, 7, jnp.int32),
    )


def scale_row(upload: Upload, row: int, factor: float) -> Upload:
    """The upload with row `row` at g + factor (w - g)."""
    params = {
        name: leaf.at[row].set(upload.global_params[name] + factor * (leaf[row] - upload.global_params[name]))
        for name, leaf in upload.client_params.items()
    }
    return upload._replace(client_params=params)


def set_row(upload: Upload, row: int, value: float) -> Upload:
    """The upload with every entry of row `row` at `value`."""
    return upload._replace(client_params={name: leaf.at[row].set(value) for name, leaf in upload.client_params.items()})


def permute(upload: Upload, order) -> Upload:
    order = jnp.asarray(order)
    return upload._replace(
        client_params={name: leaf[order] for name, leaf in upload.client_params.items()},
        num_examples=upload.num_examples[order],
        participating=upload.participating[order],
        client_ids=upload.client_ids[order],
        steps=upload.steps[order],
    )


def flat(tree: dict) -> np.ndarray:
    return np.concatenate([np.ravel(tree[name]) for name in sorted(tree)])
