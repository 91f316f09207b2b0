"""Order statistics against plain NumPy: equal values, negative zeros, absent rows, traced counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc.aggregators import _order

WIDTH = 37


def blocks(num_rows: int, seed: int):
    """A block of real numbers, one full of equal values and zeros of both signs, and which rows are there."""
    rng = np.random.default_rng(seed)
    real = rng.normal(scale=10.0 ** rng.integers(-20, 15, (1, WIDTH)), size=(num_rows, WIDTH)).astype(np.float32)
    equal = rng.integers(-2, 3, (num_rows, WIDTH)).astype(np.float32)
    equal[(equal == 0) & (rng.random(equal.shape) < 0.5)] = -0.0
    present = rng.random(num_rows) < 0.8
    present[:2] = True
    return (real, equal), present


CASES = [(num_rows, seed) for seed, num_rows in enumerate((2, 9, 10, 31))]

medians = jax.jit(_order.median)
trimmed = jax.jit(_order.trimmed_mean)
nearest = jax.jit(_order.nearest_mean)


def test_keys_keep_the_order_and_give_the_values_back():
    values = np.array([-np.inf, -3e38, -1.5, -1e-30, -0.0, 0.0, 1e-30, 1.0, 1.0000001, np.inf], np.float32)
    keys = np.asarray(_order.sort_keys(values))
    assert keys[4] == keys[5]
    assert (np.diff(np.delete(keys, 4).astype(np.int64)) > 0).all()
    assert keys.max() < _order.ABSENT
    np.testing.assert_array_equal(_order.values_of(keys), values)


@pytest.mark.parametrize(("num_rows", "seed"), CASES)
def test_every_rank_is_exact(num_rows, seed):
    values, present = blocks(num_rows, seed)
    for block in values:
        keys = _order.present_keys(jnp.asarray(block), jnp.asarray(present))
        ranks = jnp.arange(present.sum())
        ours = _order.values_of(jax.jit(jax.vmap(_order.kth_smallest, (None, 0)))(keys, ranks))
        np.testing.assert_array_equal(ours, np.sort(block[present], axis=0))


@pytest.mark.parametrize(("num_rows", "seed"), CASES)
def test_the_smallest_are_those_of_a_stable_sort(num_rows, seed):
    values, present = blocks(num_rows, seed)
    for block in values:
        keys = _order.present_keys(jnp.asarray(block), jnp.asarray(present))
        ranks = np.argsort(np.argsort(np.where(present[:, None], block, np.inf), axis=0, kind="stable"), axis=0)
        counts = jnp.arange(1, present.sum() + 1)
        ours = jax.jit(jax.vmap(_order.smallest, (None, 0)))(keys, counts)
        np.testing.assert_array_equal(ours, ranks[None] < np.asarray(counts)[:, None, None])


@pytest.mark.parametrize(("num_rows", "seed"), CASES)
def test_median(num_rows, seed):
    values, present = blocks(num_rows, seed)
    for block in values:
        ours, shares = medians(block, present)
        np.testing.assert_array_equal(ours, np.median(block[present], axis=0))
        np.testing.assert_allclose(shares.sum(axis=0), 1, rtol=1e-6)
        gap = np.abs((np.asarray(shares, np.float64) * block).sum(axis=0) - ours)
        np.testing.assert_array_less(gap, 1e-6 * np.abs(block).max(axis=0) + 1e-30)
        assert not np.asarray(shares)[~present].any()


@pytest.mark.parametrize(("num_rows", "seed"), CASES)
def test_trimmed_mean_for_every_cut(num_rows, seed):
    values, present = blocks(num_rows, seed)
    left = np.sort(np.flatnonzero(present))
    for block in values:
        for cut in range((len(left) - 1) // 2 + 1):
            ours, shares = trimmed(block, present, cut)
            kept = np.sort(block[present].astype(np.float64), axis=0)[cut : len(left) - cut]
            scale = np.abs(block[present]).max(axis=0)
            np.testing.assert_array_less(np.abs(ours - kept.mean(axis=0)), 1e-6 * scale + 1e-30)
            np.testing.assert_allclose(shares.sum(axis=0), 1, rtol=1e-5)
            assert np.asarray(shares).max() <= 1.00001 / len(kept)


def test_equal_values_across_the_cut_share_what_is_kept_of_them():
    _, shares = trimmed(jnp.array([[1.0], [5.0], [1.0], [1.0], [9.0]]), jnp.ones(5, bool), 1)
    np.testing.assert_allclose(shares[:, 0], np.array([2 / 3, 1, 2 / 3, 2 / 3, 0]) / 3, rtol=1e-6)
    _, shares = trimmed(jnp.full((5, 1), 4.0), jnp.ones(5, bool), 1)
    np.testing.assert_allclose(shares[:, 0], 0.2, rtol=1e-6)


@pytest.mark.parametrize(("num_rows", "seed"), CASES)
def test_mean_of_the_nearest_with_equal_distances(num_rows, seed):
    values, present = blocks(num_rows, seed)
    for block in values:
        center = np.median(block[present], axis=0).astype(np.float32)
        for count in {1, 2, max(present.sum() // 2, 1), present.sum()}:
            ours, shares = nearest(block, present, center, count)
            rows = block[present]
            chosen = np.argsort(np.abs(rows - center), axis=0, kind="stable")[:count]
            expected = np.take_along_axis(rows, chosen, axis=0).astype(np.float64).mean(axis=0)
            scale = np.abs(rows).max(axis=0)
            np.testing.assert_array_less(np.abs(ours - expected), 1e-6 * scale + 1e-30)
            assert (np.count_nonzero(shares, axis=0) == count).all()


def test_sum_of_the_smallest():
    values, present = blocks(31, 4)
    for block in values:
        keys = _order.present_keys(jnp.asarray(block), jnp.asarray(present))
        for count in (0, 1, 5, int(present.sum())):
            ours = _order.sum_of_smallest(jnp.asarray(block), keys, jnp.asarray(count))
            expected = np.sort(block[present].astype(np.float64), axis=0)[:count].sum(axis=0)
            scale = np.abs(block).max(axis=0)
            np.testing.assert_array_less(np.abs(ours - expected), 1e-5 * scale + 1e-30)


@pytest.mark.parametrize("num_columns", [255, 256, 700])
def test_blocks_of_columns_change_nothing(monkeypatch, num_columns):
    monkeypatch.setattr(_order, "_block_width", lambda num_rows: 256)
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(rng.integers(-3, 4, (9, num_columns)), jnp.float32)
    present = jnp.arange(9) != 4
    values, shares = jax.jit(lambda x: _order.by_columns(lambda block: _order.median(block, present), x))(matrix)
    expected, expected_shares = medians(matrix, present)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_allclose(shares, expected_shares.mean(axis=1), rtol=1e-5, atol=1e-7)


def test_a_batch_of_experiments_with_different_absent_rows():
    rng = np.random.default_rng(1)
    batch = rng.normal(size=(3, 8, 600)).astype(np.float32)
    present = np.arange(8)[None] != np.array([[0], [3], [7]])
    ours, _ = jax.jit(jax.vmap(lambda x, p: _order.by_columns(lambda block: _order.median(block, p), x)))(
        batch, present
    )
    for one, block, rows in zip(ours, batch, present, strict=True):
        np.testing.assert_array_equal(one, np.median(block[rows], axis=0))


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "sum_of_smallest", "nearest_mean"])
def test_the_gradient_is_that_of_the_rows_that_hold_the_value(name):
    """Against NumPy's finite differences in float64: a rank is found by bits, which have no gradient of their own."""
    block = np.random.default_rng(3).normal(size=(7, 4))
    present = np.array([True, True, False, True, True, True, True])
    center = np.median(block[present], axis=0) + 0.01

    def ours(x):
        there = jnp.asarray(present)
        if name == "median":
            return _order.median(x, there)[0].sum()
        if name == "trimmed_mean":
            return _order.trimmed_mean(x, there, 1)[0].sum()
        if name == "nearest_mean":
            return _order.nearest_mean(x, there, jnp.asarray(center, jnp.float32), 3)[0].sum()
        return _order.sum_of_smallest(x, _order.present_keys(x, there), 3).sum()

    def slow(x):
        ranked = np.sort(x[present], axis=0)
        if name == "median":
            return np.median(x[present], axis=0).sum()
        if name == "trimmed_mean":
            return ranked[1:-1].mean(axis=0).sum()
        if name == "nearest_mean":
            nearest = np.argsort(np.abs(x[present] - center), axis=0)[:3]
            return np.take_along_axis(x[present], nearest, axis=0).mean(axis=0).sum()
        return ranked[:3].sum()

    found = jax.jit(jax.grad(ours))(jnp.asarray(block, jnp.float32))
    expected = np.zeros_like(block)
    for place in np.ndindex(block.shape):
        step = np.zeros_like(block)
        step[place] = 1e-6
        expected[place] = (slow(block + step) - slow(block - step)) / 2e-6
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1
