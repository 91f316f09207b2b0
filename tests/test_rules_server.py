"""Rules with clean data on the server, Multi-Metrics and FedCPA: each against a plain statement of its formula."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, trees
from fedjax_spmc.aggregators import _server_training as on_server
from fedjax_spmc.aggregators import fedcpa, ft_sam, multi_metrics, sageflow
from fedjax_spmc.aggregators.fltrust import combine
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.task import task_of
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Model, ServerData, Upload, Variables
from tests.uploads import flat, random_upload, scale_row

KEY = jax.random.key(3)
REFERENCE = {"variant": "reference", "install": True}
CLASSES, FEATURES, BATCH = 3, 12, 8
NEED_DATA = ("fltrust", "sageflow", "finetuning", "ft_sam")


def linear_apply(params, stats, images, train, key=None):
    del train, key
    flat_images = images.reshape(len(images), -1)
    return jnp.matmul(flat_images, params["weight"].T, precision="highest") + params["bias"][None], stats


def make_server(num_images: int = 21, **fields: Any) -> ServerData:
    """Softmax regression, whose gradient is known in closed form, on random images."""
    rng = np.random.default_rng(5)
    shapes = {"bias": jnp.zeros(CLASSES), "weight": jnp.zeros((CLASSES, FEATURES))}
    model = Model(
        lambda key: Variables(shapes, {}),
        linear_apply,
        (("bias",), ("weight",)),
        CLASSES,
        jax.ShapeDtypeStruct((2, 2, 3), jnp.float32),
    )
    images = jnp.asarray(rng.normal(size=(num_images, 2, 2, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, CLASSES, num_images), jnp.int32)
    return ServerData(model, images, labels, BATCH, epochs=2, weight_decay=1e-2)._replace(**fields)


def linear_upload(num_clients: int, seed: int, absent=()) -> Upload:
    """Clients around a common step, for the model of `make_server`; absent rows hold nonsense."""
    rng = np.random.default_rng(seed)
    draw = {"bias": (CLASSES,), "weight": (CLASSES, FEATURES)}
    start = {name: rng.normal(size=shape) for name, shape in draw.items()}
    rows = {
        name: start[name] + 0.3 * rng.normal(size=shape) + 0.5 * rng.normal(size=(num_clients, *shape))
        for name, shape in draw.items()
    }
    present = np.ones(num_clients, bool)
    present[list(absent)] = False
    return Upload(
        global_params=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start),
        client_params=jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), rows),
        num_examples=jnp.asarray(rng.integers(20, 90, num_clients), jnp.float32),
        participating=jnp.asarray(present),
        client_ids=jnp.arange(num_clients, dtype=jnp.int32),
        learning_rate=jnp.float32(0.05),
    )


@functools.cache
def made(name: str, **options: Any):
    """A rule under jit, compiled once for each number of rows; absent ones make up every smaller number of clients."""
    server = {"server": make_server()} if name in NEED_DATA else {}
    rule = aggregators.make(name, **options, **server)
    return rule._replace(aggregate=jax.jit(rule.aggregate))


def call(name: str, upload: Upload, **options: Any):
    rule = made(name, **options)
    return rule.aggregate(upload, rule.init(upload.global_params, len(upload.participating)), KEY)


@functools.cache
def sageflow_program():
    """Sageflow as one program of the upload, its options and the server's data."""

    def aggregate(upload, threshold, exponent, images, labels):
        server = make_server()._replace(inputs=images, labels=labels)
        rule = aggregators.make("sageflow", server=server, threshold=threshold, exponent=exponent)
        return rule.aggregate(upload, (), KEY)[:2]

    return jax.jit(aggregate)


def call_sageflow(upload: Upload, server: ServerData, threshold: float, exponent: float = 1.0):
    return sageflow_program()(upload, threshold, exponent, server.inputs, server.labels)


