"""FLIP's clients: which pairs they take, what they stamp, what they keep, and what they do where data are poor."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import local_rules, models, trees
from fedjax_spmc.config import make_config
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.flip import Triggers, memory, parallel
from fedjax_spmc.flip.hardening import chosen, counts_of, hardened
from fedjax_spmc.flip.options import PRESETS, Options
from fedjax_spmc.flip.searching import Own, noise, universal_samples
from fedjax_spmc.parity.kinds_local import fixed_batches
from fedjax_spmc.record.remarks import Facts, remarks_of
from fedjax_spmc.setup import asks_for_truth, is_oracle
from fedjax_spmc.training import map_clients, train_client
from fedjax_spmc.types import Batch, Context
from tests import small

CLASSES, SHAPE = 4, (6, 6, 1)
HYPER = {"learning_rate": 0.01, "momentum": 0.5, "beta2": 0.9, "weight_decay": 0.0}
STEPS = {"universal_steps": 12, "pair_steps": 8}
KEY = jax.random.key(0)


def remembered(gain) -> memory.Memory:
    one = memory.empty(len(gain), SHAPE, Options(storage="none"))
    return one._replace(gain=jnp.asarray(gain, jnp.float32))


def draws(explore=1.0, source=0, target=0, tie=(0, 0), classes=3) -> memory.PairDraws:
    tied = np.zeros((classes, classes), np.float32)
    tied[tie] = 1
    numbers = explore, np.eye(classes)[source], np.eye(classes)[target], tied
    return memory.PairDraws(*(jnp.asarray(x, jnp.float32) for x in numbers))


GAIN = [[-np.inf, 2.0, 1.0], [3.0, -np.inf, 3.0], [0.5, 0.0, -np.inf]]


@pytest.mark.parametrize(
    ("present", "previous", "drawn", "pair"),
    [
        ([1, 1, 1], -1, draws(tie=(1, 2)), (1, 2)),  # chance among equals
        ([1, 1, 1], -1, draws(tie=(0, 1)), (1, 0)),
        ([1, 1, 1], 1, draws(), (0, 1)),  # never the same source again
        ([0, 0, 1], -1, draws(), (2, 0)),  # only from classes that are present
        ([0, 1, 0], 1, draws(), (-1, -1)),
        ([0, 1, 0], 1, draws(explore=0.1, source=1, target=2), (1, 2)),  # but for a random pair
        ([0, 1, 1], -1, draws(explore=0.1, source=0, target=1), (1, 0)),
        ([0, 0, 0], -1, draws(explore=0.1), (-1, -1)),
    ],
    ids=range(8),
)
def test_which_pair_comes_next(present, previous, drawn, pair):
    found = memory.next_pair(remembered(GAIN), jnp.asarray(present, bool), jnp.int32(previous), drawn, 0.3)
    assert tuple(map(int, found)) == pair


def test_the_pairs_of_a_round_differ():
    gain = np.full((3, 3), 1.0)
    np.fill_diagonal(gain, -np.inf)
    source, target = parallel.choose_pairs(Options(pairs=5), remembered(gain), jnp.ones(3, bool), KEY)
    pairs = [{int(s), int(t)} for s, t in zip(source, target, strict=True) if s >= 0]
    assert 2 <= len(pairs) <= 3  # there are three, and chance may draw one twice
    assert all(len(pair) == 2 for pair in pairs)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert (np.diff(np.asarray(source) < 0) >= 0).all()
    two = np.where(np.eye(2, dtype=bool), -np.inf, 1.0)
    source, _ = parallel.choose_pairs(Options(pairs=5), remembered(two), jnp.ones(2, bool), KEY)
    assert (np.asarray(source) >= 0).sum() == 1


def test_scores_are_the_mean_of_the_old_gain_and_the_share_by_which_the_size_changed():
    kept = memory.empty(3, SHAPE, Options())
    kept = memory.rated(kept, 0, 1, jnp.float32(4.0), jnp.bool_(True))
    assert (float(kept.warm[0, 1]), float(kept.gain[0, 1])) == (4.0, 0.0)
    kept = memory.rated(kept, 0, 1, jnp.float32(6.0), jnp.bool_(True))
    assert (float(kept.warm[0, 1]), float(kept.gain[0, 1])) == (6.0, 0.25)
    failed = memory.rated(kept, 0, 1, jnp.float32(0.0), jnp.bool_(True))
    assert (float(failed.warm[0, 1]), float(failed.gain[0, 1])) == (6.0, (0.25 - 1) / 2)
    chex.assert_trees_all_equal(memory.rated(kept, 0, 1, jnp.float32(9.0), jnp.bool_(False)), kept)
    assert np.isinf(kept.gain[1, 0])
    assert not np.asarray(memory.normalised(jnp.zeros((3, 3)))).any()


@pytest.mark.parametrize(("storage", "seen"), [("pairs", [0, 0, 1, 2]), ("targets", [0, 2, 2, 2]), ("none", [0] * 4)])
@pytest.mark.parametrize("half", [False, True])
def test_what_is_kept(storage, seen, half):
    """Trigger 1 for (0, 2), trigger 2 for (1, 2): asked for (0, 1), (2, 2), (0, 2), (1, 2)."""
    kept = memory.empty(3, SHAPE, Options(storage=storage, half=half))
    triggers = Triggers(jnp.asarray([1.0, 2.0])[:, None, None] * jnp.ones((1, *SHAPE[:2])), jnp.ones((2, *SHAPE)))
    kept = memory.keep_all(kept, jnp.asarray([0, 1, 0]), jnp.asarray([2, 2, 2]), *_thrice(triggers))
    found = [memory.recall(kept, jnp.int32(s), jnp.int32(t)) for s, t in ((0, 1), (2, 2), (0, 2), (1, 2))]
    assert [int(one.masks[0, 0]) if has else 0 for one, has in found] == seen
    assert found[0][0].masks.dtype == jnp.float32
    size = sum(x.nbytes for x in kept.triggers)
    numbers = {"pairs": 9, "targets": 3, "none": 0}[storage] * (36 + 36)
    assert size == numbers * (2 if half else 4)


def _thrice(triggers):
    """The third is not to be kept."""
    return jax.tree.map(lambda x: jnp.concatenate([x, 9 * x[:1]]), triggers), jnp.asarray([True, True, False])


def test_the_memory_of_a_hundred_clients_is_within_its_bounds():
    def size(**options):
        state = jax.eval_shape(
            lambda: local_rules.make("flip", network=models.make("mnist_net"), **options).init(None, 100)
        )
        return sum(np.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state.clients)) / 1e6

    assert size() < 70
    assert size(half=True) < 36
    assert size(storage="targets") < 8


def batch_of(labels, shape=SHAPE) -> Batch:
    labels = jnp.asarray(labels, jnp.int32)
    inputs = jax.random.uniform(jax.random.key(1), (len(labels), *shape))
    return Batch(inputs, labels, jnp.arange(len(labels), dtype=jnp.int32), labels >= 0)


def test_rows_are_chosen_and_stamped_with_their_labels_left():
    batch = batch_of([0, 1, 0, 0, 1, -1])
    assert counts_of(batch, 3).tolist() == [3, 2, 0]
    drawn = jnp.asarray([0.9, 0.0, 0.1, 0.5, 0.0, 0.0])
    first, second = chosen(batch.labels == 0, drawn, jnp.int32(2)), chosen(batch.labels == 1, drawn, jnp.int32(1))
    assert first.tolist() == [False, False, True, True, False, False]
    assert second.tolist() == [False, True, False, False, False, False]
    masks = jnp.stack([jnp.zeros(SHAPE[:2]).at[0, 0].set(1.0), jnp.zeros(SHAPE[:2]).at[1].set(0.5)])
    triggers = Triggers(masks, jnp.full((2, *SHAPE), 3.0))  # cut to 1
    made = hardened(batch, first, second, triggers)
    expected = np.array(batch.inputs)
    expected[2:4, 0, 0] = 1
    expected[1, 1] = np.clip(0.5 * expected[1, 1] + 1.5, 0, 1)
    np.testing.assert_allclose(made.inputs, expected, atol=1e-6)
    assert made.labels.tolist() == batch.labels.tolist()
    assert Options(fraction=0.9).stamped_of(jnp.int32(10), 20) == 9


def test_universal_searches_see_the_first_examples_of_the_other_classes():
    labels = jnp.asarray([2, 0, 1, 0, 0, 1, -1], jnp.int32)
    pixels = jnp.arange(7.0)[:, None, None, None] * jnp.ones((1, *SHAPE))
    own = Own(labels, jnp.asarray([3, 2, 1]), lambda at: pixels[at])
    found = universal_samples(Options(universal_samples=2), own, jnp.arange(3))
    for target, others in ((0, [2, 5]), (1, [1, 3]), (2, [1, 3, 2, 5])):  # class 2 has one example alone
        mine = np.asarray(found.share[:, target]) > 0
        assert np.asarray(found.inputs)[mine][:, 0, 0, 0].tolist() == others
        assert set(np.asarray(found.wanted)[mine].tolist()) == {target}


def test_noise_has_as_many_pixels_as_asked():
    found = noise(Options(triggers="noise", noise_pixels=7), KEY, 3, SHAPE)
    assert np.asarray(found.sizes()).tolist() == [7, 7, 7]
    assert not np.asarray(noise(Options(triggers="none"), KEY, 2, SHAPE).masks).any()


# A client in a round.

MODEL = models.make("mlp", hidden=(8,), image_shape=SHAPE, num_classes=CLASSES)
ROUND = {
    "parallel": dict(pairs=2, pair_samples=3, **STEPS),
    "reference": dict(short_steps=3, schedule="reference", **STEPS),
}


@functools.cache
def player(schedule):
    """(start, images, labels, client state, threshold, size limit) -> what training leaves; compiled once."""

    @jax.jit
    def run(variables, images, labels, own, threshold, limit):
        rule = local_rules.make("flip", network=MODEL, threshold=threshold, size_limit=limit, **ROUND[schedule])
        ctx = Context(MODEL, variables, variables, HYPER, 2, jnp.int32(0))
        return train_client(rule, ctx, own, fixed_batches(images, labels), jax.random.key(3))

    return run


@functools.cache
def start():
    return MODEL.init(jax.random.key(2))


def fresh():
    state = local_rules.make("flip", network=MODEL).init(start(), 3)
    return trees.take_rows(state.clients, jnp.int32(1))


def data(labels):
    """Three batches of eight."""
    labels = np.resize(np.asarray(labels), 24).reshape(3, 8)
    rng = np.random.default_rng(0)
    patterns = rng.random((CLASSES, *SHAPE))
    images = 0.5 * patterns[labels] + 0.5 * rng.random((3, 8, *SHAPE))
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def played(schedule, labels, own=None, threshold=0.9, limit=1e3):
    images, labels = data(labels)
    own = fresh() if own is None else own
    return player(schedule)(start(), images, labels, own, jnp.float32(threshold), jnp.float32(limit))


def moved(trained):
    pairs = zip(jax.tree.leaves(trained.variables.params), jax.tree.leaves(start().params), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize("schedule", list(ROUND))
def test_a_client_searches_hardens_and_remembers(schedule):
    first = played(schedule, range(CLASSES))
    chex.assert_tree_all_finite((first.variables, first.metrics, first.client_state.warm, first.client_state.triggers))
    chex.assert_trees_all_equal_shapes_and_dtypes(first.client_state, fresh())
    assert int(first.steps) == 6
    assert moved(first) > 0
    kept = first.client_state
    assert bool(kept.visited)
    has = np.asarray(kept.has).reshape(CLASSES, CLASSES)
    assert has.any()
    assert not has.diagonal().any()
    assert ((np.asarray(kept.warm) > 0) >= has).all()
    again = played(schedule, range(CLASSES), kept)
    chex.assert_tree_all_finite((again.variables, again.client_state.warm, again.client_state.triggers))
    assert moved(again) > 0
    different = jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), kept.triggers, again.client_state.triggers))
    assert any(map(bool, different))


@pytest.mark.parametrize("schedule", list(ROUND))
@pytest.mark.parametrize(
    ("labels", "trains"),
    [
        ([2], None),  # one class
        ([1, 3], True),  # two classes
        ([0, 1, 2, 2, 1], True),  # nobody has class 3
        ([0, 1, 2, 3, 3, 3, 3, 3], None),  # of most too few to count as present
    ],
    ids=["one", "two", "none of one", "few"],
)
def test_poor_data_never_give_nan(schedule, labels, trains):
    state = None
    for _ in range(2):
        done = played(schedule, labels, state)
        state = done.client_state
        chex.assert_tree_all_finite((done.variables, done.metrics, state.warm, state.triggers))
        assert not np.isnan(np.asarray(state.gain)).any()
        assert trains is None or (moved(done) > 0) == trains
    absent = sorted(set(range(CLASSES)) - set(labels))
    assert not np.asarray(state.has).reshape(CLASSES, CLASSES)[absent].any()


@pytest.mark.parametrize("schedule", list(ROUND))
def test_where_every_search_fails_nothing_is_kept(schedule):
    done = played(schedule, range(CLASSES), threshold=1.1)
    chex.assert_tree_all_finite((done.variables, done.metrics, done.client_state.warm))
    assert not np.asarray(done.client_state.has).any()
    assert not np.asarray(done.client_state.warm).any()


@pytest.mark.parametrize("schedule", list(ROUND))
def test_triggers_over_the_limit_train_nothing_behind_the_first_visit(schedule):
    again = played(schedule, range(CLASSES), played(schedule, range(CLASSES)).client_state, limit=1e-6)
    assert moved(again) == 0
    assert float(again.metrics["loss"]) == 0
    chex.assert_tree_all_finite(again.client_state.triggers)


@pytest.mark.slow
def test_clients_at_once_do_what_each_does_alone():
    cases = [data(range(CLASSES)), data([0, 1]), data([3, 2, 1])]
    images, labels = (jnp.stack(one) for one in zip(*cases, strict=True))
    own = trees.broadcast(fresh(), 3)
    rule = local_rules.make("flip", network=MODEL, threshold=jnp.float32(1.1), **ROUND["parallel"])

    def one(row):
        ctx = Context(MODEL, start(), start(), HYPER, 2, jnp.int32(0))
        return train_client(rule, ctx, row[2], fixed_batches(row[0], row[1]), jax.random.key(3))

    together = jax.jit(lambda rows: map_clients(one, rows, 3))((images, labels, own))
    for client, labels_of in enumerate((range(CLASSES), [0, 1], [3, 2, 1])):
        alone = played("parallel", labels_of, threshold=1.1)
        mine = jax.tree.map(lambda x, client=client: x[client], together)
        chex.assert_trees_all_close(mine.variables, alone.variables, atol=1e-5)
        chex.assert_trees_all_close(mine.client_state.warm, alone.client_state.warm, atol=1e-5)


# What is refused, and what a result says.


def flip_config(**fields):
    return configs.resolve(small.config(presets="flip", **fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {
                "local__options__schedule": "reference",
                "local__options__pair_key": "reference",
                "local__options__storage": "targets",
            },
            ("storage = 'targets'", "pairs"),
        ),
        ({"local__options__fraction": 1.5}, ("local.options.fraction = 1.5", "[0, 1]")),
        ({"local__options__preset": "full"}, ("local.options.preset = 'full'", "lite, reference")),
        ({"local__options__universal_steps": 0}, ("local.options.universal_steps = 0", "[1, 1e+06]")),
        ({"evaluation__confidence": 1.0}, ("evaluation.confidence = 1.0", "[0, 0.99]")),
        ({"attack__local__optimizer": "adam"}, ("attack.local.optimizer = 'adam'", "sgd")),
    ],
    ids=lambda case: str(next(iter(case))) if isinstance(case, dict) else "",
)
def test_what_is_out_of_range_is_refused(fields, words):
    with pytest.raises(ConfigError) as refusal:
        flip_config(**fields)
    assert all(word in str(refusal.value) for word in words), refusal.value
    assert "\n" not in str(refusal.value)


def test_tokens_are_refused():
    texts = models.make("lstm_lm", num_classes=9, vocabulary=9, sequence_length=5)
    with pytest.raises(ConfigError, match=r"local.rule = 'flip' is not allowed with inputs of shape \(5,\)"):
        local_rules.make("flip", network=texts)


def test_presets_fill_in_what_is_open_and_a_result_says_which():
    def sentences(**fields):
        return [
            one.sentence for one in remarks_of(configs.flatten(flip_config(**fields)), Facts()) if one.letter == "f"
        ]

    assert sentences() == [
        "FLIP: preset lite, schedule parallel, triggers inverted: 50 universal steps and 30 for 3 pairs a round."
    ]
    assert "60 universal" in sentences(local__options__universal_steps=60)[0]
    assert "random patterns" in sentences(local__options__triggers="noise")[0]
    exact = {"local__options__preset": "reference", "local__options__schedule": "reference"}
    assert sentences(**exact) == []
    assert PRESETS["reference"]["universal_steps"] == 400
    given = make_config("flip,reference").local.options
    assert (given.preset, given.schedule, given.pair_key, given.rollback_other) == ("reference",) * 3 + (True,)


def test_a_prior_on_the_triggers_place_marks_the_result():
    told = flip_config(local__options__oracle_mask_prior=True)
    assert is_oracle(told)
    assert not asks_for_truth(told)
    assert not is_oracle(flip_config())
