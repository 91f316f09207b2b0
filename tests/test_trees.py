"""The algebra of stacked trees against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import trees
from tests.uploads import random_tree


def stacked(num_clients, seed=0, offset=0.0):
    tree = random_tree(np.random.default_rng(seed), (num_clients,))
    return {name: leaf + offset for name, leaf in tree.items()}


def matrix(tree):
    return np.asarray(trees.ravel_clients(tree), np.float64)


@pytest.mark.parametrize("num_clients", [2, 3, 10])
def test_leave_one_out_mean_equals_the_mean_of_the_others(num_clients):
    tree = stacked(num_clients, offset=5.0)
    points = matrix(tree)
    ours = matrix(trees.leave_one_out_mean(tree))
    for k in range(num_clients):
        np.testing.assert_allclose(ours[k], np.delete(points, k, axis=0).mean(axis=0), atol=2e-6)


def test_leave_one_out_mean_with_weights():
    tree, weights = stacked(5), np.array([0.0, 1.0, 2.0, 0.5, 0.0])
    points = matrix(tree)
    ours = matrix(trees.leave_one_out_mean(tree, jnp.asarray(weights, jnp.float32)))
    for k in range(5):
        rest = np.delete(weights, k)
        np.testing.assert_allclose(ours[k], rest @ np.delete(points, k, axis=0) / rest.sum(), atol=2e-6)


def test_leave_one_out_mean_of_a_single_client_is_itself():
    tree = stacked(3)
    weights = jnp.array([0.0, 1.0, 0.0])
    ours = matrix(trees.leave_one_out_mean(tree, weights))
    np.testing.assert_array_equal(ours[1], matrix(tree)[1])
    np.testing.assert_allclose(ours[0], matrix(tree)[1], atol=1e-6)


def test_leave_one_out_mean_keeps_nearly_equal_rows_apart():
    rng = np.random.default_rng(0)
    points = 100.0 + 1e-3 * rng.normal(size=(10, 50))
    ours = trees.leave_one_out_mean(jnp.asarray(points, jnp.float32))
    exact = np.asarray(jnp.asarray(points, jnp.float32), np.float64)
    for k in range(10):
        np.testing.assert_allclose(ours[k], np.delete(exact, k, axis=0).mean(axis=0), rtol=2e-7)


@pytest.mark.parametrize("boost", [1e3, 1e6])
def test_leave_one_out_mean_of_a_row_that_outweighs_all_others(boost):
    tree = {name: leaf.at[2].mul(boost) for name, leaf in stacked(6).items()}
    points, weights = matrix(tree), np.array([1.0, 2, 3, 0, 5, 2])
    ours = matrix(trees.leave_one_out_mean(tree, jnp.asarray(weights, jnp.float32)))
    for k in range(6):
        rest = np.delete(weights, k)
        expected = rest @ np.delete(points, k, axis=0) / rest.sum()
        np.testing.assert_allclose(ours[k], expected, atol=1e-6 * np.abs(expected).max())


def test_unit_differences_of_parallel_near_and_far_rows():
    near = np.random.default_rng(0).normal(size=(2, 300))
    a = np.stack([near[0], near[0], near[0], 3e-4 * near[0], 0 * near[0], near[0]]).astype(np.float32)
    b = np.stack([near[0] + 1e-6 * near[1], 1.5 * near[0] + 1e-6 * near[1], near[1], near[1], near[0], 0 * near[0]])
    b = b.astype(np.float32)
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = [np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (x, y)]
    exact = np.linalg.norm(x / lengths[0] - y / lengths[1], axis=1)
    ours = trees.client_norm(trees.unit_differences({"w": jnp.asarray(a)}, {"w": jnp.asarray(b)}))
    assert exact[:2].max() < 2e-6
    np.testing.assert_allclose(ours, exact, rtol=5e-3)  # of parallel rows of other lengths there is rounding left
    np.testing.assert_allclose(np.delete(ours, 1), np.delete(exact, 1), rtol=1e-5)


def test_client_cosine():
    a, b = stacked(4, 1), stacked(4, 2)
    x, y = matrix(a), matrix(b)
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(trees.client_cosine(a, b), (x * y).sum(axis=1) / lengths, atol=1e-6)
    np.testing.assert_array_equal(trees.client_cosine(a, {name: 0 * leaf for name, leaf in b.items()}), 0.0)


def test_ravel_clients_keeps_row_major_order():
    tree = (jnp.arange(12.0).reshape(2, 2, 3), jnp.array([[100.0], [200.0]]))
    np.testing.assert_array_equal(trees.ravel_clients(tree), [[0, 1, 2, 3, 4, 5, 100], [6, 7, 8, 9, 10, 11, 200]])


def test_finite_rows():
    tree = {"a": jnp.array([[1.0], [jnp.nan], [jnp.inf], [1e30], [1e15]]), "b": jnp.zeros((5, 2, 2))}
    np.testing.assert_array_equal(trees.finite_rows(tree), [True, False, False, False, True])
    assert trees.finite_rows({})


def test_rows_are_taken_and_put_back():
    tree = stacked(5)
    ids = jnp.array([3, 0])
    rows = {name: leaf + 1 for name, leaf in trees.take_rows(tree, ids).items()}
    changed = matrix(trees.put_rows(tree, ids, rows)) - matrix(tree)
    np.testing.assert_allclose(changed.mean(axis=1), [1, 0, 0, 1, 0], atol=1e-6)