def rows64(upload: Upload) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Global vector, client vectors of those present, their sizes, and where they stand; bias first, then weight."""
    present = np.flatnonzero(upload.participating)
    clients = np.asarray(trees.ravel_clients(upload.client_params), np.float64)[present]
    return flat(upload.global_params).astype(np.float64), clients, np.asarray(upload.num_examples)[present], present


def probabilities(vector: np.ndarray, images: np.ndarray) -> np.ndarray:
    logits = images @ vector[CLASSES:].reshape(CLASSES, FEATURES).T + vector[:CLASSES]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def sgd64(vector, server, order, rate, momentum, decay, shake=None):
    """Softmax regression by SGD, written out; `shake` maps (vector, gradient) to the point whose gradient counts."""
    images = np.asarray(server.inputs, np.float64).reshape(len(server.labels), -1)
    labels = np.eye(CLASSES)[np.asarray(server.labels)]

    def gradient(at, batch):
        error = (probabilities(at, images[batch]) - labels[batch]) / len(batch)
        return np.concatenate([error.sum(axis=0), (error.T @ images[batch]).ravel()])

    speed = np.zeros_like(vector)
    for batch in np.asarray(order):
        at = vector if shake is None else vector + shake(vector, gradient(vector, batch))
        speed = momentum * speed + gradient(at, batch) + decay * vector
        vector = vector - rate * speed
    return vector


@functools.cache
def batch_order(epochs: int) -> np.ndarray:
    return np.asarray(on_server.batch_order(make_server(), epochs, KEY))


def full(weights: np.ndarray, present: np.ndarray, count: int) -> np.ndarray:
    out = np.zeros(count)
    out[present] = weights
    return out


ROWS = 12
cases = pytest.mark.parametrize(("seed", "absent"), [(0, range(4, 12)), (2, (0, 7)), (3, ()), (4, range(6))])


@pytest.mark.parametrize("name", NEED_DATA)
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_without_clean_data_or_with_too_little_the_rule_says_so(name, variant):
    upload = linear_upload(5, 0)
    state = aggregators.make(name, variant=variant).init(upload.global_params, 5)
    with pytest.raises(ConfigError, match=rf"^aggregator {name} needs clean data on the server: .*\.$"):
        aggregators.make(name, variant=variant).aggregate(upload, state, KEY)
    short = aggregators.make(name, variant=variant, server=make_server(BATCH - 1))
    with pytest.raises(ConfigError, match=r"at least one batch of 8 images on the server, not 7\.$"):
        short.aggregate(upload, state, KEY)


def test_every_epoch_has_an_order_of_its_own_and_drops_the_incomplete_batch():
    server = make_server(21)
    order = np.asarray(on_server.batch_order(server, 3, KEY))
    assert order.shape == (6, BATCH)
    epochs = order.reshape(3, 16)
    assert all(len(set(epoch)) == 16 and set(epoch) <= set(range(21)) for epoch in epochs)
    assert not (epochs[0] == epochs[1]).all()
    stored = np.asarray(on_server.batch_order(server._replace(shuffle=False), 2, KEY))
    np.testing.assert_array_equal(stored, np.tile(np.arange(16).reshape(2, BATCH), (2, 1)))


def test_evaluation_covers_the_incomplete_batch_too():
    server, upload = make_server(21), linear_upload(3, 0)
    entropy, loss = jax.jit(lambda params: on_server.evaluate(server, params, {}))(upload.global_params)
    chances = probabilities(flat(upload.global_params), np.asarray(server.inputs).reshape(21, -1))
    np.testing.assert_allclose(entropy, -(chances * np.log(chances)).sum(axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(loss, -np.log(chances[np.arange(21), server.labels]).mean(), rtol=1e-5)


def test_bytes_are_normalised_batch_by_batch():
    mean, std = np.array([0.3, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)
    pixels = np.random.default_rng(0).integers(0, 256, (21, 2, 2, 3)).astype(np.uint8)
    task = task_of(DatasetInfo("bytes", CLASSES, (2, 2, 3), tuple(mean), tuple(std)))
    as_bytes = make_server(inputs=jnp.asarray(pixels), task=task)
    as_floats = make_server(inputs=jnp.asarray((pixels / np.float32(255) - mean) / std))
    upload = linear_upload(5, 0)
    evaluate = jax.jit(lambda server_of: on_server.evaluate(server_of(), upload.global_params, {}), static_argnums=0)
    ours, expected = evaluate(lambda: as_bytes), evaluate(lambda: as_floats)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


@cases
def test_fltrust(seed, absent):
    upload, server = linear_upload(ROWS, seed, absent), make_server()
    start, clients, _, present = rows64(upload)
    order = batch_order(2)
    root = sgd64(start, server, order, 0.05, 0.9, 1e-2) - start
    updates = clients - start
    lengths = np.linalg.norm(updates, axis=1)
    cosines = updates @ root / lengths / np.linalg.norm(root)
    trust = np.maximum(cosines, 0)
    rescaled = updates * (np.linalg.norm(root) / lengths)[:, None]
    model, verdict, _ = call("fltrust", upload)
    np.testing.assert_allclose(flat(model), start + trust @ rescaled / trust.sum(), atol=2e-5)
    np.testing.assert_allclose(verdict.weights, full(trust / trust.sum(), present, ROWS), atol=2e-5)
    np.testing.assert_allclose(np.asarray(verdict.scores)[present], -cosines, atol=2e-5)
    np.testing.assert_array_equal(np.asarray(verdict.flagged)[present], cosines <= 0)


def test_fltrust_by_hand():
    rows = {"w": jnp.array([[6.0, 8.0], [0.0, 5.0], [-3.0, -4.0]])}
    upload = Upload({"w": jnp.zeros(2)}, rows, jnp.ones(3), jnp.ones(3, bool))
    root = {"w": jnp.array([3.0, 4.0])}
    step, verdict = combine(upload, root, False, 1.0)  # trust 1, 0.8 and 0; both updates rescaled to length 5
    np.testing.assert_allclose(step["w"], np.array([3.0, 8.0]) / 1.8, rtol=1e-6)
    np.testing.assert_allclose(verdict.weights, np.array([1.0, 0.8, 0.0]) / 1.8, rtol=1e-6)
    np.testing.assert_array_equal(verdict.flagged, [False, False, True])
    step, _ = combine(upload, root, True, 1.0)  # multipliers 0.5 and 0.8 also in the denominator
    np.testing.assert_allclose(step["w"], np.array([3.0, 8.0]) / 1.3, rtol=3e-5)


def test_fltrust_trusts_nobody_who_stands_still_and_moves_by_the_servers_rate():
    upload = linear_upload(ROWS, 3)
    still = upload._replace(client_params=trees.broadcast(upload.global_params, ROWS))
    model, verdict, _ = call("fltrust", still)
    np.testing.assert_array_equal(flat(model), flat(upload.global_params))
    np.testing.assert_array_equal(verdict.weights, 0.0)
    double = call("fltrust", upload, server_rate=2.0)[0]
    start = flat(upload.global_params)
    np.testing.assert_allclose(flat(double) - start, 2 * (flat(call("fltrust", upload)[0]) - start), atol=1e-5)


@cases
def test_sageflow(seed, absent):
    upload, server = linear_upload(ROWS, seed, absent), make_server()
    _, clients, sizes, present = rows64(upload)
    images, labels = np.asarray(server.inputs, np.float64).reshape(21, -1), np.asarray(server.labels)
    chances = np.stack([probabilities(client, images) for client in clients])
    entropy = -(chances * np.log(chances)).sum(axis=2).mean(axis=1)
    losses = -np.log(chances[:, np.arange(21), labels]).mean(axis=1)
    threshold = float(np.sort(entropy)[-2:].mean())  # one of the clients is filtered
    raw = np.where(entropy > threshold, 0, sizes / losses**1.7)
    model, verdict = call_sageflow(upload, server, threshold, 1.7)
    np.testing.assert_allclose(flat(model), raw @ clients / raw.sum(), atol=2e-5)
    np.testing.assert_allclose(verdict.weights, full(raw / raw.sum(), present, ROWS), atol=2e-5)
    np.testing.assert_allclose(np.asarray(verdict.scores)[present], losses, rtol=1e-5)
    assert np.flatnonzero(verdict.flagged) == present[np.argmax(entropy)]


def test_sageflow_by_hand():
    """On a black image the bias alone speaks: (3/4, 1/4) has the entropy 0.562, (1/2, 1/2) has 0.693."""
    server = make_server(inputs=jnp.zeros((21, 2, 2, 3)), labels=jnp.zeros(21, jnp.int32))
    upload = linear_upload(ROWS, 0, range(3, ROWS))
    bias = jnp.array([[np.log(3.0), 0, -99], [0, 0, -99], [np.log(9.0), 0, -99]] + 9 * [[0, 0, 0]], jnp.float32)
    sizes = jnp.array([1.0, 5, 2] + 9 * [7])
    upload = upload._replace(client_params={**upload.client_params, "bias": bias}, num_examples=sizes)
    _, verdict = call_sageflow(upload, server, 0.6)
    raw = np.array([1 / np.log(4 / 3), 0, 2 / np.log(10 / 9)])
    np.testing.assert_allclose(verdict.weights[:3], raw / raw.sum(), rtol=1e-5)
    np.testing.assert_array_equal(verdict.flagged[:3], [False, True, False])
    # Everybody filtered: the global model stays.
    model, verdict = call_sageflow(upload, server, 0.1)
    np.testing.assert_array_equal(flat(model), flat(upload.global_params))
    assert np.asarray(verdict.flagged)[:3].all()


def test_sageflow_filters_a_model_whose_loss_is_not_finite():
    server = make_server(inputs=make_server().inputs * 1e25)
    upload = scale_row(linear_upload(ROWS, 0), 1, 1e15)
    model, verdict = call_sageflow(upload, server, 2.0)
    assert verdict.flagged[1]
    assert verdict.weights[1] == 0
    np.testing.assert_allclose(verdict.weights.sum(), 1.0, rtol=1e-6)
    assert np.argmax(verdict.scores) == 1
    assert np.isfinite(flat(model)).all()


def test_loss_weights_do_not_overflow():
    losses, kept = jnp.array([1e-20, 2e-20, 1e20]), jnp.ones(3, bool)
    weights = sageflow.loss_weights(losses, jnp.ones(3), kept, 5.0)
    np.testing.assert_allclose(weights, np.array([32.0, 1.0, 0.0]) / 33, rtol=1e-5)


@cases
def test_finetuning(seed, absent):
    upload, server = linear_upload(ROWS, seed, absent), make_server()
    _, clients, sizes, present = rows64(upload)
    order = batch_order(1)
    model, verdict, _ = call("finetuning", upload)
    expected = sgd64(sizes @ clients / sizes.sum(), server, order, 0.05, 0.9, 1e-2)
    np.testing.assert_allclose(flat(model), expected, atol=1e-5)
    np.testing.assert_allclose(verdict.weights, full(sizes / sizes.sum(), present, ROWS), rtol=1e-5)
    rule = made("finetuning", variant="reference", learning_rate=0.2)
    sent, _, state = rule.aggregate(upload, rule.init(upload.global_params, ROWS), KEY)
    np.testing.assert_allclose(flat(sent), clients.mean(axis=0), atol=1e-5)
    expected = sgd64(clients.mean(axis=0), server, order, 0.2, 0.9, 1e-2)
    np.testing.assert_allclose(flat(rule.evaluated(sent, state)), expected, atol=1e-5)


@cases
def test_ft_sam(seed, absent):
    upload, server = linear_upload(ROWS, seed, absent), make_server()
    _, clients, sizes, _ = rows64(upload)
    order = batch_order(1)

    def shake(vector, gradient):
        scaled = np.abs(vector) * gradient
        return 0.7 * np.abs(vector) * scaled / np.linalg.norm(scaled)

    expected = sgd64(sizes @ clients / sizes.sum(), server, order, 0.05, 0.9, 1e-2, shake)
    np.testing.assert_allclose(flat(call("ft_sam", upload, rho=0.7)[0]), expected, atol=1e-5)


def test_ft_sam_by_hand():
    params, gradient = {"w": jnp.array([2.0, -1.0])}, {"w": jnp.array([3.0, 4.0])}
    step = ft_sam.ascent(params, gradient, 0.5, True)["w"]  # T d = (6, 4)
    np.testing.assert_allclose(step, 0.5 * np.array([12.0, 4.0]) / np.sqrt(52), rtol=1e-6)
    np.testing.assert_allclose(ft_sam.ascent(params, gradient, 0.5, False)["w"], [0.3, 0.4], rtol=1e-6)
    flat_loss = ft_sam.ascent(params, {"w": jnp.zeros(2)}, 0.5, True)["w"]
    np.testing.assert_array_equal(flat_loss, 0.0)


@pytest.mark.parametrize(("seed", "absent"), [(0, range(4, 30)), (1, range(8)), (2, (0, 29)), (3, ())])
def test_multi_metrics(seed, absent):
    upload = random_upload(30, absent=absent, seed=seed)
    start, clients, sizes, present = rows64(upload)
    updates = clients - start
    cosines = clients @ start / np.linalg.norm(clients, axis=1) / np.linalg.norm(start)
    features = np.stack([np.abs(updates).sum(axis=1), np.linalg.norm(updates, axis=1), cosines], axis=1)
    sums = np.abs(features[:, None] - features[None]).sum(axis=1)
    sums /= sums.std(axis=0, ddof=1)
    # Of four clients the two in the middle have equal sums: the covariance is singular.
    inverse = np.linalg.pinv(np.cov(sums.T), rcond=1e-6) if len(present) == 4 else np.linalg.inv(np.cov(sums.T))
    scores = np.sqrt(np.einsum("ia,ab,ib->i", sums, inverse, sums))
    kept = np.argsort(scores)[: max(1, int(0.3 * len(present)))]
    shares = np.zeros(len(present))
    shares[kept] = sizes[kept] / sizes[kept].sum()
    model, verdict, _ = call("multi_metrics", upload)
    np.testing.assert_allclose(np.asarray(verdict.scores)[present], scores, rtol=1e-3)
    np.testing.assert_allclose(verdict.weights, full(shares, present, 30), atol=1e-5)
    np.testing.assert_allclose(flat(model), shares @ clients, atol=1e-5)
    assert np.asarray(verdict.flagged).sum() == len(present) - len(kept)


def test_multi_metrics_by_hand():
    """One metric varies, 0, 1, 2, 10: summed differences 13, 11, 11, 27, whose variance is 179 / 3."""
    features = jnp.array([[0.0, 5, 5], [1, 5, 5], [2, 5, 5], [10, 5, 5], [77, 77, 77]])
    scores = jax.jit(multi_metrics.whitened_scores)(features, jnp.array([True, True, True, True, False]))
    np.testing.assert_allclose(scores, np.array([13, 11, 11, 27, 0]) / np.sqrt(179 / 3), rtol=1e-5)


def test_multi_metrics_keeps_its_digits_where_models_lie_close_together():
    upload = random_upload(9, seed=4, spread=3e-3, step=5e-3)
    cosines = np.asarray(jax.jit(multi_metrics.metrics)(upload))[:, 2]
    start, clients, _, _ = rows64(upload)
    expected = 1 - clients @ start / np.linalg.norm(clients, axis=1) / np.linalg.norm(start)
    assert expected.max() < 1e-4
    np.testing.assert_allclose(cosines, expected, rtol=1e-2)


def test_multi_metrics_takes_so_many_clients():
    upload = random_upload(30, absent=range(10, 30), seed=5)

    @jax.jit
    def weights(fraction):
        return aggregators.make("multi_metrics", fraction=fraction).aggregate(upload, (), KEY)[1].weights

    kept = [int((np.asarray(weights(jnp.float32(fraction))) > 0).sum()) for fraction in (0.05, 0.3, 0.39, 1.0)]
    assert kept == [1, 3, 3, 10]


def spearman64(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(one)) for one in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1]) if len(a) > 1 else 0.0


def similarity64(a: np.ndarray, b: np.ndarray, count: int, correlation=spearman64) -> float:
    total = 0.0
    for signed in (a, -a):
        other = b if signed is a else -b
        mine, theirs = (set(np.argsort(-one, kind="stable")[:count]) for one in (signed, other))
        common = sorted(mine & theirs)
        total += 0.5 * (len(common) / len(mine | theirs) + (correlation(a[common], b[common]) + 1) / 2)
    return total


def weights_only(upload: Upload, tree) -> np.ndarray:
    """The entries of the convolution and the linear layer, in the order of the leaves."""
    rows = [np.asarray(tree[name], np.float64) for name in ("conv", "head")]
    lead = () if rows[0].ndim == 4 else (len(upload.participating),)
    return np.concatenate([row.reshape(*lead, -1) for row in rows], axis=-1)


def fedcpa64(upload: Upload, previous=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalities, multipliers and the new model of the paper."""
    start, clients, _, present = rows64(upload)
    count = 126 // 4
    models, center = weights_only(upload, upload.client_params)[present], weights_only(upload, upload.global_params)
    importances = np.abs((models - center) * models)
    pairs = np.array([[similarity64(a, b, count) for b in importances] for a in importances])
    np.fill_diagonal(pairs, 0.0)
    scores = pairs.mean(axis=1)
    if previous is not None:
        reference = np.abs((center - weights_only(upload, previous)) * center)
        scores = scores + np.array([similarity64(a, reference, count) for a in importances])
    scaled = np.clip((scores - scores.min()) / (scores.max() - scores.min()), 0.01, 0.99)
    scaled = np.where((scaled > 0.01) & (scaled < 0.99), (scores - scores.min()) / np.ptp(scores), scaled)
    factors = np.clip(np.log(scaled / (1 - scaled)) + 0.5, 0, 1)
    used = factors > 0
    return scores, factors, (start + factors[used, None] * (clients[used] - start)).mean(axis=0)


