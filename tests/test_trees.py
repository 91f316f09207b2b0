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
