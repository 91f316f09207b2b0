"""FDCR's server half against NumPy, its corners, its leak; DBA's split trigger; detection."""

import itertools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, attacks, clustering, metrics, run
from fedjax_spmc.aggregators import fdcr
from fedjax_spmc.aggregators._clipping import standard_noise
from fedjax_spmc.attacks import dba, triggers
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.task import task_of
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import AttackContext, Batch, Roster
from tests import small
from tests.uploads import flat, random_upload

pytestmark = pytest.mark.pictures

KEY = jax.random.key(5)
SCORES = ("l2", "mse", "cosine", "nmse", "unit")


def aggregate(upload, **options):
    rule = aggregators.make("fdcr", **options)
    return rule.aggregate(upload, rule.init(upload.global_params, len(upload.participating)), KEY)


def rows(tree):
    """[K, D] float64."""
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in leaves], axis=1)


def with_fisher(upload, change):
    return upload._replace(extras={"fisher": jax.tree.map(change, upload.extras["fisher"])})


def plain(upload, score="l2", sizes=True, power=1.0):
    """One step in float64 by the formulas: V, alpha, the model; the cluster from FINCH on V."""
    start, models, fisher = (
        flat(upload.global_params).astype(np.float64),
        rows(upload.client_params),
        rows(upload.extras["fisher"]),
    )
    low, high = fisher.min(axis=1, keepdims=True), fisher.max(axis=1, keepdims=True)
    degrees = (fisher - low) / (high - low)
    alpha = np.asarray(upload.num_examples, np.float64) if sizes else np.ones(len(models))
    alpha = alpha / alpha.sum()
    weighted = (start - models) / float(upload.learning_rate) * degrees
    center = alpha @ weighted
    gaps = weighted - center
    norms, mean_norm = np.linalg.norm(weighted, axis=1), np.linalg.norm(center)
    values = {
        "l2": np.linalg.norm(gaps + 1e-6, axis=1),
        "mse": (gaps**2).mean(axis=1),
        "cosine": 1 - weighted @ center / (norms * mean_norm),
        "nmse": (gaps**2).mean(axis=1) / norms**2,
        "unit": ((weighted / norms[:, None] - center / mean_norm) ** 2).mean(axis=1),
    }[score]
    labels = np.asarray(clustering.finch(jnp.asarray(values, jnp.float32)))
    means = [values[labels == j].mean() for j in range(labels.max() + 1)]
    removed = labels == np.argmax(means) if len(means) > 1 else np.zeros(len(models), bool)
    kept = np.where(removed, 0, alpha) / np.where(removed, 0, alpha).sum()
    factor = 2 / (1 + np.exp(-degrees)) if len(means) > 1 else 1.0
    return values, kept, removed, start + kept @ (factor * (models - start))


@pytest.mark.parametrize("score", SCORES)
def test_the_formulas(score):
    for seed, sizes in ((0, True), (1, False)):
        upload = random_upload(9, seed=seed)
        values, kept, removed, model = plain(upload, score, sizes)
        ours, verdict, _ = aggregate(upload, score=score, weights="size" if sizes else "uniform")
        np.testing.assert_allclose(verdict.scores, values, rtol=2e-5)
        np.testing.assert_array_equal(verdict.flagged, removed)
        np.testing.assert_allclose(verdict.weights, kept, atol=1e-6)
        np.testing.assert_allclose(flat(ours), model, atol=2e-5)
        assert removed.any()


def test_the_score_of_a_slice():
    upload = random_upload(9)
    part = upload._replace(
        global_params={"head": upload.global_params["head"]},
        client_params={"head": upload.client_params["head"]},
    )
    _, whole, _ = aggregate(upload)
    _, sliced, _ = aggregate(upload, score_slice=("head",))
    degrees = fdcr.min_max(upload.extras["fisher"])["head"]
    weighted = fdcr.importance_weighted(part, {"head": degrees})
    expected = fdcr.discrepancies("l2", weighted, fdcr.shares(upload, "size"), [True])
    np.testing.assert_allclose(sliced.scores, expected, rtol=1e-6)
    assert not np.allclose(sliced.scores, whole.scores, rtol=1e-2)
    with pytest.raises(ConfigError, match=r"score_slice: 'tail' is unknown: .* bias, conv, head, scale"):
        aggregate(upload, score_slice=("tail",))


