"""What every registered aggregator must do, in each variant; `Traits` say what more may be demanded of it."""

from collections import Counter
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, registry, trees
from fedjax_spmc.errors import ConfigError
from tests.uploads import flat, labels_of, model_upload, permute, random_upload, scale_row, server_data, set_row

KEY = jax.random.key(0)
TRAITS = ("linear", "consensus", "permutation", "robust", "stateless")

QUICK: dict[str, dict] = {"deepsight": {"samples": 64}}
"""Options that only save time."""

KEEPS_THE_GLOBAL_MODEL = ("fedcpa-reference",)
"""Variants that compute a model and do not install it, as the reference."""

EXPLAINED = {
    frozenset(("multi_metrics-reference", "spmc")): "the SPMC code's MultiMetric is its SPMD under another name",
}
"""Pairs that give the same model on the crafted upload, and why."""


FLAG_WITH: dict[str, dict] = {"sageflow-reference": {"threshold": 0.1}}
"""Options with which a rule flags somebody on the uploads at hand: three classes have less entropy than its 2 nats."""

LABELS = [label for name in aggregators.names() for label in labels_of(aggregators.describe(name), name)]


def make(label: str, **options):
    """The rule behind a label; one that needs clean data is given some."""
    name, _, variant = label.partition("-")
    if variant:
        options["variant"] = variant
    given = {"server": server_data(), "network": server_data().model}
    options |= {part: held for part, held in given.items() if registry.aggregators.needs(name, part)}
    options = QUICK.get(name, {}) | options
    return aggregators.make(name, **options)


def needs_network(label: str) -> bool:
    """Whether only uploads of a real network will do."""
    return any(registry.aggregators.needs(label.partition("-")[0], part) for part in ("server", "network"))


class Case(NamedTuple):
    """A rule under jit, and the uploads that suit it; most tests use nine clients, so that it is compiled once."""

    label: str
    plain: object
    rule: object
    traces: Counter
    upload: object

    def __call__(self, upload, state=None):
        state = self.start(upload) if state is None else state
        return self.rule.aggregate(upload, state, KEY)

    def start(self, upload):
        return self.rule.init(upload.global_params, len(upload.participating))


def in_the_inner_loop(label: str):
    """A parameter of a fixture: reference variants and DeepSight, with its networks, are left to the whole suite."""
    return pytest.param(label, marks=pytest.mark.slow) if label.endswith(("-reference", "deepsight")) else label


@pytest.fixture(params=[in_the_inner_loop(label) for label in LABELS], scope="module")
def case(request):
    plain, traces = make(request.param), Counter()

    def aggregate(upload, state, key):
        traces[len(upload.participating)] += 1
        return plain.aggregate(upload, state, key)

    upload = model_upload if needs_network(request.param) else random_upload
    return Case(request.param, plain, plain._replace(aggregate=jax.jit(aggregate)), traces, upload)


def uniform_mean(upload):
    share = upload.participating / upload.participating.sum()
    return trees.weighted_mean(upload.client_params, share)


def test_structure_dtype_and_a_sound_verdict(case):
    upload = case.upload(9, seed=1)
    model, verdict, state = case(upload)
    chex.assert_trees_all_equal_shapes_and_dtypes(model, upload.global_params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, case.start(upload))
    chex.assert_shape([verdict.weights, verdict.scores, verdict.flagged], (9,))
    assert verdict.weights.dtype == verdict.scores.dtype == jnp.float32
    assert verdict.flagged.dtype == bool
    assert (np.asarray(verdict.weights) >= 0).all()
    np.testing.assert_allclose(verdict.weights.sum(), 1.0, rtol=1e-5)
    chex.assert_tree_all_finite((model, verdict.weights, verdict.scores, state))
    unchanged = np.allclose(flat(model), flat(upload.global_params))
    assert unchanged == (case.label in KEEPS_THE_GLOBAL_MODEL)
    chex.assert_trees_all_equal_shapes_and_dtypes(case.rule.evaluated(model, state), upload.global_params)


