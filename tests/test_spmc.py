"""SPMC's two halves against slow NumPy statements of their formulas, and worked examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, local_rules, trees
from fedjax_spmc.local_rules.spmc import purify
from fedjax_spmc.types import Upload, Variables, Verdict
from tests.uploads import random_tree, random_upload


def numpy_purify(task, guide, strength=1.0, norm="squared", floor=0.0):
    """One group of numbers, in float64."""
    a, b = np.asarray(task, np.float64), np.asarray(guide, np.float64)
    length = np.linalg.norm(b)
    dot = (a * b).sum()
    if length == 0 or dot >= 0 or length < floor * np.linalg.norm(a):
        return a
    return a - strength * dot / (length**2 if norm == "squared" else length) * b


def test_purify_by_hand():
    # <a, b> = -4, |b|^2 = 2: a + 2 b
    out = purify((jnp.array([1.0, -5.0]),), (jnp.array([1.0, 1.0]),))
    np.testing.assert_allclose(out[0], [3.0, -3.0])
    # with the formula as printed: a + 4 / sqrt(2) b
    out = purify((jnp.array([1.0, -5.0]),), (jnp.array([1.0, 1.0]),), norm="printed")
    np.testing.assert_allclose(out[0], np.array([1.0, -5.0]) + 4 / np.sqrt(2), rtol=1e-6)
    # no conflict: unchanged
    out = purify((jnp.array([1.0, 5.0]),), (jnp.array([1.0, 1.0]),))
    np.testing.assert_array_equal(out[0], [1.0, 5.0])


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("norm", ["squared", "printed"])
@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_purify_against_numpy(strength, norm, scope):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        task, guide = random_tree(rng), random_tree(rng)
        ours = purify(task, guide, strength, scope, norm)
        names = sorted(task)
        if scope == "tensor":
            expected = {name: numpy_purify(task[name], guide[name], strength, norm) for name in names}
        else:
            joined = [np.concatenate([np.ravel(tree[name]) for name in names]) for tree in (task, guide)]
            flat = numpy_purify(*joined, strength, norm)
            ends = np.cumsum([task[name].size for name in names])[:-1]
            expected = dict(zip(names, np.split(flat, ends), strict=True))
        for name in names:
            np.testing.assert_allclose(np.ravel(ours[name]), np.ravel(expected[name]), atol=2e-6)


@pytest.mark.parametrize("scale", [1e-8, 1e-15, 1e-20, 1e-30])
def test_purify_does_not_depend_on_the_length_of_the_guidance(scale):
    rng = np.random.default_rng(0)
    task, guide = random_tree(rng), random_tree(rng)
    small = {name: leaf * jnp.float32(scale) for name, leaf in guide.items()}
    for name, leaf in purify(task, small).items():
        np.testing.assert_allclose(leaf, purify(task, guide)[name], rtol=1e-4, atol=1e-6)


def test_purify_floor_and_zero_guidance():
    task, guide = (jnp.array([1.0, 0.0]),), (jnp.array([-0.005, 0.0]),)
    np.testing.assert_array_equal(purify(task, guide, floor=1e-2)[0], task[0])
    np.testing.assert_allclose(purify(task, guide, floor=1e-3)[0], [0.0, 0.0], atol=1e-7)
    np.testing.assert_array_equal(purify(task, (jnp.zeros(2),))[0], task[0])
    np.testing.assert_array_equal(purify((jnp.zeros(2),), guide)[0], [0.0, 0.0])


@pytest.mark.parametrize("num_clients", [2, 4, 11, 30])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_aggregator_against_numpy(num_clients, temperature):
    upload = random_upload(num_clients, seed=num_clients)
    points = np.asarray(trees.ravel_clients(upload.client_params), np.float64)
    cosines = []
    for k in range(num_clients):
        coalition = np.delete(points, k, axis=0).mean(axis=0)
        product = np.linalg.norm(points[k]) * np.linalg.norm(coalition)
        cosines.append(points[k] @ coalition / (product + 1e-5))
    weights = np.exp(np.array(cosines) / temperature)
    weights /= weights.sum()
    rule = aggregators.make("spmc", temperature=temperature)
    model, verdict, _ = jax.jit(rule.aggregate)(upload, (), jax.random.key(0))
    np.testing.assert_allclose(verdict.weights, weights, atol=1e-6)
    np.testing.assert_allclose(verdict.scores, -np.array(cosines), atol=1e-6)
    ours = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(model)])
    np.testing.assert_allclose(ours, weights @ points, atol=1e-5)


def test_aggregator_by_hand():
    """Three clients in the plane: the coalitions of (1, 0), (1, 0), (0, 1) are (.5, .5), (.5, .5), (1, 0)."""
    params = {"w": jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])}
    upload = Upload({"w": jnp.zeros(2)}, params, jnp.ones(3), jnp.ones(3, bool))
    _, verdict, _ = aggregators.make("spmc", eps=0.0).aggregate(upload, (), jax.random.key(0))
    similar = np.exp(1 / np.sqrt(2))
    np.testing.assert_allclose(verdict.weights, np.array([similar, similar, 1.0]) / (2 * similar + 1), rtol=1e-5)


def round_of(weights, participating, num_clients=5, ids=(3, 0, 2), seed=0):
    """A round of three of five clients, and the teachers before and after it."""
    rng = np.random.default_rng(seed)
    rule = local_rules.make("spmc")
    variables = Variables(random_tree(rng), {})
    before = rule.init(variables, num_clients)
    trained = random_tree(rng, (3,))
    weights = jnp.asarray(weights, jnp.float32)
    new = trees.weighted_mean(trained, weights)
    upload = Upload(
        variables.params,
        trained,
        jnp.ones(3),
        jnp.asarray(participating),
        client_ids=jnp.asarray(ids),
        steps=jnp.ones(3, jnp.int32),
        client_stats={},
    )
    verdict = Verdict(weights, jnp.zeros(3), jnp.zeros(3, bool))
    after = rule.after_round(before, upload, trained, Variables(new, {}), verdict)
    return before.clients.params, after.clients.params, trained


def test_teachers_are_the_weighted_mean_of_the_others():
    weights = [0.5, 0.3, 0.2]
    before, after, trained = round_of(weights, [True] * 3)
    for name in trained:
        rows = np.asarray(trained[name], np.float64)
        for row, client in enumerate((3, 0, 2)):
            rest = np.delete(weights, row)
            expected = np.tensordot(rest / rest.sum(), np.delete(rows, row, axis=0), axes=1)
            np.testing.assert_allclose(after[name][client], expected, atol=1e-5)
        for absent in (1, 4):
            np.testing.assert_array_equal(after[name][absent], before[name][absent])


def test_a_client_keeps_its_teacher_if_absent_or_all_of_the_model():
    before, after, trained = round_of([0.9995, 0.0005, 0.0], [True, True, False])
    for name in trained:
        np.testing.assert_array_equal(after[name][3], before[name][3])  # holds more than 1 - 1e-3
        np.testing.assert_array_equal(after[name][2], before[name][2])  # did not take part
        assert not np.array_equal(after[name][0], before[name][0])


def test_a_client_that_is_not_finite_keeps_its_teacher():
    rng = np.random.default_rng(1)
    rule = local_rules.make("spmc", teacher_weights="uniform")
    variables = Variables(random_tree(rng), {})
    before = rule.init(variables, 3)
    trained = random_tree(rng, (3,))
    trained["head"] = trained["head"].at[1, 0, 0].set(jnp.nan)
    upload = Upload(variables.params, trained, jnp.ones(3), jnp.array([True, False, True]), client_ids=jnp.arange(3))
    verdict = Verdict(jnp.array([0.5, 0.0, 0.5]), jnp.zeros(3), jnp.zeros(3, bool))
    after = rule.after_round(before, upload._replace(client_stats={}), trained, variables, verdict)
    for name in trained:
        np.testing.assert_array_equal(after.clients.params[name][1], before.clients.params[name][1])
        np.testing.assert_allclose(after.clients.params[name][0], trained[name][2], atol=1e-5)
        assert np.isfinite(after.clients.params[name]).all()