def test_a_name_of_a_slice_may_be_a_module():
    params = {"fc1": {"weight": jnp.zeros(2), "bias": jnp.zeros(1)}, "fc10": {"weight": jnp.zeros(3)}}
    assert fdcr.in_slice(params, ("fc1",)) == [True, True, False]
    assert fdcr.in_slice(params, ("fc1.weight", "fc10")) == [False, True, True]


def test_without_importance_no_fisher_is_needed_and_all_entries_count_alike():
    upload = random_upload(9)
    ones = with_fisher(upload, jnp.ones_like)
    ours = aggregate(upload._replace(extras={}), importance=False, rescale="off")
    chex.assert_trees_all_close(ours[:2], aggregate(ones, rescale="off")[:2], rtol=1e-6)


def test_without_discrepancy_nobody_is_removed_and_all_are_rescaled():
    upload = random_upload(9)
    model, verdict, _ = aggregate(upload, discrepancy=False)
    assert not np.asarray(verdict.flagged).any()
    np.testing.assert_allclose(verdict.weights, upload.num_examples / upload.num_examples.sum(), rtol=1e-6)
    factor = 2 / (1 + np.exp(-rows(fdcr.min_max(upload.extras["fisher"]))))
    moved = factor * (rows(upload.client_params) - flat(upload.global_params))
    np.testing.assert_allclose(flat(model), flat(upload.global_params) + np.asarray(verdict.weights) @ moved, atol=1e-5)


def test_the_raw_fisher_hardly_rescales():
    upload = with_fisher(random_upload(9), lambda x: 1e-6 * x)
    off, raw, minmax = (flat(aggregate(upload, rescale=kind)[0]) for kind in ("off", "raw", "minmax"))
    np.testing.assert_allclose(raw, off, atol=1e-5)
    assert np.abs(minmax - off).max() > 1e-2


@pytest.mark.parametrize("no_partition", ["mean", "rescale"])
@pytest.mark.parametrize("present", [1, 2, 3])
def test_up_to_three_clients_there_is_no_partition(present, no_partition):
    upload = random_upload(9, absent=range(present, 9))
    model, verdict, _ = aggregate(upload, no_partition=no_partition)
    assert not np.asarray(verdict.flagged).any()
    np.testing.assert_allclose(verdict.weights.sum(), 1, rtol=1e-6)
    mean = np.asarray(verdict.weights) @ rows(upload.client_params)
    assert np.allclose(flat(model), mean, atol=1e-5) == (no_partition == "mean")


def test_equal_scores_are_one_cluster():
    upload = random_upload(9, spread=0.0)
    same = with_fisher(upload, lambda x: jnp.broadcast_to(x[:1], x.shape))
    model, verdict, _ = aggregate(same)
    assert not np.asarray(verdict.flagged).any()
    np.testing.assert_allclose(flat(model), rows(upload.client_params)[0], atol=1e-6)
    chex.assert_tree_all_finite((model, verdict))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf, 1e30])
def test_a_client_whose_fisher_is_not_finite_is_left_out_and_flagged(value):
    upload = random_upload(9)
    broken = with_fisher(upload, lambda x: x.at[3].set(value))
    model, verdict, _ = aggregate(broken)
    without = upload._replace(participating=upload.participating.at[3].set(False))
    expected, expected_verdict, _ = aggregate(without)
    chex.assert_trees_all_equal(model, expected)
    np.testing.assert_array_equal(verdict.weights, expected_verdict.weights)
    assert verdict.flagged[3]
    assert int(np.argmax(verdict.scores)) == 3
    chex.assert_tree_all_finite((model, verdict))


