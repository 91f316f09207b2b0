"""HDBSCAN and mean shift on fixed shapes against scikit-learn, against a slow statement, and on worked examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import HDBSCAN, KMeans, MeanShift, estimate_bandwidth

from fedjax_spmc.clustering.hdbscan import euclidean_distances, hdbscan
from fedjax_spmc.clustering.mean_shift import bandwidth_of, largest_cluster, mean_shift, two_means


@functools.cache
def compiled(min_samples, allow_single_cluster):
    return jax.jit(functools.partial(hdbscan, min_samples=min_samples, allow_single_cluster=allow_single_cluster))


def ours(distances, present, min_cluster_size, min_samples=1, single=False):
    """Labels of the rows; all matrices are filled up with absent rows to one shape, which is compiled once."""
    number = len(present)
    full = np.full((30, 30), 0.5, np.float32)
    full[:number, :number] = distances
    everybody = np.zeros(30, bool)
    everybody[:number] = present
    labels = np.asarray(compiled(min_samples, single)(full, everybody, min_cluster_size))
    assert labels.dtype == np.int32
    assert (labels[~everybody] == -1).all()
    return labels[:number]


def by_first_row(labels):
    numbers = {}
    return np.array([-1 if label < 0 else numbers.setdefault(label, len(numbers)) for label in labels], int)


def distances_of(points):
    return np.sqrt(np.square(points[:, None] - points[None]).sum(axis=2)).astype(np.float32)


def random_points(rng, number):
    dimensions = rng.integers(1, 5)
    if rng.integers(3) == 0:
        return rng.uniform(size=(number, dimensions))
    centers = rng.normal(size=(rng.integers(1, 5), dimensions)) * rng.choice([2, 5])
    return centers[rng.integers(len(centers), size=number)] + rng.normal(size=(number, dimensions)) * rng.choice(
        [0.2, 1]
    )


def slow_labels(distances, min_cluster_size, min_samples=1, single=False):
    """HDBSCAN by sets and thresholds: at every threshold all points that come apart do so at once."""
    distances = np.asarray(distances, np.float64)
    core = np.sort(distances, axis=1)[:, min(min_samples, len(distances)) - 1]
    reach = np.maximum(distances, np.maximum(core[:, None], core[None, :]))
    stability, parent, finish, end = [0.0], [-1], [0.0], {}

    def pieces(members, below):
        rest, found = set(members), []
        while rest:
            piece = front = {rest.pop()}
            while front:
                front = {j for j in rest if any(reach[i, j] < below for i in front)}
                rest, piece = rest - front, piece | front
            found.append(sorted(piece))
        return found

    def descend(members, cluster, birth, longest):
        values = np.unique([reach[i, j] for i in members for j in members if i < j])
        threshold = next(t for t in values[::-1] if len(pieces(members, t)) > 1)
        longest = longest or threshold
        density = 1 / max(threshold / longest, 1e-12) if longest > 0 else 1e12
        parts = pieces(members, threshold)
        large = [part for part in parts if len(part) >= min_cluster_size]
        staying = large[0] if len(large) == 1 else []
        finish[cluster] = density
        stability[cluster] += (density - birth) * (len(members) - len(staying))
        for part in parts:
            if part not in large:
                end.update(dict.fromkeys(part, (cluster, density)))
        if staying:
            descend(staying, cluster, birth, longest)
        for part in large if len(large) > 1 else []:
            stability.append(0.0)
            parent.append(cluster)
            finish.append(0.0)
            descend(part, len(stability) - 1, density, longest)

    descend(list(range(len(distances))), 0, 0.0, 0.0)
    chosen, reachable = [False] * len(stability), list(stability)
    for cluster in range(len(stability))[::-1]:
        below = sum(reachable[c] for c in range(len(stability)) if parent[c] == cluster)
        chosen[cluster] = below <= stability[cluster] and (single or cluster > 0)
        reachable[cluster] = max(below, stability[cluster])
    labels = []
    for i in range(len(distances)):
        cluster, density = end[i]
        line = [cluster]
        while parent[line[-1]] >= 0:
            line.append(parent[line[-1]])
        owner = next((c for c in line[::-1] if chosen[c]), -1)
        # Of all points together only those are a cluster that stay until it splits or dissolves.
        labels.append(-1 if owner == 0 and density < finish[0] else owner)
    return by_first_row(labels)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("min_samples", [1, 2])
def test_labels_are_those_of_scikit_learn(min_samples, single):
    rng = np.random.default_rng(min_samples + 2 * single)
    found = set()
    for trial in range(60):
        number = (6, 13, 30)[trial % 3]
        distances = distances_of(random_points(rng, number))
        least = max(2, int(rng.choice([2, 3, 5, number // 2 + 1])))
        settings = HDBSCAN(
            min_cluster_size=least,
            min_samples=min_samples,
            metric="precomputed",
            allow_single_cluster=single,
            copy=True,
        )
        expected = by_first_row(settings.fit(distances.astype(np.float64)).labels_)
        labels = ours(distances, np.ones(number, bool), least, min_samples, single)
        np.testing.assert_array_equal(labels, expected, err_msg=f"{trial}")
        found.add(expected.max() + 1)
    assert found >= ({1, 2, 3, 4} if single else {0, 2, 3, 4})


def test_absent_rows_change_nothing():
    rng = np.random.default_rng(5)
    for _ in range(30):
        distances = distances_of(random_points(rng, 20))
        present = np.zeros(20, bool)
        present[rng.choice(20, rng.integers(4, 15), replace=False)] = True
        inside = np.ix_(present, present)
        spoilt = distances * rng.choice([0, 1, 7], size=(20, 20))
        spoilt[inside] = distances[inside]
        expected = HDBSCAN(min_cluster_size=3, min_samples=1, metric="precomputed", copy=True)
        expected = expected.fit(distances[inside].astype(np.float64)).labels_
        labels = ours(spoilt, present, 3)
        np.testing.assert_array_equal(labels[present], by_first_row(expected))
        assert (labels[~present] == -1).all()


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("min_samples", [1, 3])
def test_ties_merge_at_once_whatever_the_order_of_the_rows(min_samples, single):
    rng = np.random.default_rng(3 * single + min_samples)
    for trial in range(25):
        # Points of a small grid: most distances occur many times; in the last trials some points coincide.
        points = rng.permutation(36)[:14] if trial < 20 else rng.integers(36, size=14)
        distances = distances_of(np.stack([points // 6, points % 6], axis=1))
        labels = ours(distances, np.ones(14, bool), 2 + trial % 3, min_samples, single)
        np.testing.assert_array_equal(labels, slow_labels(distances, 2 + trial % 3, min_samples, single))
        labels = ours(distances, np.ones(14, bool), 3, min_samples, single)
        order = rng.permutation(14)
        permuted = ours(distances[np.ix_(order, order)], np.ones(14, bool), 3, min_samples, single)
        np.testing.assert_array_equal(permuted, by_first_row(labels[order]))


def test_worked_example():
    """Two groups with gaps of 1, 8 apart, and a point far off.

    Root: the far point leaves at 18, the groups part at 8. Each group lives from 1/8 to 1/1: stability 3 (1 - 1/8).
    Root: 7 points, 1 leaves at 1/18 and 6 at 1/8: stability 1/18 + 6/8, less than 2 * 21/8: two clusters.
    """
    points = np.array([0, 10, 1, 11, 2, 12, 30.0])
    distances = np.abs(points[:, None] - points[None])
    everybody = np.ones(7, bool)
    np.testing.assert_array_equal(ours(distances, everybody, 3), [0, 1, 0, 1, 0, 1, -1])
    # No group has four: one cluster, and of it only those that stay until the groups part.
    np.testing.assert_array_equal(ours(distances, everybody, 4, 1, True), [0, 0, 0, 0, 0, 0, -1])
    np.testing.assert_array_equal(ours(distances, everybody, 4), -np.ones(7))


def test_few_rows_and_rows_that_coincide():
    zeros = np.zeros((4, 4))
    np.testing.assert_array_equal(ours(zeros, np.ones(4, bool), 3, 1, True), [0, 0, 0, 0])
    np.testing.assert_array_equal(ours(zeros, np.ones(4, bool), 3), [-1, -1, -1, -1])
    np.testing.assert_array_equal(ours(zeros, np.array([0, 0, 1, 0], bool), 2, 1, True), [-1, -1, 0, -1])
    np.testing.assert_array_equal(ours(zeros, np.array([0, 0, 1, 0], bool), 2), [-1, -1, -1, -1])
    np.testing.assert_array_equal(ours(zeros, np.zeros(4, bool), 2, 1, True), [-1, -1, -1, -1])
    np.testing.assert_array_equal(ours(1 - np.eye(2), np.ones(2, bool), 2, 1, True), [0, 0])
    # Three that coincide, two that coincide far away: a cluster and noise.
    points = np.array([[0], [5], [0], [5], [0]])
    np.testing.assert_array_equal(ours(distances_of(points), np.ones(5, bool), 3, 1, True), [0, -1, 0, -1, 0])
    np.testing.assert_array_equal(ours(distances_of(points), np.ones(5, bool), 2), [0, 1, 0, 1, 0])


def test_labels_do_not_depend_on_the_unit_of_distance():
    distances = distances_of(random_points(np.random.default_rng(8), 30))
    expected = ours(distances, np.ones(30, bool), 3)
    assert expected.max() > 0
    for factor in (2.0**-60, 2.0**60):
        np.testing.assert_array_equal(ours(distances * factor, np.ones(30, bool), 3), expected)


def test_vmap_with_a_traced_size_equals_a_loop():
    rng = np.random.default_rng(9)
    distances = jnp.stack([distances_of(random_points(rng, 13)) for _ in range(4)])
    present, least = jnp.asarray(rng.uniform(size=(4, 13)) < 0.8), jnp.array([2, 3, 5, 7])
    together = jax.jit(jax.vmap(hdbscan))(distances, present, least)
    for i in range(4):
        np.testing.assert_array_equal(together[i], ours(distances[i], present[i], least[i]))


def test_euclidean_distances_of_equal_rows_are_exactly_0():
    points = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    points[4] = points[1]
    distances = np.asarray(euclidean_distances(jnp.asarray(points)))
    np.testing.assert_allclose(distances, distances_of(points.astype(np.float64)), rtol=1e-6, atol=1e-7)
    assert distances[1, 4] == 0
    assert (np.diagonal(distances) == 0).all()


def climbed(points, present, bandwidth=None, quantile=0.5):
    """Bandwidth and labels by mean shift, of points filled up to one shape."""
    number = len(points)
    full, everybody = np.full((14, 3), 0.3, np.float32), np.zeros(14, bool)
    full[:number], everybody[:number] = points, present
    estimate = _bandwidth(full, everybody, quantile)
    labels = np.asarray(_mean_shift(full, everybody, estimate if bandwidth is None else jnp.float32(bandwidth)))
    assert (labels[~everybody] == -1).all()
    return float(estimate), labels[:number]


_bandwidth, _mean_shift = jax.jit(bandwidth_of), jax.jit(mean_shift)


@pytest.mark.slow
def test_mean_shift_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    numbers = set()
    for trial in range(8):
        number = 7 if trial % 4 else 14
        points = random_points(rng, number)[:, :1] + rng.normal(size=(number, 3)) * rng.choice([0.1, 1])
        points = points.astype(np.float32)
        present = np.ones(number, bool)
        if trial % 2:
            present[rng.choice(number, 2, replace=False)] = False
        seen, quantile = points[present].astype(np.float64), float(rng.choice([0.4, 0.5, 0.8]))
        expected = estimate_bandwidth(seen, quantile=quantile)
        bandwidth, labels = climbed(points, present, quantile=quantile)
        np.testing.assert_allclose(bandwidth, expected, rtol=1e-5)
        expected = MeanShift(bandwidth=expected, cluster_all=False).fit(seen).labels_
        np.testing.assert_array_equal(labels[present], expected)
        numbers.add(expected.max() + 1)
        largest = np.bincount(expected[expected >= 0]).argmax()
        np.testing.assert_array_equal(np.asarray(largest_cluster(jnp.asarray(labels)))[present], expected == largest)
    assert {1, 2, 3} <= numbers


def test_mean_shift_of_points_that_coincide_and_of_few():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(climbed(points, np.ones(4, bool), bandwidth=0)[1], [0, 1, 0, 0])
    assert climbed(points, np.zeros(4, bool))[0] == 0
    # Two points: the other one is near, where half of the points would mean each point alone.
    bandwidth, labels = climbed(points[:2], np.ones(2, bool))
    assert bandwidth == 1
    np.testing.assert_array_equal(labels, [0, 0])


def test_two_means_ends_in_no_poorer_optimum_than_ten_starts_of_scikit_learn():
    """Sign statistics of fourteen clients, one of them absent; in any order of the rows."""

    def inertia(points, labels):
        return sum(np.square(part - part.mean(axis=0)).sum() for part in (points[labels == 0], points[labels == 1]))

    rng, compiled, present = np.random.default_rng(2), jax.jit(two_means), np.arange(14) != 3
    for trial in range(12):
        shares = rng.dirichlet([(2, 2, 2), (8, 1, 8), (500, 20, 500)][trial % 3], size=14)
        points = np.array([rng.multinomial(9263, share) / 9263 for share in shares]).astype(np.float32)
        labels = np.asarray(compiled(points, present))
        seen = points[present].astype(np.float64)
        best = KMeans(2, n_init=10, random_state=0).fit(seen).inertia_
        assert inertia(seen, labels[present]) <= best * (1 + 1e-5)
        assert labels[3] == -1
        order = rng.permutation(14)
        np.testing.assert_array_equal(compiled(points[order], present[order]), labels[order])
    np.testing.assert_array_equal(compiled(np.ones((14, 3), np.float32), present), np.where(present, 0, -1))
