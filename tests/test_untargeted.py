"""Attacks that craft uploads: each against a statement in NumPy, at its corners, and in rounds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from fedjax_spmc import attacks, trees
from fedjax_spmc.attacks._updates import what_is_known
from fedjax_spmc.attacks.alie import published_z
from fedjax_spmc.parity import walk
from fedjax_spmc.types import AttackContext, Roster, Upload, Variables
from tests.uploads import SHAPES, flat

ROWS = 20
SIZES = range(5, ROWS + 1)
KEY = jax.random.key(3)


class Case:
    """A round of K clients in 20 rows: some attack, one has no finite model, one does not take part, the rest are not
    there."""

    def __init__(self, count: int):
        rng = np.random.default_rng(count)
        order = rng.permutation(count)
        self.bad = np.isin(np.arange(ROWS), order[: max(1, count // 4)])
        self.start = rng.normal(size=sum(int(np.prod(shape)) for shape in SHAPES.values())).astype(np.float32)
        common = rng.normal(size=self.start.size)
        updates = (0.5 * common + rng.normal(size=(ROWS, self.start.size))).astype(np.float32)
        self.broken, self.absent = order[-1], order[-2]
        self.present = (np.arange(ROWS) < count) & (np.arange(ROWS) != self.absent)
        self.models = self.start + updates
        self.models[self.broken] = np.nan
        self.known = self.present & ~self.bad & (np.arange(ROWS) != self.broken)
        self.benign = self.models[self.known].astype(np.float64) - self.start
        self.attackers = int((self.bad & self.present).sum())

    def upload(self) -> Upload:
        return Upload(
            global_params=as_tree(self.start),
            client_params=as_tree(self.models),
            num_examples=jnp.ones(ROWS),
            participating=jnp.asarray(self.present),
            client_ids=jnp.arange(ROWS, dtype=jnp.int32),
            steps=jnp.ones(ROWS, jnp.int32),
        )


def as_tree(vectors: np.ndarray) -> dict[str, Any]:
    """[..., D] as a tree of several ranks."""
    made, start = {}, 0
    for name, shape in sorted(SHAPES.items()):
        size = int(np.prod(shape))
        piece = vectors[..., start : start + size]
        made[name] = jnp.asarray(np.reshape(piece, vectors.shape[:-1] + shape))
        start += size
    return made


def context(upload: Upload, bad: Any, **fields: Any) -> AttackContext:
    zero = jnp.int32(0)
    return AttackContext(
        variables=Variables(upload.global_params, {}),
        roster=Roster(bad, zero, zero, zero),
        client_ids=jnp.arange(ROWS, dtype=jnp.int32),
        **fields,
    )


CASES = {count: Case(count) for count in SIZES}


@functools.cache
def program(name: str, **options: Any) -> Any:
    """(uploads, bad) -> stacked uploads sent, under jit and vmap over experiments."""
    attack = attacks.make(name, **options)

    def craft(upload, bad):
        ctx = context(upload, bad)
        return attack.craft(ctx, attack.init(ctx, KEY), upload, KEY)[0].client_params

    return jax.jit(jax.vmap(craft))


@functools.cache
def all_cases() -> tuple[Upload, Any]:
    uploads = [case.upload() for case in CASES.values()]
    return jax.tree.map(lambda *x: jnp.stack(x), *uploads), jnp.stack([jnp.asarray(c.bad) for c in CASES.values()])


def sent(name: str, **options: Any) -> dict[int, np.ndarray]:
    """K -> the updates [f, D] that the attackers send."""
    models = jax.tree.map(np.asarray, program(name, **options)(*all_cases()))
    return {
        count: np.stack(
            [flat(jax.tree.map(lambda x, i=i, row=row: x[i, row], models)) for row in np.flatnonzero(case.bad)]
        )
        - case.start
        for i, (count, case) in enumerate(CASES.items())
    }


# The statements: of the benign updates [b, D] in float64 and the number of attackers.


def direction(g: np.ndarray, kind: str) -> np.ndarray:
    mean = g.mean(axis=0)
    return {"unit": mean / np.linalg.norm(mean), "sign": np.sign(mean), "std": g.std(axis=0, ddof=1)}[kind]


def halving(good: Any, start: float = 10.0) -> float:
    strength, step, best = start, start, 0.0
    while abs(best - strength) > 1e-5:
        if good(strength):
            best = strength
            strength += step / 2
        else:
            strength -= step / 2
        step /= 2
    return best


def pairs(g: np.ndarray) -> np.ndarray:
    return np.array([[((a - b) ** 2).sum() for b in g] for a in g])


def min_max(g: np.ndarray, f: int, kind: str) -> np.ndarray:
    p, mean, limit = direction(g, kind), g.mean(axis=0), pairs(g).max()
    return mean - halving(lambda x: ((mean - x * p - g) ** 2).sum(axis=1).max() <= limit) * p


def min_sum(g: np.ndarray, f: int, kind: str, bound: str = "min") -> np.ndarray:
    p, mean, sums = direction(g, kind), g.mean(axis=0), pairs(g).sum(axis=1)
    limit = sums.min() if bound == "min" else sums.max()
    return mean - halving(lambda x: ((mean - x * p - g) ** 2).sum() <= limit) * p


def krum_order(rows: np.ndarray, f: int) -> list[int]:
    """The rows that Multi-Krum takes, in order; the first is Krum's."""
    left, taken = list(range(len(rows))), []
    while len(left) > 2 * f + 2:
        near = [np.sort(((rows[left] - rows[i]) ** 2).sum(axis=1))[: len(left) - 2 - f].sum() for i in left]
        taken.append(left.pop(int(np.argmin(near))))
    return taken


