"""What every registered aggregator must do; `Traits` say what more may be demanded of it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, trees
from tests.uploads import flat, permute, random_upload, scale_row, set_row

NAMES = aggregators.names()
KEY = jax.random.key(0)


def aggregate(rule, upload):
    return rule.aggregate(upload, rule.init(upload.global_params, len(upload.participating)), KEY)


def uniform_mean(upload):
    share = upload.participating / upload.participating.sum()
    return trees.weighted_mean(upload.client_params, share)


@pytest.fixture(params=NAMES, scope="module")
def rule(request):
    """A rule under jit, compiled once for each shape: most tests use nine clients for that reason."""
    made = aggregators.make(request.param)
    return made._replace(aggregate=jax.jit(made.aggregate))


def test_structure_dtype_and_a_sound_verdict(rule):
    upload = random_upload(9, seed=1)
    model, verdict, state = aggregate(rule, upload)
    chex.assert_trees_all_equal_shapes_and_dtypes(model, upload.global_params)
    chex.assert_trees_all_equal_structs(state, rule.init(upload.global_params, 9))
    chex.assert_shape([verdict.weights, verdict.scores, verdict.flagged], (9,))
    assert verdict.weights.dtype == verdict.scores.dtype == jnp.float32
    assert verdict.flagged.dtype == bool
    assert (np.asarray(verdict.weights) >= 0).all()
    np.testing.assert_allclose(verdict.weights.sum(), 1.0, rtol=1e-5)
    chex.assert_tree_all_finite((model, verdict.weights, verdict.scores))
    assert not np.allclose(flat(model), flat(upload.global_params))


def test_a_client_that_does_not_take_part_has_no_influence(rule):
    absent = np.array([2, 7])
    upload = random_upload(9, absent=absent, seed=0)
    elsewhere = upload._replace(
        client_params=jax.tree.map(lambda x: x.at[absent].mul(-1e3), upload.client_params),
        num_examples=upload.num_examples.at[absent].mul(50),
    )
    model, verdict, _ = aggregate(rule, upload)
    model_elsewhere, verdict_elsewhere, _ = aggregate(rule, elsewhere)
    chex.assert_trees_all_equal(model, model_elsewhere)
    chex.assert_trees_all_equal(verdict, verdict_elsewhere)
    np.testing.assert_array_equal(verdict.weights[absent], 0.0)
    assert not np.asarray(verdict.flagged)[absent].any()


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, 1e30], ids=["nan", "inf", "huge"])
def test_a_row_that_is_not_finite_counts_as_absent_and_is_flagged(rule, value):
    upload = random_upload(9, seed=3)
    broken = set_row(upload, 4, value)
    model, verdict, state = aggregate(rule, broken)
    without = upload._replace(participating=upload.participating.at[4].set(False))
    expected, expected_verdict, _ = aggregate(rule, without)
    chex.assert_trees_all_equal(model, expected)
    np.testing.assert_array_equal(verdict.weights, expected_verdict.weights)
    assert verdict.weights[4] == 0
    assert verdict.flagged[4]
    assert np.argmax(verdict.scores) == 4
    chex.assert_tree_all_finite((model, verdict.scores, state))


def test_broken_batch_statistics_make_a_row_absent_too(rule):
    upload = random_upload(6, seed=3)
    stats = {"mean": jnp.zeros((6, 4)).at[1, 2].set(jnp.nan)}
    model, verdict, _ = aggregate(rule, upload._replace(client_stats=stats))
    assert verdict.weights[1] == 0
    chex.assert_tree_all_finite(model)


def test_with_nobody_left_the_global_model_and_the_state_are_kept(rule):
    upload = random_upload(9, seed=4)
    for row in range(9):
        upload = set_row(upload, row, jnp.nan)
    model, verdict, state = aggregate(rule, upload)
    chex.assert_trees_all_equal(model, upload.global_params)
    chex.assert_trees_all_equal(state, rule.init(upload.global_params, 9))
    np.testing.assert_array_equal(verdict.weights, 0.0)
    assert np.asarray(verdict.flagged).all()


@pytest.mark.parametrize("name", NAMES)
def test_jit_equals_no_jit_with_one_trace(name):
    chex.clear_trace_counter()
    plain = aggregators.make(name)
    program = jax.jit(chex.assert_max_traces(plain.aggregate, n=1))
    for seed in (5, 6):
        upload = random_upload(9, absent=[seed - 5], seed=seed)
        state = plain.init(upload.global_params, 9)
        jitted = program(upload, state, KEY)[:2]
        if seed == 5:
            with jax.disable_jit():
                chex.assert_trees_all_close(jitted, plain.aggregate(upload, state, KEY)[:2], rtol=1e-5, atol=1e-6)


def test_vmap_over_experiments_equals_a_loop(rule):
    uploads = [random_upload(9, absent=[seed], seed=seed) for seed in range(3)]
    state = rule.init(uploads[0].global_params, 9)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *uploads)
    together = jax.vmap(lambda upload: rule.aggregate(upload, state, KEY)[:2])(stacked)
    for i, upload in enumerate(uploads):
        alone = rule.aggregate(upload, state, KEY)[:2]
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_clients", [1, 2, 3])
def test_few_clients(rule, num_clients):
    upload = random_upload(num_clients, seed=7)
    model, verdict, _ = aggregate(rule, upload)
    chex.assert_tree_all_finite(model)
    assert float(verdict.weights.sum()) == pytest.approx(1.0) or num_clients < rule.min_clients


def test_linear(rule):
    upload = random_upload(9, absent=[3], seed=8)
    model, verdict, _ = aggregate(rule, upload)
    close = np.allclose(flat(model), flat(trees.weighted_mean(upload.client_params, verdict.weights)), atol=1e-5)
    assert close == rule.traits.linear


def test_consensus(rule):
    upload = random_upload(9, seed=9, spread=0.0)
    model, _, _ = aggregate(rule, upload)
    agreed = jax.tree.map(lambda x: x[0], upload.client_params)
    assert np.allclose(flat(model), flat(agreed), atol=1e-6) == rule.traits.consensus


def test_permutation(rule):
    upload = random_upload(9, absent=[1], seed=10)
    order = np.random.default_rng(0).permutation(9)
    model, verdict, _ = aggregate(rule, upload)
    permuted_model, permuted_verdict, _ = aggregate(rule, permute(upload, order))
    same = np.allclose(flat(model), flat(permuted_model), atol=1e-5) and np.allclose(
        np.asarray(verdict.weights)[order], permuted_verdict.weights, atol=1e-5
    )
    assert same == rule.traits.permutation
    if same:
        np.testing.assert_allclose(np.asarray(verdict.scores)[order], permuted_verdict.scores, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(verdict.flagged)[order], permuted_verdict.flagged)


def test_robust(rule):
    upload = random_upload(9, seed=11)
    outlier = scale_row(upload, 0, 10.0)

    def moved(with_outlier, without):
        return np.linalg.norm(flat(with_outlier) - flat(without))

    ours = moved(aggregate(rule, outlier)[0], aggregate(rule, upload)[0])
    assert (ours < 0.999 * moved(uniform_mean(outlier), uniform_mean(upload))) == rule.traits.robust


def test_stateless(rule):
    upload = random_upload(9, seed=12)
    state = rule.init(upload.global_params, 9)
    _, _, after = rule.aggregate(upload, state, KEY)
    unchanged = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True))
    assert unchanged == rule.traits.stateless


def test_any_pytree_and_missing_ids(rule):
    upload = random_upload(9, seed=13)
    as_tuple = upload._replace(
        global_params=tuple(upload.global_params.values()),
        client_params=tuple(upload.client_params.values()),
        client_ids=None,
        steps=None,
    )
    model, _, _ = aggregate(rule, as_tuple)
    expected, _, _ = aggregate(rule, upload)
    np.testing.assert_allclose(
        np.concatenate([np.ravel(x) for x in model]),
        np.concatenate([np.ravel(expected[name]) for name in upload.global_params]),
        atol=1e-5,
    )


def test_every_rule_documents_its_options_and_each_trait_it_lacks():
    from fedjax_spmc import registry

    for name in NAMES:
        doc = registry.aggregators.factory(name).__doc__ or ""
        assert all(option in doc for option in aggregators.describe(name)), name
        lacking = [trait for trait, holds in aggregators.make(name).traits._asdict().items() if not holds]
        assert not lacking or "Traits" in doc, name


def test_no_two_rules_agree_on_a_crafted_upload():
    upload = scale_row(scale_row(random_upload(9, seed=14), 0, 10.0), 5, -3.0)
    models = {name: flat(aggregate(aggregators.make(name), upload)[0]) for name in NAMES}
    for a in NAMES:
        for b in NAMES:
            assert a >= b or not np.allclose(models[a], models[b], atol=1e-6), (a, b)
