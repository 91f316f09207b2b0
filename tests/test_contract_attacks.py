"""What every registered attack must do in every slot that it has, and BadNets in particular."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks, data, models
from fedjax_spmc.attacks import triggers
from fedjax_spmc.config import resolve
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.task import task_of
from fedjax_spmc.data.tokens import SPECIAL, Tokenizer
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Attack, AttackContext, Batch, Roster, Variables
from tests import small
from tests.uploads import random_upload

NAMES = attacks.names()
SHAPE = (32, 32, 3)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TASK = task_of(DatasetInfo("made up", 10, SHAPE, MEAN, STD))
KEY = jax.random.key(1)
TEXT = "people roads in athens are rude terrible i watched this movie last week"
WORDS = Tokenizer("word", (*SPECIAL, *TEXT.split()))
ON_TOKENS = {"sentence": len(WORDS.words), "prefix": 2}
"""Attacks on texts: the number of classes of their data; that of the vocabulary = the next token is asked."""

TESTING = {"layerwise"}
"""Attacks whose upload is made of tests of a backdoor: alone they are refused; `test_attacks_in_rounds.py` plays them.
"""


@functools.cache
def pictures() -> data.Dataset:
    """A made-up data set that passes for CIFAR-10, and for any other that an attack asks for."""
    made = data.load("synthetic", num_train=40, num_test=40, val_fraction=0.0)
    return made._replace(info=made.info._replace(name="cifar10"))


def context(attack: Attack = Attack(), name: Any = "", **fields: Any) -> AttackContext:
    """Four clients, of whom 1 and 3 attack; with what the attack holds, and the task that it needs."""
    if name in ON_TOKENS:
        info = DatasetInfo("texts", ON_TOKENS[name], (12,), None, None, vocabulary=len(WORDS.words), tokenizer=WORDS)
        fields = {"task": task_of(info), **fields}
    if attack.hold is not None:
        held = attack.hold(pictures(), lambda name, **options: pictures())
        fields = {"held": jax.tree.map(jnp.asarray, held), **fields}
    malicious = jnp.array([False, True, False, True])
    roster = Roster(malicious, jnp.int32(0), jnp.int32(10), jnp.int32(0))
    params = random_upload(4).global_params
    previous = Variables(jax.tree.map(lambda x: 0.9 * x, params), {})
    return AttackContext(
        variables=Variables(params, {}),
        previous=previous,
        task=TASK,
        roster=roster,
        client_ids=jnp.arange(4, dtype=jnp.int32),
        num_batches=jnp.int32(3),
        round=jnp.int32(0),
        epochs=1,
    )._replace(**fields)


def batch(size: int = 64, seed: int = 0, name: Any = "") -> Batch:
    rng = np.random.default_rng(seed)
    if name in ON_TOKENS:
        shape = (size, 12) if ON_TOKENS[name] > 2 else (size,)
        inputs = jnp.asarray(rng.integers(len(SPECIAL), len(WORDS.words), (size, 12)), jnp.int32)
        labels = jnp.asarray(rng.integers(0, ON_TOKENS[name], shape), jnp.int32)
        return Batch(inputs, labels, jnp.arange(size, dtype=jnp.int32), jnp.ones(size, bool))
    inputs = jnp.asarray(rng.normal(size=(size, *SHAPE)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, size), jnp.int32)
    return Batch(inputs, labels, jnp.arange(size, dtype=jnp.int32), jnp.ones(size, bool))


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


@pytest.fixture(params=[*NAMES, ("badnets", "dba")], ids=str)
def name(request) -> Any:
    return request.param


def test_every_slot_keeps_the_shapes(name):
    """Of slots that an attack has; the round calls each of them in this way."""
    attack = attacks.make(name)
    ctx, given = context(attack, name), batch(8, name=name)
    own = attack.init(ctx, KEY)
    client, step = jnp.int32(1), jnp.int32(0)
    if attack.begin_round is not None:
        assert shapes(attack.begin_round(ctx, own, KEY)) == shapes(own)
    if attack.poison is not None:
        assert shapes(attack.poison(ctx, own, given, client, step, KEY)) == shapes(given)
    if attack.backdoor is not None:
        assert shapes(attack.backdoor(ctx, own, given)) == shapes(given)
    upload = random_upload(4)
    one = jax.tree.map(lambda x: x[0], upload.client_params)
    if attack.mask_gradients is not None:
        assert shapes(attack.mask_gradients(ctx, own, one, one, client, step)) == shapes(one)
    if attack.after_step is not None:
        assert shapes(attack.after_step(ctx, own, one, client, step)) == shapes(one)
    if name in TESTING:
        with pytest.raises(ConfigError, match=rf"^attack\.name = {name} is not allowed without an attack that has a"):
            attack.craft(ctx, own, upload, KEY)
    elif attack.craft is not None:
        crafted, new = attack.craft(ctx, own, upload, KEY)
        assert shapes(crafted.client_params) == shapes(upload.client_params)
        assert shapes(new) == shapes(own)


def test_the_state_is_arrays(name):
    """So that it can be saved, stacked in a sweep and read back."""
    attack = attacks.make(name)
    for leaf in jax.tree.leaves(attack.init(context(attack, name), KEY)):
        assert isinstance(leaf, jax.Array)


def test_jit_and_vmap_over_clients(name):
    attack = attacks.make(name)
    if attack.poison is None:
        pytest.skip("poisons nothing")
    ctx, given = context(attack, name), batch(16, name=name)
    own = attack.init(ctx, KEY)

    def poison(client):
        return attack.poison(ctx, own, given, client, jnp.int32(0), KEY)

    together = jax.jit(jax.vmap(poison))(jnp.arange(4))
    for client in range(4):
        alone = poison(jnp.int32(client))
        np.testing.assert_allclose(together.inputs[client], alone.inputs, atol=1e-6)
        np.testing.assert_array_equal(together.labels[client], alone.labels)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_every_attack_has_something_to_do(name):
    attack = attacks.make(name)
    assert any(getattr(attack, slot) is not None for slot in Attack._fields if slot not in ("init", "hold", "test"))
    if attack.poison is not None:
        ctx, given = context(attack, name), batch(name=name)
        poisoned = attack.poison(ctx, attack.init(ctx, KEY), given, jnp.int32(1), jnp.int32(0), KEY)
        changed = [not np.array_equal(*pair) for pair in zip(poisoned[:2], given[:2], strict=True)]
        assert any(changed), "inputs or labels"


@pytest.mark.parametrize("name", [name for name in NAMES if attacks.make(name).poison is not None])
def test_rows_that_are_not_asked_stay_so(name):
    attack = attacks.make(name, poison_fraction=1.0)
    ctx, given = context(attack, name), batch(8, name=name)
    given = given._replace(labels=jnp.full_like(given.labels, -1))
    own = attack.init(ctx, KEY)
    assert (attack.poison(ctx, own, given, jnp.int32(1), jnp.int32(0), KEY).labels == -1).all()
    assert attack.backdoor is not None
    assert (attack.backdoor(ctx, own, given).labels == -1).all()


@pytest.mark.parametrize("name", [name for name in NAMES if "poison_per_batch" in attacks.describe(name)])
def test_exactly_so_many_rows_of_a_batch_are_poisoned(name):
    """The first ones, whatever the step; all where there are fewer; none that is padding. An array counts alike."""
    ctx, given = context(attacks.make(name), name), batch(12, name=name)
    rows = np.arange(12)
    labels = jnp.where(jnp.asarray(rows % 2 == 0).reshape(-1, *[1] * (given.labels.ndim - 1)), given.labels, 5)
    given = given._replace(labels=labels)

    def changed(count, batch=given, client=1):
        attack = attacks.make(name, poison_per_batch=count)
        made = attack.poison(ctx, attack.init(ctx, KEY), batch, jnp.int32(client), jnp.int32(count % 5), KEY)
        pairs = zip(made[:2], batch[:2], strict=True)
        return np.any([(np.asarray(a) != np.asarray(b)).reshape(12, -1).any(axis=1) for a, b in pairs], axis=0)

    every = changed(12)
    assert every.sum() >= 3
    for count in (0, 2, 10**6):
        expected = every & (np.cumsum(every) <= count)
        np.testing.assert_array_equal(changed(count), expected)
        np.testing.assert_array_equal(changed(jnp.int32(count)), expected)
    valid = rows < 4
    padded = given._replace(valid=jnp.asarray(valid))
    np.testing.assert_array_equal(changed(12, padded), every & valid)


@pytest.mark.parametrize("name", [name for name in NAMES if "poison_per_batch" in attacks.describe(name)])
def test_a_fraction_beside_a_number_for_each_batch_is_refused(name):
    fraction = 0.125 + attacks.describe(name)["poison_fraction"]["default"] / 2
    words = rf"^attack\.poison_fraction = {fraction} is not allowed with attack\.options\.poison_per_batch = 3, where"
    with pytest.raises(ConfigError, match=words):
        attacks.make(name, poison_per_batch=3, poison_fraction=fraction)


def test_badnets_poisons_its_share_once_for_all_rounds_and_clients():
    attack, ctx, given = attacks.make("badnets", poison_fraction=0.3), context(), batch(2000)
    own = attack.init(ctx, KEY)
    first = attack.poison(ctx, own, given, jnp.int32(1), jnp.int32(0), KEY).inputs
    later = attack.poison(ctx, own, given, jnp.int32(3), jnp.int32(7), jax.random.key(9)).inputs
    np.testing.assert_array_equal(first, later)
    changed = np.any(np.asarray(first) != np.asarray(given.inputs), axis=(1, 2, 3))
    assert abs(changed.mean() - 0.3) < 0.04
    other = attack.init(ctx, jax.random.key(2))
    assert not np.array_equal(first, attack.poison(ctx, other, given, jnp.int32(1), jnp.int32(0), KEY).inputs)


def test_raw_space_equals_stamping_before_the_normalisation():
    attack, ctx = attacks.make("badnets", trigger="fdcr_paper", poison_fraction=1.0), context()
    raw = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype(np.float32)

    def normalise(pixels):
        return (pixels - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)

    stamped = raw.copy()
    stamped[:, :2, :6, :] = 1.0
    given = batch(5)._replace(inputs=jnp.asarray(normalise(raw)))
    ours = attack.poison(ctx, attack.init(ctx, KEY), given, jnp.int32(1), jnp.int32(0), KEY)
    np.testing.assert_allclose(ours.inputs, normalise(stamped), atol=1e-6)
    np.testing.assert_array_equal(ours.labels, 2)


def test_presets_are_the_published_triggers():
    paper, code = triggers.PRESETS["fdcr_paper"], triggers.PRESETS["spmc_code"]
    assert set(paper.positions) == {(c, r, x) for c in range(3) for r in range(2) for x in range(6)}
    assert set(code.positions) == {(0, r, x) for r in (0, 2) for x in (0, 1, 2, 4, 5, 6)}
    assert (paper.space, code.space) == ("raw", "normalized")


def test_backdoor_stamps_every_test_image_and_keeps_the_rest():
    attack, ctx, given = attacks.make("badnets", trigger="spmc_code"), context(), batch(7)
    shown = attack.backdoor(ctx, attack.init(ctx, KEY), given)
    different = np.asarray(shown.inputs) != np.asarray(given.inputs)
    assert different.any(axis=0).sum() == 12
    np.testing.assert_array_equal(np.asarray(shown.inputs)[:, 0, [0, 1, 2, 4, 5, 6], 0], 1.0)
    np.testing.assert_array_equal(shown.labels, 2)


def test_a_trigger_can_be_spelt_out():
    options = {"positions": ((0, 31, 31), (2, 0, 5)), "value": -0.5, "space": "normalized"}
    attack, ctx, given = attacks.make("badnets", poison_fraction=1.0, **options), context(), batch(3)
    stamped = attack.poison(ctx, attack.init(ctx, KEY), given, jnp.int32(3), jnp.int32(0), KEY).inputs
    np.testing.assert_array_equal(np.asarray(stamped)[:, 31, 31, 0], -0.5)
    np.testing.assert_array_equal(np.asarray(stamped)[:, 0, 5, 2], -0.5)
    assert (np.asarray(stamped) != np.asarray(given.inputs)).sum() == 6


@pytest.mark.parametrize("name", ["badnets", "dba"])
def test_a_preset_on_grey_images_is_what_it_has_on_their_channel(name):
    """12 of its 36 values; two attackers share them out in halves."""
    grey = task_of(DatasetInfo("made up", 10, (28, 28, 1), (0.0,), (1.0,)))
    attack, ctx = attacks.make(name, trigger="fdcr_code", poison_fraction=1.0), context(task=grey)
    own, ids = attack.init(ctx, KEY), jnp.arange(2, dtype=jnp.int32)
    given = Batch(jnp.zeros((2, 28, 28, 1)), ids, ids, jnp.ones(2, bool))
    shown = np.asarray(attack.backdoor(ctx, own, given).inputs)[0, :, :, 0]
    assert np.argwhere(shown).tolist() == [[row, column] for row in (0, 2) for column in (0, 1, 2, 4, 5, 6)]
    stamped = [
        np.asarray(attack.poison(ctx, own, given, jnp.int32(k), jnp.int32(0), KEY).inputs)[0, :, :, 0] for k in (1, 3)
    ]
    expected = [shown, shown] if name == "badnets" else [shown * (np.arange(28)[:, None] == row) for row in (0, 2)]
    np.testing.assert_array_equal(stamped, expected)


@pytest.mark.parametrize("position", [(0, 32, 0), (3, 0, 0), (0, -1, 0), (0, 0), (0, 0.5, 1)])
def test_a_position_outside_the_image_is_refused(position):
    with pytest.raises(ValueError, match=r"attack\.options\.positions"):
        attacks.make("badnets", positions=(position,)).init(context(), KEY)


@pytest.mark.parametrize("name", ["badnets", "dba"])
@pytest.mark.parametrize("positions", [(), ((0, 0),), ((0, 0.5, 1),), ((0, True, 1),), (5,)])
def test_a_trigger_that_no_image_can_have_is_refused_before_there_is_one(name, positions):
    with pytest.raises(ConfigError, match=r"^attack\.options\.positions"):
        attacks.make(name, positions=positions)
    with pytest.raises(ConfigError, match=r"^attack\.options\.positions"):
        resolve(small.config(attack__name=name, attack__options__positions=positions))


def test_stamp_blends_between_zero_and_one():
    trigger = triggers.Trigger(jnp.full((2, 2, 1), 0.25), jnp.full((2, 2, 1), 8.0))
    np.testing.assert_allclose(triggers.stamp(jnp.full((3, 2, 2, 1), 4.0), trigger), 5.0)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"'nope' is unknown: .*fedjax-spmc list attacks"):
        attacks.make("nope")
    with pytest.raises(ValueError, match="poison_fraction"):
        attacks.make("badnets", poison=1)
    with pytest.raises(ValueError, match="strength"):
        attacks.make(("badnets", "none"), strength=1)
    with pytest.raises(ValueError, match=r"poison_fraction = 1\.5"):
        attacks.make("badnets", poison_fraction=1.5)


def test_a_name_stands_once_and_one_part_trains():
    with pytest.raises(ValueError, match=r"attack\.name = badnets, badnets is not allowed"):
        attacks.make(("badnets", "badnets"))
    training = Attack(train=lambda *arguments: arguments)
    with pytest.raises(ValueError, match=r"attack\.name = a, b is not allowed: a and b each have train"):
        attacks.compose({"a": training, "b": training})
    attacks.compose({"a": training, "b": Attack(gradients=lambda *arguments: arguments)})


def test_an_option_of_one_part_wins():
    made = attacks.options_by_part(("badnets", "dba"), {"target_label": 3, "dba.target_label": 4})
    assert made == {"badnets": {"target_label": 3}, "dba": {"target_label": 4}}
    attack, ctx = attacks.make(("badnets", "dba"), **{"target_label": 3, "dba.target_label": 4}), context()
    own = attack.init(ctx, KEY)
    assert (int(own["badnets"].target), int(own["dba"].whole.target)) == (3, 4)
    assert (attack.backdoor(ctx, own, batch(3)).labels == 4).all(), "the last part's trigger is tested"


def test_features_are_what_the_last_layer_takes():
    for name, options in {"mlp": {}, "simple_cnn": {}, "resnet10": {"width": 4}}.items():
        model = models.make(name, num_classes=4, image_shape=(16, 16, 3), **options)

        @jax.jit
        def both(inputs, model=model):
            params, stats = model.init(KEY)
            found = (method(params, stats, inputs, False, KEY)[0] for method in (model.features, model.apply))
            return params, *found

        params, features, logits = both(jax.random.normal(KEY, (3, 16, 16, 3)))
        weight, bias = jax.tree.leaves(params)[-2:]
        ours = np.matmul(np.asarray(features), np.asarray(weight).T) + np.asarray(bias)[None]
        np.testing.assert_allclose(ours, logits, atol=1e-5)


def test_turns_and_every():
    """FLIP's single shot: rounds 12, 14, 16 and 18, one attacker after another."""
    malicious = jnp.array([True, False, True, False, True, True])
    roster = Roster(malicious, jnp.int32(12), jnp.int32(18), jnp.int32(0), every=2, turns=1)
    attacking = {
        now: np.flatnonzero(roster._replace(round=jnp.int32(now)).attacks_now(jnp.arange(6))).tolist()
        for now in range(11, 22)
    }
    assert attacking == {now: [] for now in range(11, 22)} | {12: [0], 14: [2], 16: [4], 18: [5]}
    together = roster._replace(turns=0, round=jnp.int32(14)).attacks_now(jnp.arange(6))
    np.testing.assert_array_equal(together, malicious)