def tailored(g: np.ndarray, f: int, rule: str, kind: str) -> np.ndarray:
    p, mean, before = direction(g, kind), g.mean(axis=0), [-1.0]

    def good(x: float) -> bool:
        rows = np.concatenate([np.tile(mean - x * p, (f, 1)), g])
        if rule == "multi_krum":
            return set(range(f)) <= set(krum_order(rows, f))
        ordered, n = np.sort(rows, axis=0), len(rows)
        new = ordered[f : n - f].mean(axis=0) if rule == "trimmed_mean" else ordered[(n - 1) // 2]
        gap = np.linalg.norm(new - mean)
        farther, before[0] = gap > before[0], gap
        return farther

    return mean - halving(good) * p


def fang_krum(g: np.ndarray, f: int, center: bool = False) -> np.ndarray:
    (b, d), mean, lengths = g.shape, g.mean(axis=0), np.sqrt(pairs(g))
    near = min(np.sort(np.delete(lengths[i], i))[: max(b - 2 - f, 0)].sum() for i in range(b))
    x = near / (max(b - f - 1, 1) * np.sqrt(d)) + np.linalg.norm(g - mean, axis=1).max() / np.sqrt(d)
    start = mean if center else 0.0 * mean
    while True:
        v = start - x * np.sign(mean)
        rows = np.concatenate([np.tile(v, (f, 1)), g])
        keep = max(len(rows) - 2 - f, 0)
        scores = [np.sort(((rows - row) ** 2).sum(axis=1))[:keep].sum() for row in rows]
        if np.argmin(scores) < f or x <= 1e-5:
            return v
        x /= 2


def alie(g: np.ndarray, f: int, n: int) -> np.ndarray:
    z = norm.ppf((n - f - (n // 2 + 1 - f)) / (n - f))
    return g.mean(axis=0) + z * g.std(axis=0, ddof=1)


def learned_copy(g: np.ndarray, z: np.ndarray) -> np.ndarray:
    gaps = g - g.mean(axis=0)
    return g[np.argmax(g @ (gaps.T @ (gaps @ z)))]


STATEMENTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "sign_flip": ("sign_flip", {}, lambda g, f: -g.mean(axis=0)),
    "ipm": ("ipm", {"epsilon": 0.5}, lambda g, f: -0.5 * g.mean(axis=0)),
    "alie": ("alie", {}, None),
    "alie minus": ("alie", {"z": 1.5, "sign": "minus"}, lambda g, f: g.mean(axis=0) - 1.5 * g.std(axis=0, ddof=1)),
    "min_max": ("min_max", {"direction": "std"}, lambda g, f: min_max(g, f, "std")),
    "min_sum": ("min_sum", {"direction": "sign"}, lambda g, f: min_sum(g, f, "sign")),
    "min_sum max": ("min_sum", {"bound": "max"}, lambda g, f: min_sum(g, f, "unit", "max")),
    "tailored krum": ("tailored", {}, lambda g, f: tailored(g, f, "multi_krum", "unit")),
    "tailored trimmed": (
        "tailored",
        {"rule": "trimmed_mean", "direction": "std"},
        lambda g, f: tailored(g, f, "trimmed_mean", "std"),
    ),
    "tailored median": (
        "tailored",
        {"rule": "median", "direction": "sign"},
        lambda g, f: tailored(g, f, "median", "sign"),
    ),
    "fang krum": ("fang", {}, fang_krum),
    "fang krum center": ("fang", {"center": True}, lambda g, f: fang_krum(g, f, True)),
    "mimic": ("mimic", {}, None),
    "mimic number": ("mimic", {"number": 1}, lambda g, f: g[1]),
}


@pytest.mark.parametrize("label", STATEMENTS)
def test_a_crafted_upload_is_the_statements(label):
    """For rounds of 5 to 20 clients side by side, in each of which a row is not finite and one is absent."""
    name, options, statement = STATEMENTS[label]
    start = None
    for count, updates in sent(name, **options).items():
        case = CASES[count]
        if label == "alie":
            expected = alie(case.benign, case.attackers, int(case.present.sum()))
        elif label == "mimic":
            if start is None:
                start = np.asarray(attacks.make(name).init(context(case.upload(), case.bad), KEY)["mimic"].axis)
            expected = learned_copy(case.benign, start)
        else:
            expected = statement(case.benign, case.attackers)
        # A search may end one trial apart.
        np.testing.assert_allclose(updates, np.tile(expected, (len(updates), 1)), rtol=1e-4, atol=2e-4, err_msg=count)


@pytest.mark.parametrize("fixed", [True, False])
def test_fang_sends_a_trimmed_mean_numbers_beyond_all_benign_ones(fixed):
    for count, updates in sent("fang", rule="trimmed_mean", fixed=fixed).items():
        g = CASES[count].benign
        up, low, high = g.mean(axis=0) > 0, g.min(axis=0), g.max(axis=0)
        if fixed:
            below = np.where(low < 0, 2 * low, low / 2), low
            above = high, np.where(high > 0, 2 * high, high / 2)
            bounds = [np.where(up, *pair) for pair in zip(below, above, strict=True)]
        else:
            assert (updates[:, ~up] == 0).all()
            least = high + np.where(low < 0, 2 * low, low / 2)
            bounds = [np.where(up, least, 0), np.where(up, np.where(high > 0, 2 * high, high / 2) + low, 0)]
        assert (updates >= bounds[0] - 1e-5).all()
        assert (updates <= bounds[1] + 1e-5).all()
        assert len(np.unique(updates.round(6), axis=0)) == len(updates), "each attacker draws for itself"


@pytest.mark.parametrize(("around", "scale"), [("broadcast", 2.0), ("own", 0.5), ("mean", 1.0)])
def test_noise_is_normal_around_what_is_said(around, scale):
    drawn = []
    for count, updates in sent("noise", around=around, scale=scale).items():
        case = CASES[count]
        own = case.models[case.bad] - case.start
        drawn.append((updates - {"broadcast": 0.0, "own": own, "mean": case.benign.mean(axis=0)}[around]) / scale)
    known = np.concatenate(drawn)
    known = known[np.isfinite(known).all(axis=1)].ravel()
    assert abs(known.mean()) < 0.05
    assert abs(known.std() - 1) < 0.05
    assert not np.allclose(*drawn[-1][:2]), "each attacker draws for itself"


def test_each_client_turns_its_own_update():
    for count, updates in sent("sign_flip", each=True).items():
        case = CASES[count]
        np.testing.assert_allclose(updates, -(case.models[case.bad] - case.start), atol=1e-6)


def test_the_papers_z_is_finite_everywhere():
    """Also where it is infinite by the formula; the values are those of spec and golden files."""
    pairs_of_both = [(50, 10), (10, 2), *[(n, f) for n in range(1, 12) for f in range(n + 1)]]
    found = np.asarray(jax.jit(published_z)(*jnp.asarray(pairs_of_both).T))
    np.testing.assert_allclose(found[:2], [0.25335, 0.0], atol=1e-5)
    assert np.isfinite(found).all()


# What is known, and looking through the server.


def played(name: str, upload: Upload, bad: np.ndarray, defend: Any = None, **options: Any) -> np.ndarray:
    """[20, D]: the updates of all rows behind `craft`, of clean models that are the trained ones plus 1."""

    def benign(client):
        return Variables(jax.tree.map(lambda x: x[client] + 1.0, upload.client_params), {})

    ctx = context(upload, jnp.asarray(bad), benign=benign, defend=defend)
    attack = attacks.make(name, **options)
    made = jax.jit(lambda: attack.craft(ctx, attack.init(ctx, KEY), upload, KEY)[0].client_params)()
    return np.stack([flat(jax.tree.map(lambda x, i=i: x[i], made)) for i in range(ROWS)]) - flat(upload.global_params)


def test_own_knowledge_is_the_attackers_clean_training():
    case = CASES[12]
    own = case.models[case.bad & case.present] - case.start + 1.0
    updates = played("ipm", case.upload(), case.bad, epsilon=1.0, knowledge="own")
    np.testing.assert_allclose(updates[case.bad], np.tile(-own.mean(axis=0), (case.bad.sum(), 1)), atol=1e-5)


def test_without_poisoning_the_attackers_rows_are_clean_as_they_are():
    case = CASES[12]
    upload = case.upload()
    ctx = context(upload, jnp.asarray(case.bad), benign=None, trained_clean=True)
    known = jax.jit(lambda: what_is_known(ctx, upload, "own"))()
    rows = case.bad & case.present
    np.testing.assert_array_equal(known.mask, rows)
    np.testing.assert_allclose(np.asarray(known.updates)[rows], case.models[rows] - case.start, atol=1e-6)
    assert (int(known.attackers), int(known.pretended)) == (rows.sum(), 1)


@pytest.mark.parametrize("knowledge", ["benign", "own"])
def test_an_optimised_strength_is_found_through_the_server(knowledge):
    """The server is a mean: of all rows that take part, or of the attackers' own and one pretended."""
    case = CASES[12]
    upload = case.upload()

    def defend(tried):
        finite = trees.finite_rows(tried.client_params) & tried.participating
        rows = trees.zero_rows(finite, tried.client_params)
        return trees.weighted_mean(rows, finite / finite.sum()), None

    updates = played("ipm", upload, case.bad, defend, optimise=True, knowledge=knowledge)
    known = case.benign if knowledge == "benign" else case.models[case.bad & case.present] - case.start + 1.0
    mean, count = known.mean(axis=0), case.attackers if knowledge == "benign" else 1
    others = int((case.present & ~case.bad).sum()) - 1 if knowledge == "benign" else case.attackers

    def gap(x):
        return np.linalg.norm((others * mean - count * x * mean) / (others + count) - mean)

    best, step, found = 0.0, 10.0, gap(0.0)
    grows = True
    for _ in range(19):
        better = gap(best + step) > found
        grows = grows and better
        best, found = (best + step, gap(best + step)) if better else (best, found)
        step *= 2 if grows else 0.8
    np.testing.assert_allclose(updates[case.bad], np.tile(-best * mean, (case.bad.sum(), 1)), rtol=1e-3)


# Corners.

CORNERS = {
    "one benign row": lambda bad, present, models: (bad, np.isin(np.arange(ROWS), [0, 1, 2]), models),
    "two clients": lambda bad, present, models: (bad, np.isin(np.arange(ROWS), [1, 2]), models),
    "nobody is benign": lambda bad, present, models: (np.ones(ROWS, bool), present, models),
    "no other is finite": lambda bad, present, models: (bad, present, np.where(bad[:, None], models, np.inf)),
    "all alike": lambda bad, present, models: (bad, present, np.tile(models[:1], (ROWS, 1))),
    "nothing moved": lambda bad, present, models: (bad, present, np.tile(CASES[20].start, (ROWS, 1))),
    "far apart": lambda bad, present, models: (bad, present, 1e15 * np.sign(models)),
}


@pytest.mark.parametrize("label", STATEMENTS)
def test_at_corners_uploads_are_finite(label):
    """One or no benign row, K = 2, others that are not finite, alike, or far away; nothing is read of absent rows."""
    name, options, _ = STATEMENTS[label]
    bad = np.isin(np.arange(ROWS), [0, 1])
    models = np.nan_to_num(CASES[20].models, nan=0.5)
    uploads, bads = [], []
    for corner in CORNERS.values():
        own_bad, present, own_models = corner(bad, np.ones(ROWS, bool), models)
        upload = CASES[20].upload()._replace(participating=jnp.asarray(present))
        uploads.append(upload._replace(client_params=as_tree(np.asarray(own_models, np.float32))))
        bads.append(jnp.asarray(own_bad))
    spare = len(CASES) - len(uploads)  # the program that is compiled already takes as many as there are cases
    stacked = jax.tree.map(lambda *x: jnp.stack([*x, *[x[0]] * spare]), *uploads)
    models_sent = program(name, **options)(stacked, jnp.stack([*bads, *[bads[0]] * spare]))
    for i, corner in enumerate(CORNERS):
        rows = np.flatnonzero(bads[i] & uploads[i].participating)
        for leaf, old in zip(jax.tree.leaves(models_sent), jax.tree.leaves(uploads[i].client_params), strict=True):
            assert np.isfinite(np.asarray(leaf[i])[rows]).all(), (corner, label)
            if corner in ("nobody is benign", "no other is finite"):
                np.testing.assert_array_equal(np.asarray(leaf[i])[rows], np.asarray(old)[rows])


# Golden files.


def walked(folder: Any, name: str, arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, str]]:
    np.savez(folder / name, **arrays)
    return {one.check: (one.verdict, one.reason) for one in walk(folder)}


def test_other_cases_of_the_recorded_kind_are_compared_and_tampering_is_noticed(tmp_path):
    """Names, sizes, numbers of attackers, starts and draws are the file's."""
    rng = np.random.default_rng(5)
    g, f = (rng.normal(size=(9, 14)) + 0.3).astype(np.float32), 2
    wide = g.astype(np.float64)
    std = wide.std(axis=0, ddof=1)
    gamma = halving(lambda x: ((-x * std + wide.mean(axis=0) - wide) ** 2).sum() <= pairs(wide).sum(axis=1).min(), 7.0)
    arrays = {
        "other/benign": g,
        "other/f": np.array(f),
        "other/lie": wide.mean(axis=0) + 0.4 * std,
        "other/lie_z": np.array(0.4),
        "other/minsum/std_7": wide.mean(axis=0) - gamma * std,
        "other/minsum/std_7_lam": np.array(gamma),
        "alie/z_30_7": np.array(norm.ppf((30 - 7 - (16 - 7)) / (30 - 7))),
    }
    passed = walked(tmp_path, "attacks_untargeted_other.npz", arrays)
    assert passed == dict.fromkeys(("untargeted lie", "untargeted alie z", "untargeted minsum"), ("passed", ""))
    changed = arrays | {"other/lie": arrays["other/lie"] + 1e-3, "other/nothing": np.zeros(1)}
    failed = walked(tmp_path, "attacks_untargeted_other.npz", changed)
    assert failed["untargeted lie"][0] == "failed"
    assert failed["untargeted"] == ("skipped", "nothing here is called other/nothing")


def test_other_cases_of_byzfl_are_compared_in_float64(tmp_path):
    honest = np.random.default_rng(6).normal(size=(11, 8))
    expected = honest.mean(axis=0) + 1.5 * honest.std(axis=0, ddof=1)
    arrays = {"c/honest": honest, "c/f": np.array(4), "c/alie": expected, "c/mimic3": honest[3]}
    passed = walked(tmp_path, "attacks_byzfl_other.npz", arrays)
    assert passed["byzfl alie"] == passed["byzfl mimic3"] == ("passed", "")
    assert (
        walked(tmp_path, "attacks_byzfl_other.npz", arrays | {"c/alie": expected + 1e-11})["byzfl alie"][0] == "failed"
    )


def test_other_cases_of_mixing_are_compared(tmp_path):
    updates = np.random.default_rng(7).normal(size=(6, 5)).astype(np.float32)
    order, lengths = np.array([5, 2, 0, 1, 4, 3]), np.linalg.norm(updates, axis=1, keepdims=True)
    near = np.argsort(pairs(updates), axis=1)[:, :4]
    arrays = {
        "case_names": np.array(["q"]),
        "q__updates": updates,
        "q__f": np.array(2),
        "q__bucket": np.array(4),
        "q__bucket_permutation": order,
        "q__clip_bound": np.array(1.5),
        "q__nnm": updates[near].mean(axis=1),
        "q__bucketing": np.stack([updates[order[:4]].mean(axis=0), updates[order[4:]].mean(axis=0)]),
        "q__clipping": updates * np.minimum(1, 1.5 / lengths),
    }
    passed = walked(tmp_path, "defences_mixing_other.npz", arrays)
    assert all(passed[f"mixing {field}"] == ("passed", "") for field in ("nnm", "bucketing", "clipping"))
    changed = walked(tmp_path, "defences_mixing_other.npz", arrays | {"q__nnm": arrays["q__nnm"] * 1.001})
    assert [changed[f"mixing {field}"][0] for field in ("nnm", "bucketing")] == ["failed", "passed"]