def test_a_client_that_does_not_take_part_has_no_influence(case):
    absent = np.array([2, 7])
    upload = case.upload(9, absent=absent, seed=0)
    elsewhere = upload._replace(
        client_params=jax.tree.map(lambda x: x.at[absent].mul(-1e3), upload.client_params),
        num_examples=upload.num_examples.at[absent].mul(50),
    )
    model, verdict, state = case(upload)
    model_elsewhere, verdict_elsewhere, state_elsewhere = case(elsewhere)
    chex.assert_trees_all_equal(model, model_elsewhere)
    chex.assert_trees_all_equal(verdict, verdict_elsewhere)
    chex.assert_trees_all_equal(state, state_elsewhere)
    np.testing.assert_array_equal(verdict.weights[absent], 0.0)
    assert not np.asarray(verdict.flagged)[absent].any()


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, 1e30], ids=["nan", "inf", "huge"])
def test_a_row_that_is_not_finite_counts_as_absent_and_is_flagged(case, value):
    upload = case.upload(9, seed=3)
    broken = set_row(upload, 4, value)
    model, verdict, state = case(broken)
    without = upload._replace(participating=upload.participating.at[4].set(False))
    expected, expected_verdict, _ = case(without)
    chex.assert_trees_all_equal(model, expected)
    np.testing.assert_array_equal(verdict.weights, expected_verdict.weights)
    assert verdict.weights[4] == 0
    assert verdict.flagged[4]
    assert np.argmax(verdict.scores) == 4
    chex.assert_tree_all_finite((model, verdict.scores, state))


def test_broken_batch_statistics_make_a_row_absent_too():
    """The guard's doing, the same for every rule."""
    upload = random_upload(6, seed=3)
    stats = {"mean": jnp.zeros((6, 4)).at[1, 2].set(jnp.nan)}
    rule = aggregators.make("mean")
    model, verdict, _ = rule.aggregate(upload._replace(client_stats=stats), (), KEY)
    assert verdict.weights[1] == 0
    chex.assert_tree_all_finite(model)


def test_with_nobody_left_the_global_model_and_the_state_are_kept(case):
    upload = case.upload(9, seed=4)
    broken = upload._replace(client_params=jax.tree.map(lambda x: x * jnp.nan, upload.client_params))
    model, verdict, state = case(broken)
    chex.assert_trees_all_equal(model, upload.global_params)
    chex.assert_trees_all_equal(state, case.start(upload))
    np.testing.assert_array_equal(verdict.weights, 0.0)
    assert np.asarray(verdict.flagged).all()


def test_a_rule_that_flags_nobody_says_so_and_another_flags_somebody(case):
    """Else "flagged nobody" and "never flags anybody" are one number, 0, where the second has none."""
    upload = case.upload(9, seed=1)
    others = [scale_row(upload, 2, 10.0), scale_row(upload, 2, -10.0), set_row(upload, 2, 0.0)]
    rule = case if case.label not in FLAG_WITH else make(case.label, **FLAG_WITH[case.label]).aggregate
    found = [rule(one, case.start(one), KEY)[1] if rule is not case else case(one)[1] for one in (upload, *others)]
    assert any(np.asarray(verdict.flagged).any() for verdict in found) == case.rule.flags


@pytest.mark.slow
def test_jit_equals_no_jit_with_one_trace(case):
    first, second = case.upload(9, absent=[0], seed=5), case.upload(9, seed=6)
    model, verdict, state = case(first)
    _, _, state = case(second, state)
    case(first, state)
    assert case.traces[9] == 1
    expected = case.plain.aggregate(first, case.start(first), KEY)
    chex.assert_trees_all_close((model, verdict), expected[:2], rtol=1e-4, atol=1e-5)


def another_pytree(upload):
    """The same numbers as a tuple of leaves, without what has a default."""
    return upload._replace(
        global_params=tuple(jax.tree.leaves(upload.global_params)),
        client_params=tuple(jax.tree.leaves(upload.client_params)),
        client_ids=None,
        steps=None,
        extras={name: tuple(jax.tree.leaves(tree)) for name, tree in upload.extras.items()},
    )


@pytest.mark.slow
def test_vmap_over_experiments_equals_a_loop_and_any_pytree_will_do(case):
    """Both at once, as each is a program of its own; what the server holds is for one tree alone."""
    uploads = [case.upload(9, absent=[seed], seed=seed) for seed in range(3)]
    others = uploads if needs_network(case.label) else [another_pytree(upload) for upload in uploads]
    states = [case.start(upload) for upload in others]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(others, states, strict=True))
    together = jax.jit(jax.vmap(lambda upload, state: case.plain.aggregate(upload, state, KEY)))(*stacked)
    for i, (upload, other) in enumerate(zip(uploads, others, strict=True)):
        model, verdict, state = jax.tree.map(lambda x, i=i: x[i], together)
        chex.assert_trees_all_equal_structs(model, other.global_params)
        expected, expected_verdict, expected_state = case(upload)
        np.testing.assert_allclose(flat(model), flat(expected), rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(verdict, expected_verdict, rtol=1e-4, atol=1e-5)
        leaves = zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True)
        assert all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in leaves)