def test_nobody_with_a_finite_fisher_keeps_the_global_model():
    upload = random_upload(9)
    model, verdict, _ = aggregate(with_fisher(upload, lambda x: x * jnp.nan))
    chex.assert_trees_all_equal(model, upload.global_params)
    np.testing.assert_array_equal(verdict.weights, 0)


def test_a_constant_fisher_says_that_all_parameters_matter_alike():
    upload = random_upload(9)
    zeros, ones = (with_fisher(upload, lambda x, v=v: x.at[2].set(v)) for v in (0.0, 1.0))
    chex.assert_trees_all_equal(aggregate(zeros), aggregate(ones))
    degrees = rows(fdcr.min_max(zeros.extras["fisher"]))
    np.testing.assert_array_equal(degrees[2], 1)
    np.testing.assert_array_equal(rows(fdcr.min_max(zeros.extras["fisher"], 1e-12))[2], 0)
    chex.assert_tree_all_finite(aggregate(with_fisher(upload, jnp.zeros_like))[:2])


@pytest.mark.parametrize("cluster", ["kmeans", "dbscan"])
def test_other_clusterings(cluster):
    upload = random_upload(9)
    options = {"dbscan_eps": 2.0, "dbscan_min_samples": 2} if cluster == "dbscan" else {}
    _, verdict, _ = aggregate(upload, cluster=cluster, **options)
    scores = np.asarray(verdict.scores)
    labels = np.asarray(
        clustering.kmeans(verdict.scores) if cluster == "kmeans" else clustering.dbscan(verdict.scores, 2.0, 2)
    )
    top = max(set(labels), key=lambda label: scores[labels == label].mean())
    np.testing.assert_array_equal(verdict.flagged, (labels == top) & (len(set(labels)) > 1))
    assert np.asarray(verdict.flagged).any()


def test_the_leak_replaces_the_fisher_of_malicious_clients_by_noise():
    upload = random_upload(9)
    malicious = jnp.arange(9) >= 6
    told = upload._replace(extras={**upload.extras, "malicious": malicious})
    noisy = fdcr.leak(upload.extras["fisher"], malicious, standard_noise(KEY, upload.extras["fisher"]))
    chex.assert_trees_all_equal(
        aggregate(told, oracle_fisher_noise=True), aggregate(upload._replace(extras={"fisher": noisy}))
    )
    chex.assert_trees_all_equal(aggregate(told), aggregate(upload))
    benign = rows(noisy)[:6]
    np.testing.assert_array_equal(benign, rows(upload.extras["fisher"])[:6])
    with pytest.raises(ConfigError, match="oracle_fisher_noise = True is not allowed with importance = False"):
        aggregators.make("fdcr", oracle_fisher_noise=True, importance=False)


def test_pictures_show_what_was_uploaded():
    upload = with_fisher(random_upload(9), lambda x: x.at[4].set(jnp.nan))
    shown = aggregators.make("fdcr").details(upload)
    degrees = rows(fdcr.min_max(upload.extras["fisher"]))
    others = np.arange(9) != 4
    np.testing.assert_allclose(shown["importance_shares"].sum(axis=1), others, atol=1e-6)
    edges = np.asarray(shown["importance_edges"])
    np.testing.assert_allclose(shown["importance_shares"][0, 0], (degrees[0] < edges[0]).mean(), atol=1e-6)
    cosine = degrees[0] @ degrees[1] / np.linalg.norm(degrees[0]) / np.linalg.norm(degrees[1])
    np.testing.assert_allclose(shown["importance_similarity"][0, 1], cosine, rtol=1e-5)
    assert not np.asarray(shown["importance_similarity"])[4].any()


