"""FLAME, DeepSight and SignGuard against plain statements in NumPy, and on examples checked by hand."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import HDBSCAN, MeanShift, estimate_bandwidth

from fedjax_spmc import aggregators
from fedjax_spmc.aggregators._clipping import standard_noise
from fedjax_spmc.aggregators._distances import cosine_distances
from fedjax_spmc.aggregators.deepsight import normalised_energies, random_inputs, threshold_exceedings
from fedjax_spmc.aggregators.signguard import draw_coordinates, sign_statistics
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Upload
from tests.test_hdbscan import slow_labels
from tests.uploads import flat, model_upload, random_upload, scale_row, server_data

KEY = jax.random.key(3)
DDIFS = {"seeds": 2, "samples": 30}


@functools.cache
def compiled(name, **options):
    """The rule under jit, the traced ones of its options as an argument."""
    server = {"network": server_data().model} if name == "deepsight" else {}

    def aggregate(upload, traced):
        rule = aggregators.make(name, **options, **traced, **server)
        return rule.aggregate(upload, rule.init(upload.global_params, len(upload.participating)), KEY)

    return jax.jit(aggregate)


def run(upload, name, traced=None, **options):
    """The model as one vector, the verdict."""
    model, verdict, _ = compiled(name, **options)(upload, traced or {})
    return flat(model), verdict


def rows_of(upload):
    """Global model [D] and uploads [K, D], float64, leaf after leaf."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(upload.client_params)]
    rows = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    return flat(upload.global_params).astype(np.float64), rows


def numbers_upload(rows, width=None):
    """Clients that send these numbers to a global model of 0; absent rows and zeros fill up one shape."""
    full = np.zeros((12, width or len(rows[0])), np.float32)
    full[: len(rows), : len(rows[0])] = rows
    return Upload(jnp.zeros(full.shape[1]), jnp.asarray(full), jnp.ones(12), jnp.arange(12) < len(rows))


def clipped_mean(start, rows, present, kept):
    """The mean of the kept updates, cut to the median length of all present ones, and their shares in it."""
    lengths = np.linalg.norm(rows - start, axis=1)
    bound = np.median(lengths[present])
    factors = np.where(kept, np.minimum(1, bound / np.maximum(lengths, 1e-30)), 0)
    return start + factors @ (rows - start) / kept.sum(), factors / factors.sum(), bound


def check(upload, kept, name, noise=0.0, traced=None, **options):
    """The rule keeps `kept` and no other, with the model and the weights that follow; returns its scores."""
    start, rows = rows_of(upload)
    present = np.asarray(upload.participating)
    expected, weights, bound = clipped_mean(start, rows, present, kept)
    model, verdict = run(upload, name, traced, **options)
    np.testing.assert_array_equal(verdict.flagged, present & ~kept)
    np.testing.assert_allclose(verdict.weights, weights, atol=2e-6)
    drawn = flat(standard_noise(KEY, upload.global_params)).astype(np.float64)
    np.testing.assert_allclose(model, expected + noise * bound * drawn, atol=1e-5)
    return np.asarray(verdict.scores)


