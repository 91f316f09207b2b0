"""Neurotoxin: its mask against a stable sort, what it does in a round, and that it is kept, resumed and swept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import experiment
from fedjax_spmc.attacking import Attackers
from fedjax_spmc.attacks._masks import allowed, masks, smallest
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.federation import FederationState
from fedjax_spmc.losses import cross_entropy
from fedjax_spmc.one_round import Trainings, aggregate, train
from fedjax_spmc.types import Upload
from tests import small

pytestmark = pytest.mark.usefixtures("small_cache")

# The mask.


def by_sorting(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` smallest magnitudes, the first in order among equal ones, NaN behind infinity."""
    order = np.argsort(np.where(np.isnan(values), np.inf, np.abs(values)), kind="stable")
    order = np.concatenate([order[~np.isnan(values[order])], order[np.isnan(values[order])]])
    chosen = np.zeros(len(values), bool)
    chosen[order[:count]] = True
    return chosen


def awkward(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.normal(size=97).astype(np.float32)
    if kind == "ties":
        values = rng.integers(-3, 4, 97).astype(np.float32)
    elif kind == "zeros":
        values[rng.random(97) < 0.9] = 0.0
        values[::7] *= -1.0  # some of them -0
    elif kind == "extremes":
        values[:6] = [np.nan, np.inf, -np.inf, 1e-45, -1e-38, -np.nan]
    elif kind == "equal":
        values[:] = -2.5
    return values


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "extremes", "equal"])
def test_the_smallest_are_those_of_a_stable_sort(kind):
    values = awkward(kind)
    counts = jnp.arange(len(values) + 1)
    found = jax.jit(jax.vmap(smallest, in_axes=(None, 0)))(jnp.asarray(values), counts)
    for count, ours in enumerate(np.asarray(found)):
        np.testing.assert_array_equal(ours, by_sorting(values, count), err_msg=str(count))


def test_the_number_is_the_cut_product_of_floats_whatever_form_the_ratio_has():
    assert allowed(100, 0.57) == 56, "100 * 0.57 is 56.99999999999999"
    ratios = [*np.arange(101) / 100, 0.123456, 0.999999]
    sizes = (1, 3, 100, 576, 1_000_000, 2_797_610)
    several = jax.jit(jax.vmap(lambda ratio: [allowed(size, ratio) for size in sizes]))
    for size, ours in zip(sizes, several(jnp.asarray(ratios, jnp.float32)), strict=True):
        assert ours.tolist() == [int(size * float(ratio)) for ratio in ratios]


@pytest.mark.parametrize("scope", ["global", "per_tensor"])
def test_scopes(scope):
    rng = np.random.default_rng(1)
    gradient = {name: rng.normal(size=shape).astype(np.float32) for name, shape in
                {"a": (4, 3), "one": (1,), "scalar": (), "three": (3,)}.items()}  # fmt: skip
    compiled = jax.jit(lambda tree, ratio: masks(tree, ratio, scope))
    for ratio in (0.0, 0.5, 0.95, 1.0):
        ours = [np.ravel(x) for x in compiled(gradient, jnp.float32(ratio)).values()]
        parts = [np.ravel(x) for x in gradient.values()]
        if scope == "global":
            ours, parts = [np.concatenate(ours)], [np.concatenate(parts)]
        for mask, part in zip(ours, parts, strict=True):
            np.testing.assert_array_equal(mask, by_sorting(part, int(part.size * ratio)))


# A round.

FIELDS: dict[str, Any] = {
    "presets": "fedavg",
    "aggregator__name": "norm_clip",
    "aggregator__options__threshold": 0.05,
    "data__options__num_train": 120,
    "model__options__hidden": (6,),
    "local__weight_decay": 0.01,
    "local__learning_rate": 0.1,
}
ATTACKER = 3


class Played(NamedTuple):
    """A round: the state before it, the attack's state in it, the models trained, the uploads, the state behind."""

    before: FederationState
    own: Any
    trained: Any
    sent: Any
    after: FederationState


class Player:
    """An experiment whose rounds are played one by one, compiled once."""

    def __init__(self, *names: str, **fields: Any):
        self.made = made = experiment.build(configs.resolve(small.config(3, attack__name=names, **FIELDS | fields)))

        @jax.jit
        def play(state: FederationState) -> Any:
            ids, own, trained = train(made.federation, made.arrays, made.sizes, state, made.key)
            attackers = Attackers(made.federation, made.arrays, state, made.key, ids)
            upload = Upload(
                global_params=state.variables.params,
                client_params=trained.variables.params,
                num_examples=made.sizes[ids].astype(jnp.float32),
                participating=trained.steps > 0,
                client_ids=ids,
                client_stats=trained.variables.stats,
            )
            sent, _ = attackers.craft(own, upload)
            after, _ = aggregate(
                made.federation, made.arrays, made.sizes, state, made.key, Trainings(ids, own, trained)
            )
            return own, trained.variables.params, sent.client_params, after

        self._play = play

    def play(self, state: FederationState | None = None, **replaced: Any) -> Played:
        state = (self.made.state if state is None else state)._replace(**replaced)
        return Played(state, *self._play(state))


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def rows(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(tree)], axis=1)


def update_of(state: FederationState) -> np.ndarray:
    return flat(state.variables.params) - flat(state.previous.params)