@pytest.mark.parametrize("present", [1, 2, 3, 4])
def test_few_clients(case, present):
    """A sound model from as many as the rule needs, the global model below."""
    upload = case.upload(9, absent=range(present, 9), seed=7)
    model, verdict, _ = case(upload)
    chex.assert_tree_all_finite((model, verdict.scores))
    if present < case.rule.min_clients:
        chex.assert_trees_all_equal(model, upload.global_params)
    assert float(verdict.weights.sum()) == pytest.approx(float(present >= case.rule.min_clients))


@pytest.mark.slow
def test_two_clients_a_round(case):
    """Arrays of two rows: also where the rule needs more it must not fail, but keep the global model."""
    upload = case.upload(2, seed=7)
    model, verdict, _ = case(upload)
    chex.assert_tree_all_finite((model, verdict.scores))
    assert float(verdict.weights.sum()) == pytest.approx(float(case.rule.min_clients <= 2))


@pytest.mark.slow
def test_options_that_were_left_open_are_named(case):
    """`chosen` tells what the rule takes for K uploads: given by hand, it changes nothing; too much is refused."""
    chosen = case.rule.chosen(9)
    known = aggregators.describe(case.label.partition("-")[0])
    assert all(known[name]["default"] is None for name in chosen)
    assert ("attackers" in known) <= ("attackers" in chosen or case.label.endswith("-reference"))
    if not chosen:
        return
    upload = case.upload(9, seed=17)
    given = make(case.label, **chosen)
    model, verdict, _ = jax.jit(given.aggregate)(upload, case.start(upload), KEY)
    chex.assert_trees_all_close((model, verdict), case(upload)[:2], rtol=1e-5, atol=1e-6)
    if "attackers" in chosen:
        too_many = make(case.label, attackers=9)
        with pytest.raises(ConfigError, match=r"aggregator\.options\.attackers = 9 .* 9 uploads"):
            jax.eval_shape(too_many.aggregate, upload, case.start(upload), KEY)


def holds_for_linear(case):
    for upload in (case.upload(9, absent=[3], seed=8), scale_row(case.upload(9, seed=15), 2, 10.0)):
        model, verdict, _ = case(upload)
        yield np.allclose(flat(model), flat(trees.weighted_mean(upload.client_params, verdict.weights)), atol=1e-5)


def holds_for_consensus(case):
    """In a first round, and in a second after clients of all kinds."""
    for upload in (case.upload(9, seed=9, spread=0.0), case.upload(9, absent=[4], seed=16, spread=0.0, step=2.0)):
        for state in (case.start(upload), case(case.upload(9, seed=20))[2]):
            model, _, _ = case(upload, state)
            yield np.allclose(flat(model), flat(jax.tree.map(lambda x: x[0], upload.client_params)), atol=1e-6)


def holds_for_permutation(case):
    """In a first round, and in a second after a round in the old order."""
    for upload, seed in ((case.upload(9, absent=[1], seed=10), 0), (case.upload(9, seed=18, spread=1.0), 1)):
        order = np.random.default_rng(seed).permutation(9)
        for state in (case.start(upload), case(case.upload(9, seed=20 + seed))[2]):
            (model, verdict, _), (permuted_model, permuted, _) = (
                case(upload, state),
                case(permute(upload, order), state),
            )
            moved = jax.tree.map(lambda x, order=order: np.asarray(x)[order], verdict)
            yield (
                np.allclose(flat(model), flat(permuted_model), atol=1e-5)
                and np.allclose(moved.weights, permuted.weights, atol=1e-5)
                and np.allclose(moved.scores, permuted.scores, rtol=1e-4, atol=1e-4)
                and np.array_equal(moved.flagged, permuted.flagged)
            )


def holds_for_robust(case):
    """One outlier g + 10 (w - g), whichever client it is, moves the model less than it moves the mean."""
    for upload in (case.upload(9, seed=3), case.upload(9, seed=21, spread=0.03)):
        before, mean_before = flat(case(upload)[0]), flat(uniform_mean(upload))
        for row in range(9):
            outlier = scale_row(upload, row, 10.0)
            ours = np.linalg.norm(flat(case(outlier)[0]) - before)
            yield bool(ours < 0.999 * np.linalg.norm(flat(uniform_mean(outlier)) - mean_before))


