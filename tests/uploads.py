"""Uploads made up for tests: benign clients around a common step, in a small tree of several ranks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import models
from fedjax_spmc.losses import cross_entropy
from fedjax_spmc.types import ServerData, Upload


def labels_of(described: dict, name: str) -> list[str]:
    """A rule once for each of its variants: ["krum", "krum-reference"]."""
    variants = described["variant"]["allowed"].removeprefix("one of ").split(", ") if "variant" in described else []
    return [name, *[f"{name}-{variant}" for variant in variants if variant != "paper"]]


SHAPES = {"conv": (4, 3, 3, 3), "bias": (4,), "head": (3, 6), "scale": ()}


def random_tree(rng: np.random.Generator, lead: tuple[int, ...] = (), scale: float = 1.0) -> dict:
    return {name: jnp.asarray(scale * rng.normal(size=lead + shape), jnp.float32) for name, shape in SHAPES.items()}


def random_upload(num_clients: int, absent=(), seed: int = 0, spread: float = 0.3, step: float = 0.5) -> Upload:
    """Client k sends g + step * (a common direction) + noise of its own; `absent` rows do not participate."""
    rng = np.random.default_rng(seed)
    global_params = random_tree(rng)
    common = random_tree(rng, scale=step)
    noise = random_tree(rng, (num_clients,), scale=spread)
    return _upload(rng, global_params, common, noise, absent)


def _upload(rng: np.random.Generator, global_params, common, noise, absent) -> Upload:
    num_clients = len(jax.tree.leaves(noise)[0])
    participating = np.ones(num_clients, bool)
    participating[np.asarray(absent, int)] = False
    return Upload(
        global_params=global_params,
        client_params=jax.tree.map(lambda g, c, n: (g + c)[None] + n, global_params, common, noise),
        num_examples=jnp.asarray(rng.integers(20, 200, num_clients), jnp.float32),
        participating=jnp.asarray(participating),
        client_ids=jnp.arange(num_clients, dtype=jnp.int32),
        steps=jnp.full(num_clients, 7, jnp.int32),
        extras={"fisher": jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) ** 4, jnp.float32), noise)},
    )


@functools.cache
def server_data() -> ServerData:
    """A tiny network of 83 numbers and one batch of images, whose labels a linear map can tell."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(16, 2, 2, 3))
    labels = (images.reshape(16, -1) @ rng.normal(size=(12, 3))).argmax(axis=1)
    model = models.make("mlp", hidden=(5,), num_classes=3, image_shape=(2, 2, 3))
    return ServerData(model, jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32), batch_size=16)


@functools.cache
def _trained_on_the_server():
    server = server_data()

    def loss(params):
        logits, _ = server.model.apply(params, {}, server.inputs, True, None)
        return cross_entropy(logits, server.labels, jnp.ones(len(server.labels), bool))

    def step(_, params):
        return jax.tree.map(lambda w, d: w - 0.1 * d, params, jax.grad(loss)(params))

    return jax.jit(lambda params: jax.lax.fori_loop(0, 20, step, params))


def model_upload(num_clients: int, absent=(), seed: int = 0, spread: float = 0.3, step: float = 0.5) -> Upload:
    """Like `random_upload`, for the network of `server_data`: the common direction is that of training on its data."""
    rng = np.random.default_rng(seed)
    global_params = server_data().model.init(jax.random.key(seed)).params
    moved = jax.tree.map(jnp.subtract, _trained_on_the_server()(global_params), global_params)
    scale = step * np.sqrt(flat(moved).size) / np.linalg.norm(flat(moved))
    noise = jax.tree.map(
        lambda x: jnp.asarray(spread * rng.normal(size=(num_clients, *x.shape)), jnp.float32), global_params
    )
    return _upload(rng, global_params, jax.tree.map(lambda x: scale * x, moved), noise, absent)


def scale_row(upload: Upload, row: int, factor: float) -> Upload:
    """The upload with row `row` at g + factor (w - g)."""
    params = jax.tree.map(
        lambda leaf, g: leaf.at[row].set(g + factor * (leaf[row] - g)), upload.client_params, upload.global_params
    )
    return upload._replace(client_params=params)


def set_row(upload: Upload, row: int, value: float) -> Upload:
    """The upload with every entry of row `row` at `value`."""
    return upload._replace(client_params=jax.tree.map(lambda leaf: leaf.at[row].set(value), upload.client_params))


def permute(upload: Upload, order) -> Upload:
    order = jnp.asarray(order)
    return upload._replace(
        client_params=jax.tree.map(lambda leaf: leaf[order], upload.client_params),
        num_examples=upload.num_examples[order],
        participating=upload.participating[order],
        client_ids=upload.client_ids[order],
        steps=upload.steps[order],
        extras=jax.tree.map(lambda leaf: leaf[order], upload.extras),
    )


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
