"""`layerwise`: which layers are critical, what a simulated server lets through, and real rounds with every option."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, attacks, trees
from fedjax_spmc import config as configs
from fedjax_spmc.attacking import Attackers
from fedjax_spmc.attacks import _layers
from fedjax_spmc.attacks._passes import parted
from fedjax_spmc.data.pipeline import in_order
from fedjax_spmc.experiment import build
from fedjax_spmc.one_round import train
from fedjax_spmc.types import Upload, Variables
from tests import small
from tests.uploads import random_upload

pytestmark = pytest.mark.usefixtures("small_cache")
KEY = jax.random.key(0)
LAYERS = 4


def model(*numbers: float) -> Variables:
    """A model of four layers of one number."""
    return Variables({f"l{i}": jnp.float32(x) for i, x in enumerate(numbers)}, {})


def values(params: Any) -> list[float]:
    return [float(x) for x in jax.tree.leaves(params)]


WORTH = np.array([10.0, 40.0, 10.0, 30.0])
BAD, GOOD = model(1, 1, 1, 1), model(0, 0, 0, 0)


def worth(variables: Variables) -> Any:
    """Every layer of the malicious model is worth some percent."""
    return sum(w * x for w, x in zip(WORTH, jax.tree.leaves(variables.params), strict=True))


@pytest.mark.parametrize(("wanted", "length"), [(0, 0), (1, 1), (40, 1), (41, 2), (70, 2), (71, 3), (90, 4), (99, 4)])
def test_the_shortest_list_that_is_enough(wanted, length):
    """Layers by what their loss costs: 1, 3, then 0 and 2, equal ones in order; all where it never is enough."""
    change, success = jax.jit(lambda: _layers.changes(worth, BAD, GOOD))()
    np.testing.assert_allclose(change, -WORTH)
    assert float(success) == 90.0
    ranks = _layers.ranks_of(change)
    assert ranks.tolist() == [2, 0, 3, 1]
    assert int(jax.jit(lambda: _layers.enough(worth, ranks, BAD, GOOD, jnp.float32(wanted)))()) == length


def by_the_code(accepted: tuple[bool, ...], length: int, how: str) -> int:
    """Shortening and growing as loops; accepted[k - 1] for a list of k layers."""
    if length == 0 or how == "grow":
        return next((k for k in range(len(accepted)) if not accepted[k]), len(accepted))
    sent = length
    for k in range(length, 0, -1):
        if accepted[k - 1]:
            return k if how == "accepted" else sent
        sent = k
    return 1


@pytest.mark.parametrize("how", ["reference", "accepted", "grow"])
def test_lists_are_shortened_and_grown(how):
    """For everything that a server may let through, and every list that is enough."""
    patterns = np.array(list(itertools.product([False, True], repeat=LAYERS)))
    lengths = np.arange(LAYERS + 1)

    def one(pattern, length):
        return _layers.shrunk(lambda tried: pattern[tried - 1], length, LAYERS, how)

    every = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))
    expected = [[by_the_code(tuple(p), n, how) for n in lengths] for p in patterns]
    np.testing.assert_array_equal(every(jnp.asarray(patterns), jnp.asarray(lengths)), expected)


@pytest.mark.parametrize("largest", [0.3, 1.0, 6.4, 0.0, 1e9])
def test_the_scale_is_searched_as_the_code_does(largest):
    scale, lower, upper = 1.0, 0.0, 0.0
    for _ in range(20):
        if scale <= largest:
            lower = scale
            scale = 2 * scale if upper == 0 else (lower + upper) / 2
        else:
            upper, scale = scale, (scale + lower) / 2
    expected = scale if lower else 1.0
    found = jax.jit(lambda: _layers.searched_scale(lambda one: one <= largest))()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("scale", "flip", "layer"), [(1.0, False, 5.0), (0.5, False, 3.5), (2.0, False, 9), (1, True, -3)]
)
def test_what_is_sent(scale, flip, layer):
    """w = 1, m = 5, c = 3: below 1 the rest of the way is the center's; what is not chosen is the center's."""
    ones = [model(*[x] * 4) for x in (1.0, 5.0, 3.0)]
    chosen = jnp.array([True, False, False, True])
    made = _layers.crafted(ones[0].params, ones[1].params, ones[2], chosen, scale, flip)
    expected = [layer, 3.0, 3.0, layer] if scale != 0.5 else [1 + 0.5 * 4 + 0.5 * 2, 3, 3, 1 + 0.5 * 4 + 0.5 * 2]
    np.testing.assert_allclose(values(made.params), expected)


def krum_by_hand(rows: np.ndarray, f: int, many: bool) -> list[int]:
    left, chosen = list(range(len(rows))), []
    while not chosen or (many and len(left) > 2 * f + 2):
        scores = [np.sort([np.sum((rows[i] - rows[j]) ** 2) for j in left])[: len(left) - 2 - f].sum() for i in left]
        chosen.append(left.pop(int(np.argmin(scores))))
        if len(left) <= 2 * f + 2:
            break
    return chosen


@pytest.mark.parametrize("defence", ["krum", "multi_krum"])
def test_whom_a_simulated_krum_takes(defence):
    """Copies in front, as the code puts them, K = 5..12 of which some are absent; f is lowered where they are few."""
    seen = []
    for count, seed in itertools.product((5, 8, 12), range(4)):
        rng = np.random.default_rng(seed)
        upload = random_upload(count, seed=seed)
        mask = np.ones(count, bool)
        mask[: seed % 2 + 1] = False
        copies, assumed = 1 + seed % 2, 2
        stats = {"mean": jnp.asarray(rng.normal(size=(count, 3)), jnp.float32)}
        crafted = Variables(
            jax.tree.map(lambda x, seed=seed: x.mean(axis=0) * (1 + 0.3 * seed), upload.client_params),
            {"mean": jnp.zeros(3)},
        )
        others = Variables(upload.client_params, stats)
        accepted = _layers.taken_by(defence, others, jnp.asarray(mask), upload.global_params, copies, assumed)
        ours = bool(jax.jit(accepted)(crafted))
        rows = np.asarray(trees.ravel_clients(tuple(others)), np.float64)[mask]
        own = np.asarray(trees.ravel_clients(jax.tree.map(lambda x: x[None], tuple(crafted))), np.float64)
        rows = np.concatenate([np.repeat(own, copies, axis=0), rows])
        f = min(assumed, max((len(rows) - 3) // 2, 0))
        assert ours == (min(krum_by_hand(rows, f, defence == "multi_krum")) < copies), (count, seed)
        seen.append(ours)
    assert len(set(seen)) == 2


@pytest.mark.parametrize("factor", [1.0, -5.0])
def test_whom_a_simulated_flame_takes(factor):
    """The same as the aggregator admits of the same models."""
    upload = random_upload(8)
    crafted = jax.tree.map(lambda x: factor * x.mean(axis=0), upload.client_params)
    mask = jnp.arange(8) >= 2
    models = Variables(upload.client_params, {})
    accepted = _layers.taken_by("flame", models, mask, upload.global_params, 2, 2)
    rows = trees.where_rows(mask, upload.client_params, trees.broadcast(crafted, 8))
    rule = aggregators.make("flame")
    _, verdict, _ = jax.jit(rule.aggregate)(upload._replace(client_params=rows), (), KEY)
    assert bool(jax.jit(accepted)(Variables(crafted, {}))) == bool((~verdict.flagged[:2]).any()) == (factor > 0)


def test_parts_of_the_data():
    """A quarter to check on and the rest to train on, each once in an epoch but for what fills the last batch."""
    data = in_order(jnp.arange(10.0)[:, None], jnp.zeros(10, jnp.int32), 3)

    @jax.jit
    def run():
        rest, few = parted(data, 4, KEY)
        epochs = [rest.epoch(jax.random.key(i)) for i in range(2)]
        batches = [[epoch.gather(jnp.int32(b), KEY).inputs for b in range(3)] for epoch in epochs]
        return batches, few.batch(jnp.int32(0)), rest.batch(jnp.int32(2)), (rest.batches, few.batches)

    (first, second), few, last, counts = run()
    assert [int(x) for x in counts] == [3, 1]
    checked = np.asarray(few.inputs)[np.asarray(few.valid), 0]
    assert len(checked) == 2
    epochs = [np.concatenate(one)[:, 0] for one in (first, second)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort([*epoch[:8], *checked]), np.arange(10))
        assert epoch[8] == epoch[0]
    assert not np.array_equal(*epochs)
    np.testing.assert_array_equal(last.valid, [True, True, False])
    np.testing.assert_array_equal(last.labels, [0, 0, -1])


# In a real round: clients 2 and 3 of four attack.


@functools.cache
def built() -> Any:
    fields = {"attack__name": ("badnets", "layerwise"), "attack__malicious_fraction": 0.5}
    return build(configs.resolve(small.config(1, "fedavg", **fields)))


@functools.cache
def played(**options: Any) -> Any:
    """What is trained, what is sent, the attack's state, and what clients 2 and 3 train on clean data."""
    one = built()
    federation = one.federation._replace(attack=attacks.make(("badnets", "layerwise"), **options))

    @jax.jit
    def play(state):
        trainings = train(federation, one.arrays, one.sizes, state, one.key)
        trained = trainings.trained
        upload = Upload(
            global_params=state.variables.params,
            client_params=trained.variables.params,
            num_examples=one.sizes[trainings.client_ids].astype(jnp.float32),
            participating=trained.steps > 0,
            client_ids=trainings.client_ids,
            client_stats=trained.variables.stats,
        )
        attackers = Attackers(federation, one.arrays, state, one.key, trainings.client_ids)
        sent, own = attackers.craft(trainings.attack, upload)
        clean = jax.lax.map(lambda one: attackers._benign(one).params, jnp.array([2, 3]))
        return trained.variables.params, sent.client_params, own["layerwise"], clean

    return play(one.state)