def test_a_config_that_cannot_work_is_refused_before_anything_is_written(tmp_path, capsys):
    workdir = tmp_path / "run"
    argv = small.arguments(workdir, "local.rule=sgd", presets="fdcr")
    small.refused(capsys, argv, "local.rule = 'sgd'", "aggregator.name = 'fdcr'", "must be one of fdcr")
    argv = small.arguments(workdir, "aggregator.options.score_slice=fc9", presets="fdcr")
    small.refused(capsys, argv, "score_slice", "'fc9'", "cls.weight")
    assert not workdir.exists()


@pytest.mark.slow
def test_a_run_with_the_leak_is_marked_and_draws_its_pictures(tmp_path, small_cache):
    workdir = tmp_path / "run"
    assert (
        run.main(small.arguments(workdir, "aggregator.options.oracle_fisher_noise=true", rounds=2, presets="fdcr")) == 0
    )
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["oracle"]
    detected = {f"{name}_run" for name in (*metrics.DETECTION, "perfect_rounds")}
    assert detected <= summary.keys()
    for name in ("verdicts.png", "importance.png", "details.npz"):
        assert (workdir / name).stat().st_size > 500


def test_the_attackers_of_dba_share_the_trigger_out():
    preset = triggers.PRESETS["fdcr_code"]
    roster = Roster(jnp.array([False, True, False, True, True]), jnp.int32(0), jnp.int32(9), jnp.int32(0))
    task = task_of(DatasetInfo("made up", 10, (32, 32, 3), (0.0,) * 3, (1.0,) * 3))
    context = AttackContext(task=task, roster=roster)
    split, whole = (
        attacks.make(name, poison_fraction=1.0, trigger="fdcr_code", target_label=2) for name in ("dba", "badnets")
    )
    own, whole_own = (attack.init(context, KEY) for attack in (split, whole))
    rows = jnp.arange(2, dtype=jnp.int32)
    batch = Batch(jnp.full((2, 32, 32, 3), -7.0), jnp.array([5, 2], jnp.int32), rows, jnp.ones(2, bool))
    stamped = {}
    for client in (1, 3, 4):
        poisoned = split.poison(context, own, batch, jnp.int32(client), jnp.int32(0), KEY)
        stamped[client] = {tuple(int(i) for i in at) for at in np.argwhere(np.asarray(poisoned.inputs[0]) != -7.0)}
        np.testing.assert_array_equal(poisoned.labels, [2, 2])
    for rank, client in enumerate((1, 3, 4)):  # one colour channel each
        assert {channel for _, _, channel in stamped[client]} == {rank}
        assert len(stamped[client]) == 12
    assert set.union(*stamped.values()) == {(row, column, channel) for channel, row, column in preset.positions}
    tested = split.backdoor(context, own, batch)
    chex.assert_trees_all_equal(tested, whole.backdoor(context, whole_own, batch))


@pytest.mark.parametrize("parts", [1, 2, 5, 36, 40])
def test_parts_are_contiguous_and_nearly_equal(parts):
    bounds = [[int(i) for i in dba.part(rank, parts, 36)] for rank in range(parts)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == 36
    assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    sizes = [end - start for start, end in bounds]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


def test_detection_over_a_run_pools_the_flags():
    """Client 2 attacks in the first round alone: what is flagged of it later is a false alarm."""
    lines = [
        {"flagged": [False, False, True, True], "attacking": [False, False, True, True], "auc": 1.0},
        {"flagged": [True, False], "attacking": [True, False], "auc": None},
        {"flagged": [True, True, True], "attacking": [False, True, False], "auc": 0.5},
    ]
    for line, present in zip(lines, ([True] * 4, [True] * 2, [True, False, True]), strict=True):
        line["participating"] = present
    found = metrics.detection_over_run(lines)
    assert found["tpr"] == 100.0  # two and one; the absent one is not counted
    assert found["fpr"] == 40.0  # none of two, none of one, both of two
    assert found["precision"] == 60.0
    assert found["f1"] == 75.0
    assert found["auc"] == 0.75
    assert found["perfect_rounds"] == pytest.approx(200 / 3)
    assert set(metrics.detection_over_run([]).values()) == {None}
