"""What every registered attack must do, and BadNets in particular."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks
from fedjax_spmc.attacks import triggers
from fedjax_spmc.types import AttackContext, Context, Roster
from tests.uploads import random_upload

NAMES = attacks.names()
SHAPE = (32, 32, 3)


def attack_context(malicious=(False, True, False, True), first=0, last=10):
    roster = Roster(jnp.array(malicious), jnp.int32(first), jnp.int32(last), jnp.int32(0))
    return AttackContext(roster, SHAPE, 10, jnp.array([0.5, 0.4, 0.3]), jnp.array([0.2, 0.25, 0.3]))


def at_round(attack, state, round_index):
    ctx = Context(None, None, None, {}, 1, jnp.int32(round_index))  # type: ignore[arg-type]
    return attack.begin_round(ctx, state, None, jax.random.key(0))


def batch(seed=0, size=64):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.normal(size=(size, *SHAPE)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, 10, size), jnp.int32), jnp.arange(size, dtype=jnp.int32)


@pytest.fixture(params=[*NAMES, ("badnets", "none")], ids=str)
def attack(request):
    return attacks.make(request.param)


def test_benign_clients_are_left_alone(attack):
    state = at_round(attack, attack.init(attack_context(), jax.random.key(1)), 0)
    images, labels, ids = batch()
    for client in (0, 2):
        poisoned, changed = attack.poison(state, images, labels, ids, jnp.int32(client), jax.random.key(0))
        np.testing.assert_array_equal(poisoned, images)
        np.testing.assert_array_equal(changed, labels)
        assert not attack.freezes(state, jnp.int32(client))


def test_outside_its_schedule_an_attack_does_nothing(attack):
    state = attack.init(attack_context(first=2, last=3), jax.random.key(1))
    images, labels, ids = batch()
    for round_index in (0, 1, 4):
        now = at_round(attack, state, round_index)
        poisoned, changed = attack.poison(now, images, labels, ids, jnp.int32(1), jax.random.key(0))
        np.testing.assert_array_equal(poisoned, images)
        np.testing.assert_array_equal(changed, labels)


def test_craft_returns_the_uploads_shape(attack):
    state = at_round(attack, attack.init(attack_context(), jax.random.key(1)), 0)
    upload = random_upload(4)
    crafted = attack.craft(state, upload, jax.random.key(0))
    assert jax.tree.map(jnp.shape, crafted) == jax.tree.map(jnp.shape, upload.client_params)


def test_jit_and_vmap_over_clients(attack):
    state = at_round(attack, attack.init(attack_context(), jax.random.key(1)), 0)
    images, labels, ids = batch(size=16)

    def poison(client):
        return attack.poison(state, images, labels, ids, client, jax.random.key(0))

    together = jax.jit(jax.vmap(poison))(jnp.arange(4))
    for client in range(4):
        alone = poison(jnp.int32(client))
        np.testing.assert_allclose(together[0][client], alone[0], atol=1e-6)
        np.testing.assert_array_equal(together[1][client], alone[1])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
def test_every_attack_changes_something(name):
    attack = attacks.make(name)
    state = at_round(attack, attack.init(attack_context(), jax.random.key(1)), 0)
    images, labels, ids = batch()
    poisoned, _ = attack.poison(state, images, labels, ids, jnp.int32(1), jax.random.key(0))
    crafted = attack.craft(state, random_upload(4), jax.random.key(0))
    assert not np.array_equal(poisoned, images) or not np.array_equal(
        crafted["head"], random_upload(4).client_params["head"]
    )


def test_badnets_poisons_its_share_once_for_all_rounds_and_clients():
    attack = attacks.make("badnets", poison_fraction=0.3)
    state = attack.init(attack_context(), jax.random.key(1))
    images, labels, ids = batch(size=2000)
    first = attack.poison(at_round(attack, state, 0), images, labels, ids, jnp.int32(1), jax.random.key(0))[0]
    later = attack.poison(at_round(attack, state, 5), images, labels, ids, jnp.int32(3), jax.random.key(9))[0]
    np.testing.assert_array_equal(first, later)
    changed = np.any(np.asarray(first) != np.asarray(images), axis=(1, 2, 3))
    assert abs(changed.mean() - 0.3) < 0.04
    other = attacks.make("badnets", poison_fraction=0.3).init(attack_context(), jax.random.key(2))
    again = attack.poison(at_round(attack, other, 0), images, labels, ids, jnp.int32(1), jax.random.key(0))[0]
    assert not np.array_equal(first, again)


def test_raw_space_equals_stamping_before_the_normalisation():
    ctx = attack_context()
    attack = attacks.make("badnets", trigger="fdcr_paper", poison_fraction=1.0)
    state = at_round(attack, attack.init(ctx, jax.random.key(0)), 0)
    raw = np.random.default_rng(0).uniform(size=(5, *SHAPE)).astype(np.float32)

    def normalise(pixels):
        return (pixels - np.asarray(ctx.mean)) / np.asarray(ctx.std)

    stamped = raw.copy()
    stamped[:, :2, :6, :] = 1.0
    labels = jnp.arange(5, dtype=jnp.int32)
    ours, targets = attack.poison(state, jnp.asarray(normalise(raw)), labels, labels, jnp.int32(1), jax.random.key(0))
    np.testing.assert_allclose(ours, normalise(stamped), atol=1e-6)
    np.testing.assert_array_equal(targets, 2)


def test_presets_are_the_published_triggers():
    paper, code = triggers.PRESETS["fdcr_paper"], triggers.PRESETS["spmc_code"]
    assert set(paper.positions) == {(c, r, x) for c in range(3) for r in range(2) for x in range(6)}
    assert set(code.positions) == {(0, r, x) for r in (0, 2) for x in (0, 1, 2, 4, 5, 6)}
    assert (paper.space, code.space) == ("raw", "normalized")


def test_backdoor_stamps_every_test_image_and_keeps_the_rest():
    attack = attacks.make("badnets", trigger="spmc_code")
    state = attack.init(attack_context(malicious=(False,) * 4), jax.random.key(0))
    images, labels, _ = batch(size=7)
    stamped, targets = attack.backdoor(state, images, labels)
    different = np.asarray(stamped) != np.asarray(images)
    assert different.any(axis=0).sum() == 12
    np.testing.assert_array_equal(np.asarray(stamped)[:, 0, [0, 1, 2, 4, 5, 6], 0], 1.0)
    np.testing.assert_array_equal(targets, 2)


def test_a_trigger_can_be_spelt_out():
    options = {"positions": ((0, 31, 31), (2, 0, 5)), "value": -0.5, "space": "normalized"}
    attack = attacks.make("badnets", poison_fraction=1.0, **options)
    state = at_round(attack, attack.init(attack_context(), jax.random.key(0)), 0)
    images, labels, ids = batch(size=3)
    stamped, _ = attack.poison(state, images, labels, ids, jnp.int32(3), jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(stamped)[:, 31, 31, 0], -0.5)
    np.testing.assert_array_equal(np.asarray(stamped)[:, 0, 5, 2], -0.5)
    assert (np.asarray(stamped) != np.asarray(images)).sum() == 6


@pytest.mark.parametrize("position", [(0, 32, 0), (3, 0, 0), (0, -1, 0), (0, 0), (0, 0.5, 1)])
def test_a_position_outside_the_image_is_refused(position):
    attack = attacks.make("badnets", positions=(position,))
    with pytest.raises(ValueError, match=r"attack\.options\.positions"):
        attack.init(attack_context(), jax.random.key(0))


def test_stamp_blends_between_zero_and_one():
    trigger = triggers.Trigger(jnp.full((2, 2, 1), 0.25), jnp.full((2, 2, 1), 8.0))
    np.testing.assert_allclose(triggers.stamp(jnp.full((3, 2, 2, 1), 4.0), trigger), 5.0)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match="badnets"):
        attacks.make("nope")
    with pytest.raises(ValueError, match="poison_fraction"):
        attacks.make("badnets", poison=1)
    with pytest.raises(ValueError, match="strength"):
        attacks.make(("badnets", "none"), strength=1)
    with pytest.raises(ValueError, match=r"poison_fraction = 1\.5"):
        attacks.make("badnets", poison_fraction=1.5)