@pytest.fixture(scope="module")
def strict() -> Player:
    return Player("badnets", "neurotoxin")


@pytest.fixture(scope="module")
def second(strict) -> Played:
    """Round 1 of it."""
    return strict.play(strict.play().after)


def test_nothing_is_masked_where_there_is_no_update(strict, second):
    """In round 0, and behind a round that failed."""
    assert flat(strict.play().own["neurotoxin"].mask).all()
    stood = second.before._replace(previous=second.before.variables)
    assert flat(strict.play(stood).own["neurotoxin"].mask).all()


def test_the_mask_is_of_the_last_update(second):
    update = update_of(second.before)
    np.testing.assert_array_equal(flat(second.own["neurotoxin"].mask), by_sorting(update, int(len(update) * 0.95)))
    np.testing.assert_array_equal(flat(second.after.attack["neurotoxin"].mask), flat(second.own["neurotoxin"].mask))


def test_strict_leaves_masked_coordinates_exactly_where_they_were(second):
    moved = rows(second.trained) - flat(second.before.variables.params)
    may = flat(second.own["neurotoxin"].mask)
    assert (moved[ATTACKER][~may] == 0).all()
    assert (moved[ATTACKER][may] != 0).mean() > 0.9
    assert (moved[:ATTACKER][:, ~may] != 0).mean() > 0.9


def test_subtract_own_takes_out_what_clipping_left_of_the_upload():
    """Behind another part that scales it; what was sent in an earlier round does not count."""
    options = {"neurotoxin": {"subtract_own": True}, "model_replacement": {"factor": 3.0}}
    player = Player("badnets", "model_replacement", "neurotoxin", attack__options=options)
    first = player.play()
    sent = rows(first.sent) - flat(first.before.variables.params)
    share = sent[ATTACKER] / max(1.0, np.linalg.norm(sent[ATTACKER]) / 0.05) / len(sent)
    assert np.linalg.norm(sent[ATTACKER]) > 0.05
    own = first.after.attack["neurotoxin"]
    np.testing.assert_allclose(flat(own.share), share, rtol=0, atol=1e-7)
    assert int(own.sent) == 0
    update = update_of(first.after)
    count = int(len(update) * 0.95)
    played = player.play(first.after)
    np.testing.assert_array_equal(flat(played.own["neurotoxin"].mask), by_sorting(update - flat(own.share), count))
    older = first.after.attack | {"neurotoxin": own._replace(sent=jnp.int32(-1))}
    played = player.play(first.after, attack=older)
    np.testing.assert_array_equal(flat(played.own["neurotoxin"].mask), by_sorting(update, count))


@pytest.mark.parametrize("data", ["own", "pool"])
def test_clean_gradients_are_summed_over_clients_and_batches(data):
    options = {"source": "clean_grad", "mask_data": data, "scope": "per_tensor"}
    made = experiment.build(
        configs.resolve(
            small.config(
                3,
                attack__name=("badnets", "neurotoxin"),
                attack__malicious_fraction=0.5,
                **FIELDS,
                **{f"attack__options__{name}": value for name, value in options.items()},
            )
        )
    )
    ids = jnp.arange(4)
    attackers = Attackers(made.federation, made.arrays, made.state, made.key, ids)
    own = jax.jit(attackers.begin_round)(made.state.attack)["neurotoxin"]
    if data == "pool":
        assert set(own.pool.tolist()[:2]) == {0, 1}, "benign ones first"
        assert sorted(own.pool.tolist()) == [0, 1, 2, 3], "all where there are fewer than asked for"
    model, (params, stats) = made.federation.model, made.state.variables

    @jax.jit
    def gradient(client, step):
        batch = attackers.clean_data(client).gather(step, made.key)

        def loss(params):
            return cross_entropy(model.apply(params, stats, batch.inputs, True, made.key)[0], batch.labels, batch.valid)

        return jax.grad(loss)(params)

    total = jax.tree.map(np.zeros_like, params)
    for client in own.pool.tolist() if data == "pool" else [2, 3]:
        for step in range(int(made.sizes[client]) // 8):
            total = jax.tree.map(np.add, total, gradient(jnp.int32(client), jnp.int32(step)))
    for mask, summed in zip(jax.tree.leaves(own.mask), jax.tree.leaves(total), strict=True):
        np.testing.assert_array_equal(np.ravel(mask), by_sorting(np.ravel(summed), int(summed.size * 0.95)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask_data": "own"}, "mask_data = 'own' is not allowed with source = 'prev_update'"),
        ({"mask_drawn": 3}, "mask_drawn = 3 is not allowed with source = 'prev_update'"),
        (
            {"source": "clean_grad", "subtract_own": True},
            "subtract_own = True is not allowed with source = 'clean_grad'",
        ),
        ({"source": "clean_grad", "mask_data": "own", "mask_pool": 3}, "mask_pool = 3 is not allowed with mask_data"),
        ({"ratio": 1.5}, "ratio = 1.5 is not allowed"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(options, words):
    fields = {f"attack__options__{name}": value for name, value in options.items()}
    with pytest.raises(ConfigError) as caught:
        configs.resolve(small.config(attack__name=("badnets", "neurotoxin"), **fields))
    assert str(caught.value).startswith("attack.options.")
    assert words in str(caught.value)