@pytest.mark.parametrize(("seed", "absent"), [(0, range(4, 12)), (1, (2,)), (2, ())])
def test_fedcpa(seed, absent):
    rule = made("fedcpa", fraction=0.25)
    upload = random_upload(ROWS, absent=absent, seed=seed)
    state = rule.init(upload.global_params, ROWS)
    previous = None
    for following in (upload, random_upload(ROWS, absent=absent, seed=seed + 50)):
        scores, factors, expected = fedcpa64(following, previous)
        model, verdict, state = rule.aggregate(following, state, KEY)
        present = np.flatnonzero(following.participating)
        np.testing.assert_allclose(-np.asarray(verdict.scores)[present], scores, atol=1e-5)
        np.testing.assert_allclose(flat(model), expected, atol=2e-4)
        np.testing.assert_allclose(np.asarray(verdict.weights)[present], factors / factors.sum(), atol=1e-4)
        np.testing.assert_array_equal(np.asarray(verdict.flagged)[present], factors == 0)
        previous = following.global_params


def test_fedcpa_by_hand():
    lists = jnp.array([[0, 1, 2], [0, 2, 3], [2, 1, 0]])
    overlap = np.asarray(fedcpa._ranked_overlap(lists, 5))
    # {0, 2} of {0, 1, 2, 3}, in the same order; the same three in reverse; {0, 2} in reverse.
    np.testing.assert_allclose(overlap[0, 1], 2 / 4 + 1, rtol=1e-6)
    np.testing.assert_allclose(overlap[0, 2], 1 + 0, rtol=1e-6)
    np.testing.assert_allclose(overlap[1, 2], 2 / 4 + 0, rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(overlap), 2.0, rtol=1e-6)
    factors = fedcpa.multipliers(jnp.array([1.0, 2.0, 3.0, 9.0]), jnp.array([True, True, True, False]))
    np.testing.assert_allclose(factors, [0, 0.5, 1, 0], atol=1e-5)
    rows = {"w": jnp.array([[2.0], [4.0], [6.0], [9.0]])}
    upload = Upload({"w": jnp.zeros(1)}, rows, jnp.ones(4), jnp.array([True, True, True, False]))
    np.testing.assert_allclose(fedcpa.scaled_mean(upload, factors)["w"], (0.5 * 4 + 6) / 2, rtol=1e-5)