def flame_keeps(points, present):
    """HDBSCAN of cosine distances, in float64, by scikit-learn."""
    seen = points[present]
    unit = seen / np.linalg.norm(seen, axis=1, keepdims=True)
    distances = np.maximum(1 - unit @ unit.T, 0)
    np.fill_diagonal(distances, 0)
    settings = HDBSCAN(min_cluster_size=len(seen) // 2 + 1, min_samples=1, metric="precomputed", copy=True)
    labels = settings.set_params(allow_single_cluster=True).fit(distances).labels_
    kept = np.zeros(len(points), bool)
    kept[present] = labels >= 0
    scores = np.zeros(len(points))
    scores[present] = distances[:, labels >= 0].mean(axis=1)
    return kept, scores


@pytest.mark.parametrize("space", ["weights", "updates"])
def test_flame(space):
    for seed in range(4):
        upload = random_upload(12, absent=[seed, 9], seed=seed)
        for row in (5, 6, 7):
            upload = scale_row(upload, row, -2.0 - row)
        start, rows = rows_of(upload)
        kept, scores = flame_keeps(rows - start if space == "updates" else rows, np.asarray(upload.participating))
        assert 6 <= kept.sum() < 10
        assert not kept[[5, 6, 7]].any()
        noise = 0.05 * seed
        ours = check(upload, kept, "flame", noise, {"noise_factor": noise}, space=space)
        np.testing.assert_allclose(ours, scores, atol=1e-6)


def test_flame_by_hand():
    """Lengths 5, 5, 10, 1, 5: the median is 5. Directions: 3 alike, one across, one opposite; three are admitted."""
    upload = numbers_upload([[3, 4], [3, 4], [6, 8], [0.8, -0.6], [-3, -4]], width=30)
    model, verdict = run(upload, "flame", {"noise_factor": 0.0}, space="updates")
    np.testing.assert_allclose(model, [3, 4, *[0] * 28], rtol=1e-6)
    np.testing.assert_allclose(verdict.weights[:5], [0.4, 0.4, 0.2, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(verdict.flagged[:6], [False, False, False, True, True, False])
    np.testing.assert_allclose(verdict.scores[:5], [0, 0, 0, 1, 2], atol=1e-6)


def test_flame_adds_noise_in_proportion_to_the_median_length():
    upload = numbers_upload(np.tile(np.arange(1.0, 31.0), (4, 1)))
    plain, _ = run(upload, "flame", {"noise_factor": 0.0}, space="updates")
    noisy, verdict = run(upload, "flame", {"noise_factor": 0.25}, space="updates")
    np.testing.assert_allclose(plain, np.arange(1, 31), rtol=1e-6)
    drawn = np.asarray(standard_noise(KEY, upload.global_params))
    np.testing.assert_allclose(noisy - plain, 0.25 * np.sqrt(30 * 31 * 61 / 6) * drawn, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(verdict.weights[:4], 0.25)
    assert aggregators.make("flame", noise_factor=0.0).traits.consensus
    assert not aggregators.make("flame").traits.consensus


def test_cosine_distances_keep_the_digits_of_nearly_parallel_rows():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=500) * 10 + 1e-2 * rng.normal(size=(6, 500))).astype(np.float32)
    rows[4], present = 0, np.array([1, 1, 0, 1, 1, 1], bool)
    exact = rows.astype(np.float64)
    unit = exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-300)
    expected = np.square(unit[:, None] - unit[None]).sum(axis=2) / 2
    expected[4], expected[:, 4], expected[4, 4] = 1, 1, 0
    rows = jnp.asarray(np.where(present[:, None], rows, 0))
    distances = np.asarray(cosine_distances(rows, jnp.zeros(500), jnp.asarray(present)))
    inside = np.ix_(present, present)
    np.testing.assert_allclose(distances[inside], expected[inside], rtol=1e-3, atol=1e-12)
    assert 1e-8 < expected[0, 1] < 1e-5
    assert (distances[2] == 0).all()


def signguard_keeps(start, rows, present, positions, quantile=0.5):
    updates = rows[present] - start
    lengths = np.linalg.norm(updates, axis=1)
    usual = (lengths >= 0.1 * np.median(lengths)) & (lengths <= 3 * np.median(lengths))
    signs = np.sign(updates[:, positions])
    features = np.stack([(signs == sign).mean(axis=1) for sign in (1, 0, -1)], axis=1)
    bandwidth = estimate_bandwidth(features, quantile=quantile)
    labels = MeanShift(bandwidth=bandwidth, cluster_all=False).fit(features).labels_
    alike = labels == np.bincount(labels[labels >= 0]).argmax()
    kept = np.zeros(len(rows), bool)
    kept[present] = usual & alike
    return kept, usual, alike


def test_signguard():
    seen = set()
    for seed in range(4):
        upload = random_upload(12, absent=[seed], seed=seed, step=0.0)
        # A common shift of all numbers gives the benign ones their signs; two have opposite ones, one is too long.
        upload = upload._replace(client_params=jax.tree.map(lambda x: x + 0.25, upload.client_params))
        upload = scale_row(scale_row(scale_row(upload, 8, -1.0), 9, -1.0), 7, 4.0)
        start, rows = rows_of(upload)
        positions = np.asarray(draw_coordinates(KEY, len(start), 0.5))
        assert len(set(positions)) == round(0.5 * len(start))
        present = np.asarray(upload.participating)
        kept, usual, alike = signguard_keeps(start, rows, present, positions)
        scores = check(upload, kept, "signguard", coordinates=0.5)
        np.testing.assert_array_equal(scores[present] // 2, 2.0 - usual - alike)
        seen |= {(bool(a), bool(b)) for a, b in zip(usual, alike, strict=True)}
        assert kept.any()
    assert len(seen) >= 3


def test_sign_statistics_by_hand():
    statistics = sign_statistics(jnp.array([[3.0, -4, 0, 1], [-3, -4, -1, -1], [0, 0, 0, 5]]))
    np.testing.assert_array_equal(statistics, [[0.5, 0.25, 0.25], [0, 0, 1], [0.25, 0.75, 0]])
    assert len(draw_coordinates(KEY, 5, 0.1)) == 1
    assert len(draw_coordinates(KEY, 1234, 0.1)) == 123


@pytest.mark.parametrize("cluster", ["meanshift", "kmeans"])
def test_signguard_by_hand(cluster):
    """The median length is 5: the third is too long, the fifth too short; the fourth and the last have other signs."""
    upload = numbers_upload([[3, 4], [4, 3], [12, 16], [-3, -4], [0.24, 0.32], [3, 4], [-4, -3]])
    model, verdict = run(upload, "signguard", {"upper": 3.0}, cluster=cluster, coordinates=1.0)
    np.testing.assert_allclose(model, [10 / 3, 11 / 3], rtol=1e-6)
    np.testing.assert_allclose(verdict.weights[:7], np.array([1, 1, 0, 0, 0, 1, 0]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(verdict.flagged[:8], [False, False, True, True, True, False, True, False])
    root = np.sqrt(2)
    np.testing.assert_allclose(verdict.scores[:7], [0, 0, 2, 2 + root, 2, 0, 2 + root], atol=1e-6)


def test_signguard_cuts_to_the_median_and_keeps_the_global_model_if_nobody_passes():
    upload = numbers_upload([[1, 1], [2, 2], [4, 4], [2, 2]])
    model, verdict = run(upload, "signguard", {"upper": 3.0}, cluster="meanshift", coordinates=1.0)
    np.testing.assert_allclose(model, [1.75, 1.75], rtol=1e-6)
    np.testing.assert_allclose(verdict.weights[:4], np.array([2, 2, 1, 2]) / 7, rtol=1e-6)
    model, verdict = run(upload, "signguard", {"upper": 0.4}, cluster="meanshift", coordinates=1.0)
    np.testing.assert_array_equal(model, 0)
    np.testing.assert_array_equal(verdict.weights, 0)


def deepsight_labels(distances, present):
    labels = np.full(len(present), -1)
    labels[present] = slow_labels(distances[np.ix_(present, present)], 2, 1, single=True)
    return labels


def apart(labels):
    different = (labels[:, None] != labels[None]) | (labels < 0)[:, None]
    return (different & ~np.eye(len(labels), dtype=bool)).astype(float)


def probabilities(leaves, images):
    """The tiny network of `server_data`: channel-major images, one hidden layer, softmax."""
    hidden_weight, hidden_bias, weight, bias = leaves
    inputs = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    logits = np.maximum(inputs @ hidden_weight.T + hidden_bias, 0) @ weight.T + bias
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def deepsight_keeps(upload, ddifs, seeds=2, samples=30):
    present = np.asarray(upload.participating)
    start = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(upload.global_params)]
    ours = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(upload.client_params)]
    moved = np.abs(ours[-2] - start[-2]).sum(axis=2) + np.abs(ours[-1] - start[-1])
    energies = moved**2 / (moved**2).sum(axis=1, keepdims=True)
    exceedings = (energies > energies.max(axis=1, keepdims=True) / 3).sum(axis=1)
    suspicious = exceedings <= np.median(exceedings[present]) / 2
    bias = ours[-1] - start[-1]
    cosines = bias @ bias.T / np.outer(np.linalg.norm(bias, axis=1), np.linalg.norm(bias, axis=1))

    def gaps(points):
        return np.linalg.norm(points[:, None] - points[None], axis=2)

    parts = [
        apart(deepsight_labels(np.maximum(1 - cosines, 0).round(12), present)),
        apart(deepsight_labels(gaps(energies), present)),
    ]
    if ddifs:
        by_seed = []
        for key in jax.random.split(KEY, seeds):
            images = np.asarray(random_inputs(key, jnp.arange(samples), server_data().model, 0), np.float64)
            base = probabilities(start, images)
            ratios = [(probabilities([x[k] for x in ours], images) / base).mean(axis=0) for k in range(len(present))]
            by_seed.append(apart(deepsight_labels(gaps(np.stack(ratios)), present)))
        parts.append(np.mean(by_seed, axis=0))
    labels = deepsight_labels(np.mean(parts, axis=0), present)
    share = np.array(
        [
            suspicious[(labels == labels[k]) & present].mean() if labels[k] >= 0 else suspicious[k]
            for k in range(len(present))
        ]
    )
    return present & (share < 1 / 3), np.where(present, share, 0)


@pytest.mark.slow
@pytest.mark.parametrize("ddifs", [True, False])
def test_deepsight(ddifs):
    outcomes = set()
    for seed in range(4):
        upload = model_upload(10, absent=[seed], seed=seed, spread=0.1)
        # Three clients have moved one output alone, as those do whose data have one class.
        upload.client_params["cls"]["weight"] = one_output(
            upload.client_params["cls"]["weight"], upload.global_params["cls"]["weight"]
        )
        upload.client_params["cls"]["bias"] = one_output(
            upload.client_params["cls"]["bias"], upload.global_params["cls"]["bias"]
        )
        kept, share = deepsight_keeps(upload, ddifs)
        assert not kept[7:].any()
        scores = check(upload, kept, "deepsight", **(DDIFS if ddifs else {"ddifs": False}))
        np.testing.assert_allclose(scores, share, atol=1e-6)
        outcomes |= set(np.round(share, 4))
    assert len(outcomes) >= 2


def one_output(leaf, start):
    mask = jnp.zeros(leaf.shape[1]).at[1].set(1).reshape(-1, *[1] * (leaf.ndim - 2))
    return leaf.at[7:].set(start[None] + mask[None] * (leaf[7:] - start[None]))


def test_deepsight_energies_by_hand():
    """Sums |bias| + |weights| of 1, 2, 3: squares 1, 4, 9 of 14; above a third of the largest (3 of 9) lie two."""
    weight = jnp.array([[[0.5, 0], [1, -1], [0, 0]], [[0, 0], [0, 0], [0, 0]]])
    bias = jnp.array([[-0.5, 0, 3], [0, 0, 0]])
    energies = normalised_energies(weight, bias)
    np.testing.assert_allclose(energies, [[1 / 14, 4 / 14, 9 / 14], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(threshold_exceedings(energies), [2, 0])
    np.testing.assert_allclose(normalised_energies(1e-25 * weight, 1e-25 * bias)[0], energies[0], rtol=1e-6)


def test_deepsight_says_what_is_missing():
    upload = model_upload(4)
    rule = aggregators.make("deepsight")
    with pytest.raises(ConfigError, match="network=model"):
        jax.eval_shape(rule.aggregate, upload, (), KEY)
    with pytest.raises(ConfigError, match=re.escape("(4, 3, 3, 3), (3, 6)")):
        jax.eval_shape(
            aggregators.make("deepsight", ddifs=False).aggregate,
            upload._replace(
                global_params=[jnp.zeros((4, 3, 3, 3)), jnp.zeros((3, 6))],
                client_params=[jnp.ones((4, 4, 3, 3, 3)), jnp.ones((4, 3, 6))],
            ),
            (),
            KEY,
        )


@pytest.mark.parametrize("name", ["flame", "deepsight", "signguard"])
def test_identical_uploads_two_clients_and_no_step(name):
    traced = {"noise_factor": 0.0} if name == "flame" else {}
    options = {"flame": {"space": "weights"}, "deepsight": DDIFS, "signguard": {"coordinates": 0.5}}[name]
    number = 10 if name == "deepsight" else 12
    upload = (model_upload if name == "deepsight" else random_upload)(number, spread=0.0)
    model, verdict = run(upload, name, traced, **options)
    np.testing.assert_allclose(model, flat(jax.tree.map(lambda x: x[0], upload.client_params)), atol=1e-6)
    assert float(verdict.weights.sum()) == pytest.approx(1)
    two = upload._replace(participating=jnp.arange(number) < 2)
    _, verdict = run(two, name, traced, **options)
    np.testing.assert_allclose(verdict.weights[:2], 0.5)
    one = upload._replace(participating=jnp.arange(number) < 1)
    model, _ = run(one, name, traced, **options)
    np.testing.assert_array_equal(model, flat(upload.global_params))
    still = jax.tree.map(lambda g: jnp.broadcast_to(g, (number, *g.shape)), upload.global_params)
    model, _ = run(upload._replace(client_params=still), name, traced, **options)
    np.testing.assert_allclose(model, flat(upload.global_params), atol=1e-7)