def rows_of(tree: Any, row: int) -> list[np.ndarray]:
    return [np.asarray(leaf)[row] for leaf in jax.tree.leaves(tree)]


OPTIONS = [
    {"search_epochs": 4},
    {"analysis": "local", "defence": "multi_krum", "knowledge": "benign", "scale": 0.5},
    {"analysis": "local"},
    {"analysis": "local", "scale": None, "shrink": "reference"},
    {"analysis": "local", "mode": "plain"},
    {"analysis": "local", "mode": "flip"},
]


@pytest.mark.parametrize(
    "options", [*OPTIONS[:2], *[pytest.param(one, marks=pytest.mark.slow) for one in OPTIONS[2:]]], ids=str
)
def test_what_attackers_send_in_a_round(options):
    """All attackers the same: the center but for the layers that the state names; benign clients keep their bits."""
    trained, sent, own, clean = played(**options)
    for row in (0, 1):
        chex.assert_trees_all_equal(rows_of(sent, row), rows_of(trained, row))
    chex.assert_trees_all_equal(rows_of(sent, 2), rows_of(sent, 3))
    broadcast = jax.tree.leaves(built().state.variables.params)
    if options.get("knowledge") == "benign":
        center = [(a + b) / 2 for a, b in zip(rows_of(trained, 0), rows_of(trained, 1), strict=True)]
    elif "mode" in options:
        center = rows_of(clean, 0)
    else:  # two malicious clients of four: floor(2 * 2 / 4) = 1 of them stands for the attackers
        center = rows_of(clean, 0)
    chosen = np.asarray(own.sent)
    for layer, w, m, c, found in zip(chosen, broadcast, rows_of(trained, 2), center, rows_of(sent, 2), strict=True):
        w = np.asarray(w)
        scale = options.get("scale", 1.0)
        if scale is None:
            continue
        critical = 2 * w - m if options.get("mode") == "flip" else w + scale * (m - w) + (1 - scale) * (c - w)
        np.testing.assert_allclose(found, critical if layer else c, atol=1e-6)
    assert 0 <= float(own.success) <= 100
    assert 0 <= int(own.enough) <= len(chosen)


def test_what_cannot_be_together_is_refused():
    for options, words in (
        ({"mode": "plain", "scale": 0.5}, "scale = 0.5 is not allowed with mode = 'plain'"),
        ({"analysis": "local", "search_epochs": 3}, "search_epochs = 3 is not allowed with analysis = 'local'"),
        ({"defence": "flame", "assumed": 1}, "assumed = 1 is not allowed with defence = 'flame'"),
    ):
        with pytest.raises(ValueError, match=words):
            attacks.make("layerwise", **options)


def test_alone_it_is_refused_in_one_sentence(capsys, tmp_path):
    words = "attack.name = layerwise is not allowed without an attack that has a backdoor"
    small.refused(capsys, small.arguments(tmp_path / "run", "attack.name=layerwise", presets="fedavg"), words)
