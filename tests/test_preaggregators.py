"""Pre-aggregators: their rows and verdicts against statements in NumPy, in front of rules, in configs and in rounds."""

import functools
import json
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, preaggregators, registry, sweep, trees
from fedjax_spmc import config as configs
from fedjax_spmc.attacking import Attackers
from fedjax_spmc.config.overrides import override
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.experiment import build
from fedjax_spmc.preaggregators.bucketing import with_draw
from fedjax_spmc.report import fields as report_fields
from fedjax_spmc.report import settings
from fedjax_spmc.types import Upload
from tests import small
from tests.uploads import flat, permute, random_upload, scale_row, set_row

KEY = jax.random.key(0)
NAMES = preaggregators.names()
PERMUTATION = np.array([4, 0, 7, 2, 8, 1, 6, 3, 5])


def vectors(upload: Upload) -> np.ndarray:
    """[K, D] updates in float64."""
    rows = jax.tree.map(np.asarray, trees.subtract(upload.client_params, upload.global_params))
    count = len(upload.participating)
    return np.stack([flat(jax.tree.map(lambda x, i=i: x[i], rows)) for i in range(count)]).astype(np.float64)


def matrix(name: str, u: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[R, K]: what comes out is this times the updates u [K, D]; `rows` take part, f = 3, s = 2, c = 4."""
    if name == "nnm":
        shares = np.zeros((len(u), len(u)))
        for k in rows:
            near = rows[np.argsort(np.linalg.norm(u[rows] - u[k], axis=1), kind="stable")]
            shares[k, near[: len(rows) - 3]] = 1 / (len(rows) - 3)
        return shares
    if name == "clip":
        lengths = np.linalg.norm(u, axis=1)
        return np.diag(np.where(np.isin(np.arange(len(u)), rows), 4 / np.maximum(lengths, 4), 0))
    order = [k for k in PERMUTATION if k in rows]
    shares = np.zeros((-(-len(u) // 2), len(u)))
    for place in range(0, len(order), 2):
        shares[place // 2, order[place : place + 2]] = 1 / len(order[place : place + 2])
    return shares


def part(name: str) -> Any:
    """A pre-aggregator with the options, and the draw, of `matrix`."""
    if name == "bucketing":
        return with_draw(lambda key, count: jnp.asarray(PERMUTATION), 2)
    options = {"nnm": {"attackers": 3}, "clip": {"bound": 4.0}}[name]
    return preaggregators.make([name], **{f"{name}.{option}": value for option, value in options.items()})[name]


@functools.cache
def behind(name: str, rule: str = "mean", **options: Any) -> Any:
    """A rule behind a pre-aggregator, guarded, under jit."""
    made = aggregators.guard.guarded(
        preaggregators.in_front({name: part(name)}, registry.aggregators.make(rule, **options))
    )
    return made, jax.jit(lambda upload: made.aggregate(upload, made.init(upload.global_params, 9), KEY)[:2])


@pytest.mark.parametrize("name", NAMES)
def test_a_mean_behind_it_is_the_mean_of_the_statements_rows(name):
    """Also with a row that is absent and one that is not finite; the weights are those of the uploads themselves."""
    for upload in (random_upload(9, seed=1), set_row(random_upload(9, absent=[2], seed=2), 5, jnp.nan)):
        u, rows = vectors(upload), np.flatnonzero(np.asarray(upload.participating))
        rows = rows[np.isfinite(u[rows]).all(axis=1)]
        u = np.nan_to_num(u)
        shares = matrix(name, u, rows)
        there = shares.sum(axis=1) > 0
        expected = shares[there].mean(axis=0)
        model, verdict = behind(name, weights="uniform")[1](upload)
        update = flat(model) - flat(upload.global_params)
        np.testing.assert_allclose(update, expected @ u, atol=1e-5)
        np.testing.assert_allclose(verdict.weights, expected / expected.sum(), atol=1e-6)
        chex.assert_shape([verdict.weights, verdict.scores, verdict.flagged], (9,))
        assert np.isfinite(verdict.scores).all()
        np.testing.assert_array_equal(verdict.flagged, ~np.isfinite(vectors(upload)).all(axis=1))


@pytest.mark.parametrize("name", NAMES)
def test_krum_behind_it_names_clients(name):
    """Who is chosen, scored and flagged: row k that comes out, or its bucket, stands for client k."""
    upload = scale_row(random_upload(9, seed=4), 6, 8.0)
    u, rows = vectors(upload), np.arange(9)
    made, run = behind(name, "krum")
    mixed = matrix(name, u, rows) @ u
    plain = Upload(
        upload.global_params,
        jax.tree.map(lambda g: jnp.zeros((len(mixed), *g.shape)), upload.global_params),
        jnp.ones(len(mixed)),
        jnp.ones(len(mixed), bool),
    )
    start, leaves = 0, {}
    for key, leaf in sorted(upload.global_params.items()):
        piece = mixed[:, start : start + leaf.size].reshape(len(mixed), *leaf.shape)
        leaves[key], start = leaf[None] + jnp.asarray(piece, jnp.float32), start + leaf.size
    rule = aggregators.make("krum")
    model, inner, _ = jax.jit(rule.aggregate)(plain._replace(client_params=leaves), (), KEY)
    ours, verdict = run(upload)
    np.testing.assert_allclose(flat(ours), flat(model), atol=1e-5)
    if name == "bucketing":
        place = np.argsort(PERMUTATION) // 2
        scores, flagged = np.asarray(inner.scores)[place], np.asarray(inner.flagged)[place]
    else:
        scores, flagged = np.asarray(inner.scores), np.asarray(inner.flagged)
    np.testing.assert_allclose(verdict.scores, scores, rtol=1e-4)
    np.testing.assert_array_equal(verdict.flagged, flagged)
    np.testing.assert_allclose(verdict.weights.sum(), 1.0, rtol=1e-5)
    coefficients = np.asarray(verdict.weights) @ u
    if made.traits.linear:
        np.testing.assert_allclose(flat(ours) - flat(upload.global_params), coefficients, atol=1e-5)


def test_traits_hold_behind_it():
    """Those of the rule that it leaves: of clip neither linear nor consensus, of bucketing no permutation."""
    alike = random_upload(9, seed=9, spread=0.0, step=1.0)
    upload, order = random_upload(9, seed=10), np.random.default_rng(0).permutation(9)
    for name in NAMES:
        made, run = behind(name, weights="uniform")
        model, _ = run(alike)
        unchanged = np.allclose(flat(model), flat(jax.tree.map(lambda x: x[0], alike.client_params)), atol=1e-6)
        assert unchanged == made.traits.consensus == (name != "clip")
        (model, verdict), (moved, moved_verdict) = run(upload), run(permute(upload, order))
        same = np.allclose(np.asarray(verdict.weights)[order], moved_verdict.weights, atol=1e-6)
        assert (same and np.allclose(flat(model), flat(moved), atol=1e-5)) == made.traits.permutation
        assert made.traits.permutation == (name != "bucketing")


def test_too_few_rows_keep_the_global_model():
    """Krum needs three rows: behind buckets of two five uploads, behind NNM with f = 3 seven."""
    for name, least in (("bucketing", 5), ("nnm", 7), ("clip", 3)):
        made, run = behind(name, "krum")
        assert made.min_clients == least
        for present, works in ((least, True), (least - 1, False)):
            upload = random_upload(9, absent=range(present, 9), seed=7)
            model, verdict = run(upload)
            assert (float(verdict.weights.sum()) > 0) == works
            assert works or np.array_equal(flat(model), flat(upload.global_params))


def test_a_chain_runs_in_its_order():
    upload = scale_row(random_upload(9, seed=3), 0, 30.0)
    options = {"clip.bound": 4.0, "nnm.attackers": 3}
    made = {}
    for order in (("clip", "nnm"), ("nnm", "clip")):
        rule = aggregators.make_behind(preaggregators.make(order, **options), "mean", weights="uniform")
        model, verdict, _ = jax.jit(rule.aggregate)(upload, (), KEY)
        u, rows = vectors(upload), np.arange(9)
        for name in order:
            u = matrix(name, u, rows) @ u
        np.testing.assert_allclose(flat(model) - flat(upload.global_params), u.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(verdict.weights.sum(), 1.0, rtol=1e-5)
        made[order] = flat(model)
    assert not np.allclose(*made.values(), atol=1e-3)


def test_buckets_are_drawn_anew_by_the_key():
    rule = aggregators.make_behind(preaggregators.make(["bucketing"]), "median")
    run = jax.jit(lambda key: rule.aggregate(random_upload(9, seed=1), (), key)[0])
    assert not np.allclose(flat(run(KEY)), flat(run(jax.random.key(1))))


@pytest.mark.parametrize("name", aggregators.names())
def test_only_rules_that_must_know_their_clients_are_kept_from_buckets(name):
    """A state that grows with the clients, or what clients send beside the model."""
    config = {"aggregator__name": name, "aggregator__pre": ("bucketing",), "data__val_fraction": 0.1}
    config |= {"federation__num_clients": 20, "federation__clients_per_round": 20}
    made = small.config(presets="fdcr" if name == "fdcr" else "fedavg", **config)
    if name in ("foolsgold", "fdcr"):
        with pytest.raises(ConfigError, match=f"aggregator.pre = bucketing is not allowed with .* = '{name}', which"):
            configs.resolve(made)
    else:
        assert configs.resolve(made).aggregator.pre == ("bucketing",)
    assert configs.resolve(small.config(presets="fedavg", **config | {"aggregator__name": "mean"}))


# Configs.


def pre(*names: str, presets: str = "fedavg", **fields: Any) -> Any:
    return small.config(presets=presets, aggregator__pre=names, **fields)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (pre("nnm", "nnm"), "aggregator.pre = nnm, nnm is not allowed: a name must stand once."),
        (pre("nmm"), "aggregator.pre = 'nmm' is unknown: it must be one of bucketing, clip, nnm (did you mean nnm?)."),
        (pre("nnm", presets="spmc"), "teacher_weights = 'verdict' is not allowed with aggregator.pre = nnm"),
        (pre(aggregator__pre_options__clip__bound=1.0), "clip.bound is no option of aggregator.pre = ()"),
        (
            pre("clip", aggregator__pre_options__clip__bnd=1.0),
            "clip.bnd is no option of aggregator.pre = clip; it knows",
        ),
        (pre("clip", aggregator__pre_options__clip__bound=0.0), "pre_options.clip.bound = 0.0 is not allowed"),
        (pre("clip", aggregator__pre_options=3), "aggregator.pre_options is no field of the config; near it are"),
        (pre("nnm", aggregator__pre_options__nnm__attackers=2), "and aggregator.pre = nnm: it must be at least 5."),
        (pre("bucketing", presets="krum"), "'krum' and aggregator.pre = bucketing: it must be at least 5."),
    ],
)
def test_what_cannot_be_is_one_sentence(config, words):
    with pytest.raises(ConfigError) as error:
        configs.resolve(config)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_options_are_written_out_and_chosen_ones_recorded():
    config = configs.resolve(
        pre("bucketing", "nnm", presets="krum", federation__num_clients=9, federation__clients_per_round=9)
    )
    assert configs.options_in(config, configs.PRE) == {"bucketing.size": 2, "nnm.attackers": None}
    recorded = configs.with_chosen_options(config)
    assert configs.options_in(recorded, configs.PRE) == {"bucketing.size": 2, "nnm.attackers": 2}, "of five buckets"
    assert recorded.aggregator.options.attackers == 1
    assert configs.method_title(config) == "krum behind bucketing, nnm"
    plain = json.loads(json.dumps(configs.to_plain(recorded)))
    assert configs.options_in(configs.resolve(plain), configs.PRE)["nnm.attackers"] == 2


def test_the_command_line_takes_a_list_and_keeps_options_of_the_parts_that_stay():
    config = pre("nnm", "clip", aggregator__pre_options__clip__bound=3.0, aggregator__pre_options__nnm__attackers=1)
    config = configs.editable_copy(config)
    notices = override(
        config, [("aggregator.pre", "(clip, bucketing)"), ("aggregator.pre_options.bucketing.size", "3")]
    )
    assert notices == [
        "aggregator.pre is now clip, bucketing: dropped aggregator.pre_options {'nnm.attackers': 1} of the preset."
    ]
    resolved = configs.resolve(config)
    assert resolved.aggregator.pre == ("clip", "bucketing")
    assert configs.options_in(resolved, configs.PRE) == {"clip.bound": 3.0, "bucketing.size": 3}
    for text, names in (("nnm", ("nnm",)), ("()", ()), ("nnm,clip", ("nnm", "clip"))):
        config = configs.editable_copy(pre())
        override(config, [("aggregator.pre", text)])
        assert configs.resolve(config).aggregator.pre == names


def test_a_sweep_varies_the_list_and_the_bound():
    base = pre("clip", aggregator__pre_options__clip__bound=3.0)
    cells = sweep.expand(sweep.Sweep(base, {"aggregator.pre": [[], ["clip"], ["nnm", "clip"]]}))
    assert [configs.options_in(cell.config, configs.PRE).get("clip.bound") for cell in cells] == [None, 3.0, 3.0]
    assert len(sweep.groups_of(cells)) == 3
    cells = sweep.expand(sweep.Sweep(base, {"aggregator.pre_options.clip.bound": [1.0, 2.0]}))
    assert len(sweep.groups_of(cells)) == 1, "the bound is an array"
    cells = sweep.expand(sweep.Sweep(pre("bucketing"), {"aggregator.pre_options.bucketing.size": [1, 2]}))
    assert len(sweep.groups_of(cells)) == 2


def test_reports_name_what_stands_in_front():
    def setting(config: Any) -> Any:
        plain = configs.to_plain(configs.with_chosen_options(configs.resolve(config)))
        return settings.Setting(settings.comparable_fields(report_fields.with_defaults(plain)), [], [])

    listed = [
        setting(config)
        for config in (
            pre(),
            pre("nnm"),
            pre("clip"),
            pre("clip", aggregator__pre_options__clip__bound=1.0),
        )
    ]
    assert settings.labels(listed) == [
        "fedavg",
        "fedavg, pre=[nnm], nnm.attackers=1",
        "fedavg, pre=[clip], clip.bound=2",
        "fedavg, pre=[clip], clip.bound=1",
    ]
    assert all(settings.belongs_to_method(path) for path in ("aggregator.pre", "aggregator.pre_options.clip.bound"))


# Rounds.


def test_an_attack_looks_through_what_stands_in_front():
    """`ctx.defend` is the rule of the round, with the attacker's own key for its draws."""
    built = build(configs.resolve(pre("nnm", "clip", aggregator__pre_options__clip__bound=0.01)))
    state = built.state
    upload = random_upload(4, seed=1)
    models = jax.tree.map(lambda g: g[None] + 0.1 * jax.random.normal(KEY, (4, *g.shape)), state.variables.params)
    upload = upload._replace(global_params=state.variables.params, client_params=models, extras={})
    attackers = Attackers(built.federation, built.arrays, state, built.key, jnp.arange(4))
    params, verdict = jax.jit(attackers.context(state.attack, crafting=True).defend)(upload)
    length = np.linalg.norm(flat(params) - flat(state.variables.params))
    assert 0 < length <= 0.01 + 1e-5
    assert verdict.weights.shape == (4,)