def test_fedcpa_with_clients_that_nothing_tells_apart_is_the_plain_mean():
    alike, two = random_upload(ROWS, seed=0, spread=0.0), random_upload(ROWS, absent=range(2, ROWS), seed=1)
    for upload, options in ((alike, {"fraction": 0.25}), (two, {"fraction": 0.25}), (alike, REFERENCE)):
        model, verdict, _ = call("fedcpa", upload, **options)
        clients = rows64(upload)[1]
        np.testing.assert_allclose(flat(model), clients.mean(axis=0), atol=1e-5)
        assert not np.asarray(verdict.flagged).any()


def test_fedcpa_reference_keeps_the_global_model_unless_told_to_install():
    upload = random_upload(ROWS, seed=3)
    kept, verdict, _ = call("fedcpa", upload, variant="reference")
    np.testing.assert_array_equal(flat(kept), flat(upload.global_params))
    installed, same, _ = call("fedcpa", upload, **REFERENCE)
    np.testing.assert_array_equal(verdict.weights, same.weights)
    assert not np.allclose(flat(installed), flat(upload.global_params))


def test_fedcpa_takes_a_model_without_layers_whole():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(6, 40)), jnp.float32)
    upload = Upload({"w": jnp.zeros(40)}, {"w": rows}, jnp.ones(6), jnp.ones(6, bool))
    np.testing.assert_array_equal(fedcpa.layer_weights(upload.client_params), rows)
