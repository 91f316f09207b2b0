"""FedCPA as the SPMC code has it, on uploads of SimpleCNN's size, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, models
from fedjax_spmc.types import Upload

CLIENTS = 10


def code_importances(rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    """[K + 1, D'] from models and the global model, rounded where the code rounds: the mean is summed in float32."""
    mean = np.zeros_like(start)
    for row in rows:
        mean = mean + row / np.float32(len(rows))
    return np.concatenate([np.abs((rows - mean) * rows), np.abs((mean - start) * mean)[None]])


def code_scores(importances: np.ndarray, count: int, ties: bool = True) -> np.ndarray:
    """[K]: mean similarity to the clients and similarity to the global model, in the last row.

    Args:
        importances: [K + 1, D'].
        count: entries of a set.
        ties: whether all that equal the last one are in a set; else the first ones, so that no more than count are.
    """
    values = importances.astype(np.float64)
    total = np.zeros((len(values), len(values)))
    for signed in (values, -values):
        edge = -np.partition(-signed, count - 1, axis=1)[:, count - 1 : count]
        chosen = signed >= edge
        if not ties:
            equal = signed == edge
            chosen &= ~equal | (np.cumsum(equal, axis=1) <= count - (signed > edge).sum(axis=1, keepdims=True))
        for i in range(len(values)):
            for j in range(i + 1):
                both = np.flatnonzero(chosen[i] & chosen[j])
                a, b = values[i].take(both), values[j].take(both)
                a, b = a - a.mean(), b - b.mean()
                jaccard = len(both) / (chosen[i].sum() + chosen[j].sum() - len(both))
                total[i, j] += 0.5 * jaccard + (a @ b / np.sqrt((a @ a) * (b @ b)) + 1) / 4
    total = total + np.tril(total, -1).T
    return total[:-1, :-1].mean(axis=1) + total[:-1, -1]


@pytest.fixture(scope="module")
def scores_of():
    rule = aggregators.make("fedcpa", variant="reference")

    @jax.jit
    def scores(rows, start):
        upload = Upload(start, rows, jnp.ones(CLIENTS), jnp.ones(CLIENTS, bool))
        return -rule.aggregate(upload, (), jax.random.key(0))[1].scores

    return scores


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_scores_of_a_cnn_are_those_of_float64(scores_of, kind):
    """In float16, as golden files hold their inputs, importances tie: one entry is worth some 1e-5 of a score."""
    rng = np.random.default_rng(3)
    shapes = jax.tree.leaves(jax.eval_shape(models.make("simple_cnn").init, jax.random.key(0)).params)
    shapes = [leaf.shape for leaf in shapes if len(leaf.shape) in (2, 4)]
    start = [rng.normal(scale=np.prod(shape[1:]) ** -0.5, size=shape) for shape in shapes]
    # Three of ten share a shift, as in the golden files.
    shift = [np.where(np.arange(CLIENTS) > 6, 1e-4, 0).reshape(-1, *[1] * len(s)) * rng.normal(size=s) for s in shapes]
    rows = [g + d + rng.normal(scale=5e-5, size=(CLIENTS, *g.shape)) for g, d in zip(start, shift, strict=True)]
    start, rows = ([leaf.astype(kind).astype(np.float32) for leaf in tree] for tree in (start, rows))
    flat = np.concatenate([leaf.reshape(CLIENTS, -1) for leaf in rows], axis=1)
    assert flat.shape[1] == 92_050
    importances = code_importances(flat, np.concatenate([leaf.ravel() for leaf in start]))
    ours = np.asarray(scores_of(tuple(rows), tuple(start)))
    np.testing.assert_allclose(ours, code_scores(importances, 46_025), atol=1e-6)
    if kind is np.float16:
        assert 1e-6 < np.abs(ours - code_scores(importances, 46_025, ties=False)).max() < 1e-4
