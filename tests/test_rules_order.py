"""Median, trimmed mean, Krum, Multi-Krum, Bulyan and RFA against plain NumPy, and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators
from fedjax_spmc.aggregators import _krum
from fedjax_spmc.aggregators.bulyan import mean_of_selected, selection_by_krum
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Upload
from tests.uploads import flat, random_upload, scale_row

KEY = jax.random.key(0)


@functools.cache
def rule(name, **options):
    made = aggregators.make(name, **options)
    return made._replace(aggregate=jax.jit(made.aggregate))


def run(upload, name, state=None, **options):
    made = rule(name, **options)
    state = made.init(upload.global_params, len(upload.participating)) if state is None else state
    return made.aggregate(upload, state, KEY)


def rows_of(upload):
    """[n, D] float64: the uploads that take part."""
    present = np.asarray(upload.participating)
    names = sorted(upload.global_params)
    rows = np.concatenate([np.asarray(upload.client_params[n]).reshape(len(present), -1) for n in names], axis=1)
    return rows[present].astype(np.float64)


def column(values, participating=None, start=0.0):
    """An upload of models with a few numbers each."""
    values = jnp.asarray(values, jnp.float32).reshape(len(values), -1)
    present = jnp.ones(len(values), bool) if participating is None else jnp.asarray(participating)
    return Upload({"w": jnp.full(values.shape[1], start)}, {"w": values}, jnp.ones(len(values)), present)


# ---- plain statements


def krum_scores(rows, f):
    scores = []
    for i in range(len(rows)):
        squares = sorted(((rows[i] - rows[j]) ** 2).sum() for j in range(len(rows)) if j != i)
        scores.append(sum(squares[: max(len(rows) - f - 2, 1)]))
    return np.array(scores)


def plain_median(upload):
    return np.median(rows_of(upload), axis=0)


def plain_trimmed_mean(upload):
    rows = np.sort(rows_of(upload), axis=0)
    f = max((len(rows) - 3) // 2, 0)
    return rows[f : len(rows) - f].mean(axis=0)


def plain_krum(upload):
    rows = rows_of(upload)
    return rows[np.argmin(krum_scores(rows, (len(rows) - 3) // 2))]


def plain_multi_krum(upload):
    rows = rows_of(upload)
    f = (len(rows) - 3) // 2
    return rows[np.argsort(krum_scores(rows, f), kind="stable")[: len(rows) - f]].mean(axis=0)


def bulyan_selection(rows, f):
    left, selected = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        best = int(np.argmin(krum_scores(rows[left], f))) if len(left) > 1 else 0
        selected.append(left.pop(best))
    return selected


def plain_bulyan(upload):
    rows = rows_of(upload)
    f = (len(rows) - 3) // 4
    selected = rows[bulyan_selection(rows, f)]
    nearest = np.argsort(np.abs(selected - np.median(selected, axis=0)), axis=0, kind="stable")
    return np.take_along_axis(selected, nearest[: len(rows) - 4 * f], axis=0).mean(axis=0)


def plain_rfa(upload):
    rows = rows_of(upload)
    alpha = np.asarray(upload.num_examples, np.float64)[np.asarray(upload.participating)]
    alpha /= alpha.sum()
    point = alpha @ rows
    for _ in range(3):
        beta = alpha / np.maximum(np.linalg.norm(rows - point, axis=1), 1e-6)
        point = beta @ rows / beta.sum()
    return point


PLAIN = {
    "median": plain_median,
    "trimmed_mean": plain_trimmed_mean,
    "krum": plain_krum,
    "multi_krum": plain_multi_krum,
    "bulyan": plain_bulyan,
    "rfa": plain_rfa,
}


@pytest.mark.parametrize("num_clients", [4, 11, 30])
@pytest.mark.parametrize("name", PLAIN)
def test_paper_against_the_plain_statement(name, num_clients):
    for seed in range(3):
        absent = [num_clients // 2] if seed else []
        upload = scale_row(random_upload(num_clients, absent=absent, seed=seed), 1, 6.0)
        model, verdict, _ = run(upload, name)
        np.testing.assert_allclose(flat(model), PLAIN[name](upload), atol=1e-5)
        assert float(verdict.weights.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_a_far_upload_and_a_large_model_do_not_blur_the_distances_between_the_others():
    rng = np.random.default_rng(0)
    models = 1e3 + rng.normal(scale=1e-2, size=(9, 50)).astype(np.float32)
    models[4] = 1e12
    upload = column(models, start=1e3)
    exact = ((models[:, None].astype(np.float64) - models[None]) ** 2).sum(axis=-1)
    ours = np.asarray(_krum.squared_distances(upload))
    np.testing.assert_allclose(
        np.delete(np.delete(ours, 4, 0), 4, 1), np.delete(np.delete(exact, 4, 0), 4, 1), rtol=1e-3
    )


# ---- by hand


def test_median_by_hand():
    model, verdict, _ = run(column([[1, 8], [2, 7], [9, 0], [4, 5]]), "median")
    np.testing.assert_array_equal(model["w"], [3, 6])
    np.testing.assert_allclose(verdict.weights, [0, 0.5, 0, 0.5])


def test_trimmed_mean_by_hand():
    upload = column([1, 2, 3, 6, 100])
    model, verdict, _ = run(upload, "trimmed_mean", attackers=1)
    assert float(model["w"][0]) == pytest.approx(11 / 3)
    np.testing.assert_allclose(verdict.weights, [0, 1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(run(upload, "trimmed_mean", beta=0.2)[0]["w"], model["w"])
    np.testing.assert_allclose(run(upload, "trimmed_mean", beta=0.19)[0]["w"], 112 / 5, rtol=1e-6)
    np.testing.assert_allclose(run(upload, "trimmed_mean", attackers=2)[0]["w"], 3)


def test_krum_and_multi_krum_by_hand():
    # f = 1: sums over the 2 nearest. 0: 1 + 9, 1: 1 + 4, 3: 4 + 4, 5: 4 + 16, 20: 225 + 289.
    upload = column([0, 1, 3, 5, 20])
    model, verdict, _ = run(upload, "krum")
    np.testing.assert_allclose(verdict.scores, [10, 5, 8, 20, 514], rtol=1e-5)
    assert float(model["w"][0]) == 1
    np.testing.assert_array_equal(verdict.flagged, [True, False, True, True, True])
    model, verdict, _ = run(upload, "multi_krum")
    assert float(model["w"][0]) == pytest.approx(9 / 4)
    np.testing.assert_array_equal(verdict.flagged, [False] * 4 + [True])
    assert float(run(upload, "multi_krum", keep=2)[0]["w"][0]) == pytest.approx(2)


def test_bulyan_by_hand():
    # f = 1: five of seven selected. The farthest, 100, and then 50 stay behind; median 2, nearest three 1, 2, 3.
    upload = column([0, 1, 2, 3, 4.5, 50, 100])
    model, verdict, _ = run(upload, "bulyan")
    np.testing.assert_array_equal(verdict.flagged, [False] * 5 + [True] * 2)
    assert float(model["w"][0]) == pytest.approx(2)
    np.testing.assert_allclose(verdict.weights, np.array([0, 1, 1, 1, 0, 0, 0]) / 3, rtol=1e-6)


@pytest.mark.slow
def test_bulyan_ties_go_to_those_selected_earlier():
    # All five selected, the first coordinate alone decides the order; 3 and 5 are equally near to the median 4.
    values = np.array([[9, 1], [0, 3], [-0.1, 4], [0.2, 5], [-8, 8.0]])
    places = jax.jit(selection_by_krum)(_krum.squared_distances(column(values)), jnp.ones(5, bool), 0, 5)
    order = np.argsort(places)
    ours, _ = jax.jit(mean_of_selected)(column(values), {"w": jnp.asarray(values, jnp.float32)}, places, 5, 2)
    chosen = values[order][
        np.argsort(np.abs(values[order] - np.median(values, axis=0)), axis=0, kind="stable")[:2, 1], 1
    ]
    assert float(ours["w"][1]) == pytest.approx(chosen.mean())
    swapped, _ = jax.jit(mean_of_selected)(column(values), {"w": jnp.asarray(values, jnp.float32)}, 4 - places, 5, 2)
    assert float(swapped["w"][1]) == pytest.approx(8 - chosen.mean())


def test_rfa_by_hand():
    # From the mean 3 the distances are 3, 2, 1, 6: one step gives (0/3 + 1/2 + 2/1 + 9/6) / (1/3 + 1/2 + 1 + 1/6) = 2.
    model, verdict, _ = run(column([0, 1, 2, 9]), "rfa", iterations=1)
    assert float(model["w"][0]) == pytest.approx(2)
    np.testing.assert_allclose(verdict.weights, np.array([1 / 3, 1 / 2, 1, 1 / 6]) / 2, rtol=1e-5)
    # The median of numbers on a line: 1 holds the middle.
    assert float(run(column([0, 1, 50]), "rfa", iterations=200)[0]["w"][0]) == pytest.approx(1, abs=1e-3)


def test_rfa_from_the_broadcast_model_comes_back_from_far_uploads():
    """Four of ten collude at 100 times the length of an update; three steps from the mean stay with them."""
    rng = np.random.default_rng(0)
    updates = 0.5 * rng.normal(size=100) + 0.3 * rng.normal(size=(10, 100))
    length = np.median(np.linalg.norm(updates, axis=1))
    updates[6:] = 10 * length * rng.normal(size=100) + 0.1 * updates[6:]
    median = updates[:6].mean(axis=0)
    for _ in range(500):
        weights = 1 / np.linalg.norm(updates - median, axis=1)
        median = weights @ updates / weights.sum()
    far, near = (flat(run(column(1 + updates, start=1.0), "rfa", start=start)[0]) for start in ("mean", "broadcast"))
    assert np.linalg.norm(far - 1 - median) > 10 * length
    assert np.linalg.norm(near - 1 - median) < 0.1 * length


# ---- degenerate input and options


@pytest.mark.parametrize("name", PLAIN)
def test_identical_uploads_and_zero_updates(name):
    for start in (0.0, 0.3):
        upload = column(np.full((7, 3), 0.3, np.float32), start=start)
        model, verdict, _ = run(upload, name)
        np.testing.assert_allclose(model["w"], np.float32(0.3), rtol=1e-6)
        assert np.isfinite(verdict.scores).all()
        assert float(verdict.weights.sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("name", "needed"), [("krum", 3), ("multi_krum", 3), ("bulyan", 3)])
def test_too_few_uploads_keep_the_global_model(name, needed):
    model, verdict, _ = run(column([5.0, 7.0]), name)
    assert float(model["w"][0]) == 0
    assert not np.asarray(verdict.weights).any()
    assert aggregators.make(name).min_clients == needed


@pytest.mark.parametrize(
    ("name", "attackers", "needed"),
    [
        ("krum", 4, "2 f \\+ 3 = 11"),
        ("multi_krum", 4, "2 f \\+ 3 = 11"),
        ("bulyan", 2, "4 f \\+ 3 = 11"),
        ("trimmed_mean", 5, "2 f \\+ 1 = 11"),
    ],
)
def test_more_attackers_than_the_theory_allows_are_refused_or_keep_the_global_model(name, attackers, needed):
    made = aggregators.make(name, attackers=attackers)
    with pytest.raises(ConfigError, match=f"attackers = {attackers} is not allowed with 9 uploads a round: .*{needed}"):
        jax.eval_shape(made.aggregate, column(np.arange(9.0)), (), KEY)
    present = np.arange(12) < 9
    model, _, _ = jax.jit(made.aggregate)(column(np.arange(1.0, 13.0), present), (), KEY)
    assert float(model["w"][0]) == 0


def test_options_that_contradict_each_other():
    for name in ("krum", "multi_krum", "bulyan", "trimmed_mean"):
        with pytest.raises(ConfigError, match="variant = 'reference'"):
            aggregators.make(name, variant="reference", attackers=1)
    with pytest.raises(ConfigError, match="beta"):
        aggregators.make("trimmed_mean", attackers=1, beta=0.1)
    with pytest.raises(ConfigError, match="keep = 10"):
        jax.eval_shape(aggregators.make("multi_krum", keep=10).aggregate, column(np.arange(9.0)), (), KEY)


def test_chosen_attackers():
    chosen = {name: aggregators.make(name).chosen(10) for name in PLAIN}
    assert chosen["krum"] == chosen["trimmed_mean"] == {"attackers": 3}
    assert chosen["multi_krum"] == {"attackers": 3, "keep": 7}
    assert chosen["bulyan"] == {"attackers": 1}
    assert aggregators.make("krum", attackers=2).chosen(10) == {}


# ---- the reference


def test_reference_krum_moves_a_private_random_model_with_momentum():
    upload = random_upload(7, seed=2)
    model, verdict, state = run(upload, "krum", variant="reference")
    rows, start = rows_of(upload), flat(upload.global_params)
    distances = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(axis=-1)).sum(axis=1)
    best = int(np.argmin(distances))
    np.testing.assert_allclose(verdict.scores, distances, rtol=1e-4)
    assert int(np.argmax(verdict.weights)) == best
    private = flat(_krum.fresh_network(upload.global_params, KEY))
    np.testing.assert_allclose(flat(model), private + rows[best] - start, atol=1e-5)
    second, _, _ = run(upload, "krum", state=state, variant="reference")
    np.testing.assert_allclose(flat(second) - flat(model), 1.9 * (rows[best] - start), atol=1e-5)


def test_a_fresh_network_has_the_spread_of_its_fan_in():
    tree = (jnp.zeros((50, 4, 5, 5)), jnp.zeros(5000), jnp.zeros((40, 25)), jnp.zeros(()))
    drawn = _krum.fresh_network(tree, KEY)
    for leaf, fan_in in zip(drawn[:3], (100, 100, 25), strict=True):
        bound = fan_in**-0.5
        assert 0.98 * bound < np.abs(leaf).max() <= bound
        assert np.std(leaf) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert abs(float(drawn[3])) <= 0.2


def test_reference_multi_krum_swaps_the_first_two_clients():
    values = np.array([9, 0.9, 1.1, 1.2, 1.3, 1.4, 11, 12, 20])
    _, verdict, _ = run(column(values), "multi_krum", variant="reference")
    # Without the swap 0.9, 1.1, 1.2, 1.3, 1.4 would be kept: 9 stands where 0.9 belongs.
    np.testing.assert_allclose(verdict.weights, np.array([1, 0, 1, 1, 1, 1, 0, 0, 0]) / 5, rtol=1e-6)
    absent = np.array([7, *values])
    _, verdict, _ = run(column(absent, np.arange(10) > 0), "multi_krum", variant="reference")
    np.testing.assert_allclose(verdict.weights[1:], np.array([1, 0, 1, 1, 1, 1, 0, 0, 0]) / 5, rtol=1e-6)


def test_reference_bulyan_adds_to_the_model_of_client_zero():
    values = [1.0, 1.5, 2.0, 3.0, 10.0]
    upload = column(values)._replace(client_ids=jnp.array([3, 0, 1, 2, 4]))
    # n = 5: f = 0, all selected; the four nearest to the median 2 have the mean 7.5 / 4.
    assert float(run(upload, "bulyan", variant="reference")[0]["w"][0]) == pytest.approx(1.5 + 7.5 / 4)
    upload = upload._replace(client_ids=jnp.array([3, 5, 1, 2, 4]))
    assert float(run(upload, "bulyan", variant="reference")[0]["w"][0]) == pytest.approx(7.5 / 4)


def test_reference_trimmed_mean_has_momentum():
    upload = column([1.0, 2.0, 2.5, 4.0, 50.0])
    model, _, state = run(upload, "trimmed_mean", variant="reference")
    assert float(model["w"][0]) == pytest.approx(2.25)
    again, _, _ = run(upload._replace(global_params=model), "trimmed_mean", state=state, variant="reference")
    assert float(again["w"][0]) == pytest.approx(2.25 + 0.9 * 2.25)


def test_reference_rfa_takes_a_median_for_each_tensor():
    upload = random_upload(8, absent=[5], seed=3)
    model, verdict, _ = run(upload, "rfa", variant="reference")
    alpha = np.where(upload.participating, upload.num_examples, 0).astype(np.float64)
    alpha /= alpha.sum()
    for name, leaf in upload.client_params.items():
        rows = (np.asarray(leaf) - np.asarray(upload.global_params[name])).reshape(8, -1).astype(np.float64)
        point = alpha @ rows
        for _ in range(3):
            beta = alpha / np.maximum(np.linalg.norm(rows - point, axis=1), 1e-5)
            point = beta @ rows / beta.sum()
        np.testing.assert_allclose(np.ravel(model[name] - upload.global_params[name]), point, atol=1e-5)
    assert float(verdict.weights[5]) == 0