def holds_for_stateless(case):
    upload = case.upload(9, seed=12)
    state = case.start(upload)
    _, _, after = case(upload, state)
    yield all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True))


@pytest.mark.parametrize("trait", TRAITS)
def test_a_trait_holds_where_declared_and_has_a_counterexample_where_not(case, trait):
    held = list(globals()[f"holds_for_{trait}"](case))
    assert all(held) == getattr(case.rule.traits, trait), held


def test_every_rule_documents_its_options_and_each_trait_it_lacks():
    for label in LABELS:
        name, _, variant = label.partition("-")
        doc = registry.aggregators.factory(name).__doc__ or ""
        assert all(option in doc for option in aggregators.describe(name)), name
        lacking = [trait for trait, holds in make(label).traits._asdict().items() if not holds]
        assert not lacking or ("Traits:" in doc and all(trait in doc for trait in lacking)), (label, lacking)
        assert not variant or "Reference:" in doc, label


@pytest.mark.parametrize("name", [name for name in aggregators.names() if needs_network(name)])
def test_rules_that_hold_something_on_the_server_say_so(name):
    upload = model_upload(9)
    with pytest.raises(ConfigError, match=r"server=ServerData|network=model"):
        jax.eval_shape(aggregators.make(name).aggregate, upload, (), KEY)


@pytest.mark.parametrize("name", [name for name in aggregators.names() if make(name).needs])
def test_rules_that_read_extras_say_which(name):
    upload = random_upload(9)
    for extra in make(name).needs:
        without = {key: tree for key, tree in upload.extras.items() if key != extra}
        with pytest.raises(ConfigError, match=extra):
            jax.eval_shape(make(name).aggregate, upload._replace(extras=without), (), KEY)


def crafted(seed):
    """One far upload, one turned round, and two much alike that change a single output of the network."""
    upload = scale_row(scale_row(model_upload(9, seed=seed), 0, 10.0), 5, -3.0)

    def alone(leaf, g, name):
        for row in (3, 7):
            step = leaf[row] - g if "cls" not in name else 5 * (leaf[3] - g).at[1:].set(0.0)
            leaf = leaf.at[row].set(g + step)
        return leaf

    names = jax.tree_util.tree_map_with_path(lambda path, _: jax.tree_util.keystr(path), upload.global_params)
    return upload._replace(client_params=jax.tree.map(alone, upload.client_params, upload.global_params, names))


@pytest.mark.slow
def test_no_two_rules_agree_on_crafted_uploads_but_for_pairs_that_are_explained():
    """Two rounds, the second with the clients in another order."""
    first, second = crafted(14), permute(crafted(22), np.random.default_rng(0).permutation(9))
    models = {}
    for label in LABELS:
        rule = make(label)
        aggregate = jax.jit(rule.aggregate)
        params, _, state = aggregate(first, rule.init(first.global_params, 9), KEY)
        before = flat(rule.evaluated(params, state))
        params, _, state = aggregate(second, state, KEY)
        models[label] = np.concatenate([before, flat(rule.evaluated(params, state))])
    pairs = {frozenset((a, b)) for a in LABELS for b in LABELS if a < b}
    alike = {pair for pair in pairs if np.allclose(*(models[label] for label in pair), atol=1e-6)}
    assert alike == set(EXPLAINED), [sorted(pair) for pair in alike ^ set(EXPLAINED)]


@pytest.mark.slow
def test_the_model_has_a_gradient_where_the_rule_says_so(case):
    """Finite everywhere, and zero only for rules that deny it: an attack may differentiate through a defence."""
    upload = case.upload(9, seed=2)
    state = case.start(upload)

    def moved(models):
        model, _, _ = case.plain.aggregate(upload._replace(client_params=models), state, KEY)
        return sum(jnp.sum(jnp.sin(jnp.arange(leaf.size)) * leaf.ravel()) for leaf in jax.tree.leaves(model))

    slopes = jax.jit(jax.grad(moved))(upload.client_params)
    chex.assert_tree_all_finite(slopes)
    assert bool(np.abs(flat(slopes)).max() > 0) == case.plain.traits.differentiable
