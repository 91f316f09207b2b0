"""FINCH, 2-means and DBSCAN against plain implementations and scikit-learn; what is absent; exact ties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import DBSCAN

from fedjax_spmc import clustering

finch, kmeans, dbscan = (jax.jit(f) for f in (clustering.finch, clustering.kmeans, clustering.dbscan))


def plain_finch(points: np.ndarray) -> np.ndarray:
    """FINCH's Eq. 1 by loops in float64: the adjacency, then its connected components in order of occurrence."""
    points = np.asarray(points, np.float64).reshape(len(points), -1)
    count = len(points)
    if count == 1:
        return np.zeros(1, int)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    labels = np.full(count, -1)
    for start in range(count):
        if labels[start] >= 0:
            continue
        label, waiting = labels.max() + 1, [start]
        while waiting:
            i = waiting.pop()
            labels[i] = label
            waiting += [
                j
                for j in range(count)
                if labels[j] < 0 and (nearest[i] == j or nearest[j] == i or nearest[i] == nearest[j])
            ]
    return labels


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_finch_is_equation_one(count):
    rng = np.random.default_rng(count)
    for digits in (0, 1, 7):  # rounded: many ties and duplicates
        for _ in range(6):
            points = np.round(2 * rng.normal(size=count), digits).astype(np.float32)
            np.testing.assert_array_equal(finch(jnp.asarray(points)), plain_finch(points))


@pytest.mark.parametrize("count", [2, 9, 30])
def test_finch_of_vectors(count):
    rng = np.random.default_rng(count)
    for points in (rng.normal(size=(count, 3)), rng.integers(0, 3, (count, 3))):
        np.testing.assert_array_equal(finch(jnp.asarray(points, jnp.float32)), plain_finch(points))


def test_finch_of_a_thousand_scores():
    points = np.random.default_rng(0).gamma(2, size=1000).astype(np.float32)
    labels = np.asarray(finch(jnp.asarray(points)))
    np.testing.assert_array_equal(labels, plain_finch(points))
    assert labels.max() > 200


def test_finch_tells_gaps_apart_that_a_float_cannot():
    """1 - 0 and 1 - 1e-9 are the same float32; the second is nearer all the same, and not the first of a tie."""
    points = jnp.array([0.0, 1.0, 1e-9, 1.0 + 2**-23], jnp.float32)
    assert np.asarray(points[1] - points[0]) == np.asarray(points[1] - points[2])
    np.testing.assert_array_equal(finch(points), [0, 1, 0, 1])
    # 1 is as far from 0 as from 2: it goes with the first.
    np.testing.assert_array_equal(finch(jnp.array([0.0, 1.0, 2.0, 2.5, 9.0, 9.1])), [0, 0, 1, 1, 2, 2])


def test_kmeans_is_the_best_of_all_cuts():
    rng = np.random.default_rng(1)
    for trial in range(40):
        count = (2, 3, 5, 12)[trial % 4]
        points = np.round(rng.normal(size=count) * 3, trial % 3).astype(np.float32) + np.float32(1000 * (trial % 2))
        ranked = np.sort(points.astype(np.float64))
        within = [sum(((part - part.mean()) ** 2).sum() for part in np.split(ranked, [i])) for i in range(1, count)]
        labels = np.asarray(kmeans(jnp.asarray(points)))
        assert labels[0] == 0
        if len(set(points)) == 1:
            assert not labels.any()
            continue
        groups = [points[labels == j].astype(np.float64) for j in (0, 1)]
        assert sum(((part - part.mean()) ** 2).sum() for part in groups) <= min(within) * (1 + 1e-4) + 1e-6


def test_dbscan_is_scikit_learns():
    rng = np.random.default_rng(2)
    for trial in range(60):
        count = (2, 5, 17)[trial % 3]
        points = np.round(rng.normal(size=(count, 1 + trial % 2)) * 2, 1).astype(np.float32)
        eps, least = float(rng.choice([0.155, 0.356, 0.511])), int(rng.integers(1, 5))
        theirs = DBSCAN(eps=eps, min_samples=least).fit(points.astype(np.float64)).labels_
        np.testing.assert_array_equal(dbscan(jnp.asarray(points), eps, least), theirs)


CLUSTERINGS = {"finch": finch, "kmeans": kmeans, "dbscan": lambda points, present=None: dbscan(points, 0.5, 2, present)}


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_absent_points_and_points_that_are_not_finite_are_in_no_cluster(name):
    cluster = CLUSTERINGS[name]
    points = np.random.default_rng(3).normal(size=9).astype(np.float32)
    present = np.array([True, False, True, True, True, False, True, True, True])
    elsewhere, broken = points.copy(), points.copy()
    elsewhere[~present] += 50
    broken[[1, 5]] = np.nan, np.inf
    labels = np.asarray(cluster(jnp.asarray(points), jnp.asarray(present)))
    assert (labels[~present] == -1).all()
    np.testing.assert_array_equal(labels[present], cluster(jnp.asarray(points[present])))
    np.testing.assert_array_equal(labels, cluster(jnp.asarray(elsewhere), jnp.asarray(present)))
    np.testing.assert_array_equal(labels, cluster(jnp.asarray(broken)))
    assert (np.asarray(cluster(jnp.asarray(points), jnp.zeros(9, bool))) == -1).all()


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_vmap_over_experiments(name):
    cluster = CLUSTERINGS[name]
    points = jnp.asarray(np.random.default_rng(4).normal(size=(5, 9)), jnp.float32)
    np.testing.assert_array_equal(jax.vmap(cluster)(points), np.stack([cluster(row) for row in points]))
