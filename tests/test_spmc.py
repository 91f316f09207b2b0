"""SPMC's two halves against slow NumPy statements of their formulas, and worked examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, local_rules, trees
from fedjax_spmc.errors import ConfigError
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


def numpy_similarity(score, point, partner, eps):
    if score == "cosine":
        return point @ partner / (np.linalg.norm(point) * np.linalg.norm(partner) + eps)
    if score == "euclidean":
        return -np.linalg.norm(point - partner)
    if score == "chebyshev":
        return -np.abs(point - partner).max()
    return -np.abs(np.sort(point) - np.sort(partner)).mean()


def numpy_spmc(upload, previous, score, space, partner, coalition_weights, mapping, temperature, eps):
    """Weights of the present clients, one after another in float64; 0 for the absent."""
    present = np.flatnonzero(np.asarray(upload.participating))
    models = np.asarray(trees.ravel_clients(upload.client_params), np.float64)
    center = np.asarray(trees.ravel_clients(trees.broadcast(upload.global_params, 1)), np.float64)[0]
    points = models - center if space == "updates" else models
    shares = {"uniform": np.ones(len(models)), "size": np.asarray(upload.num_examples), "previous": previous}
    similarities = []
    for k in present:
        others = [j for j in present if j != k]
        share = shares[coalition_weights][others]
        coalition = sum(s * points[j] for s, j in zip(share, others, strict=True)) / share.sum()
        other = coalition if partner == "coalition" else center
        similarities.append(numpy_similarity(score, points[k], other, eps) / temperature)
    s = np.array(similarities)
    if mapping in ("softmax", "relu_softmax"):
        mapped = np.exp(s - s.max()) * ((s > 0) if mapping == "relu_softmax" and (s > 0).any() else 1)
    elif mapping == "sigmoid":
        mapped = 1 / (1 + np.exp(-s))
    else:
        mapped = (s - s.min()) / (s.max() - s.min())
    weights = np.zeros(len(models))
    weights[present] = mapped / mapped.sum()
    return weights


def every_option():
    """Each option against the defaults of the others, and a few pairs."""
    default = ("cosine", "weights", "coalition", "uniform", "softmax")
    cases = [(score, *default[1:]) for score in ("cosine", "euclidean", "wasserstein", "chebyshev")]
    cases += [(score, "updates", *default[2:]) for score in ("cosine", "euclidean", "wasserstein", "chebyshev")]
    cases += [(score, "weights", "global", *default[3:]) for score in ("cosine", "euclidean")]
    cases += [("cosine", "updates", "coalition", shares, "softmax") for shares in ("size", "previous")]
    cases += [("euclidean", "weights", "coalition", "size", mapping) for mapping in ("sigmoid", "minmax")]
    cases += [("cosine", space, "coalition", "uniform", "relu_softmax") for space in ("weights", "updates")]
    return [*cases, ("cosine", "updates", "coalition", "previous", "minmax")]


@pytest.mark.parametrize(("score", "space", "partner", "coalition_weights", "mapping"), every_option())
def test_every_option_against_numpy(score, space, partner, coalition_weights, mapping):
    options = {"score": score, "space": space, "partner": partner, "mapping": mapping, "temperature": 0.7}
    options["eps"] = 1e-3 if score == "cosine" else 1e-5  # with other scores it has no effect
    rule = aggregators.make("spmc", coalition_weights=coalition_weights, **options)
    upload = random_upload(7, absent=[2], seed=5)
    state = rule.init(upload.global_params, 7)
    run = jax.jit(rule.aggregate)
    previous = np.full(7, 1 / 7)
    for _ in range(2):
        expected = numpy_spmc(upload, previous, coalition_weights=coalition_weights, **options)
        _, verdict, state = run(upload, state, jax.random.key(0))
        np.testing.assert_allclose(verdict.weights, expected, atol=2e-6)
        previous = np.where(upload.participating, expected, previous)
        upload = random_upload(7, absent=[2], seed=6)


def test_relu_softmax_leaves_out_whom_the_others_contradict():
    """A client against all others gets weight exactly 0 and a flag; where everybody is, nobody is told apart."""
    rule = aggregators.make("spmc", mapping="relu_softmax", space="updates", temperature=1e-3)
    updates = jnp.array([[1.0, 0.1], [1.0, 0.0], [1.0, -0.1], [-1.0, 0.0], [9.0, 9.0]])
    upload = Upload({"w": jnp.zeros(2)}, {"w": updates}, jnp.ones(5), jnp.arange(5) < 4, client_ids=jnp.arange(5))
    run = jax.jit(rule.aggregate)
    _, verdict, _ = run(upload, (), jax.random.key(0))
    np.testing.assert_array_equal(verdict.flagged, [False, False, False, True, False])
    np.testing.assert_array_equal(np.asarray(verdict.weights) > 0, [True, True, True, False, False])
    opposed = upload._replace(participating=jnp.isin(jnp.arange(5), jnp.array([1, 3])))
    _, verdict, _ = run(opposed, (), jax.random.key(0))
    np.testing.assert_array_equal(verdict.weights, [0, 0.5, 0, 0.5, 0])
    assert not verdict.flagged.any()


def test_relu_softmax_needs_a_similarity_that_can_be_positive():
    with pytest.raises(ConfigError, match=r"mapping = 'relu_softmax' is not allowed with score = 'euclidean'"):
        aggregators.make("spmc", mapping="relu_softmax", score="euclidean")


@pytest.mark.parametrize("score", ["cosine", "euclidean", "wasserstein", "chebyshev"])
def test_identical_clients_get_identical_weights(score):
    upload = random_upload(8, seed=1)
    pairs = jax.tree.map(lambda leaf: leaf.at[jnp.array([3, 6])].set(leaf[0]), upload.client_params)
    _, verdict, _ = jax.jit(aggregators.make("spmc", score=score).aggregate)(
        upload._replace(client_params=pairs), (), jax.random.key(0)
    )
    weights = np.asarray(verdict.weights)
    np.testing.assert_allclose(weights[[3, 6]], weights[0], rtol=1e-6)
    assert np.ptp(np.delete(weights, [3, 6])) > 1e-5
    everybody = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), upload.client_params)
    _, verdict, _ = jax.jit(aggregators.make("spmc", score=score).aggregate)(
        upload._replace(client_params=everybody), (), jax.random.key(0)
    )
    np.testing.assert_allclose(verdict.weights, 1 / 8, rtol=1e-6)


@pytest.mark.parametrize("score", ["cosine", "euclidean", "wasserstein", "chebyshev"])
def test_cost_is_linear_in_clients_and_parameters(score):
    """No array of the traced rule has two axes of K, or more than K D numbers."""
    num_clients = 53
    upload = random_upload(num_clients, seed=2)
    size = sum(leaf.size for leaf in jax.tree.leaves(upload.client_params))
    rule = aggregators.make("spmc", score=score)
    pending, shapes = [jax.make_jaxpr(rule.aggregate)(upload, (), jax.random.key(0)).jaxpr], []
    while pending:
        jaxpr = pending.pop()
        for equation in jaxpr.eqns:
            shapes += [value.aval.shape for value in equation.outvars]
            inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(equation.params.values()))]
            pending += [x for x in inner if hasattr(x, "eqns")]
    assert shapes
    assert max(int(np.prod(shape)) for shape in shapes) <= size
    assert all(shape.count(num_clients) <= 1 for shape in shapes)


def test_one_forward_pass_serves_both_gradients():
    from fedjax_spmc import models
    from fedjax_spmc.local_rules.spmc import task_and_guidance
    from fedjax_spmc.types import Batch

    model, passes = models.make("mlp", image_shape=(4, 4, 1)), []

    def counted(params, stats, images, train, key):
        passes.append(train)
        return model.apply(params, stats, images, train, key)

    start, teacher = model.init(jax.random.key(0)), model.init(jax.random.key(1))
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 1)), jnp.float32)
    batch = Batch(images, jnp.arange(3), jnp.arange(3), jnp.ones(3, bool))
    task, guide, _, losses = jax.jit(
        lambda params: task_and_guidance(model._replace(apply=counted), params, {}, batch, teacher, jax.random.key(0))
    )(start.params)
    assert passes == [True, True]  # the teacher once, the student once

    def loss(params, soft):
        logs = jax.nn.log_softmax(model.apply(params, {}, images, True, None)[0])
        return -(soft * logs).sum(axis=1).mean()

    soft = jax.nn.softmax(model.apply(teacher.params, {}, images, True, None)[0])
    for ours, target, value in ((task, jax.nn.one_hot(jnp.arange(3), 10), losses[0]), (guide, soft, losses[1])):
        expected, grads = jax.jit(jax.value_and_grad(loss))(start.params, target)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
