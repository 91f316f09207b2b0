"""Every registered attack in a real round: it obeys its schedule, leaves benign clients alone, composes with BadNets,
and changes what attackers send. `test_attack_plugins.py` resumes and sweeps attacks, the built-in ones among them."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks, registry
from fedjax_spmc import config as configs
from fedjax_spmc.attacking import IN_TRAINING, Attackers
from fedjax_spmc.experiment import build
from fedjax_spmc.federation import initial_state
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.one_round import train
from fedjax_spmc.types import Upload
from tests import small
from tests.test_contract_attacks import ON_TOKENS

pytestmark = pytest.mark.usefixtures("small_cache")

FIRST = 1
"""The only attack round."""
NAMES = [name for name in attacks.names() if name not in {"none", *ON_TOKENS} and attacks.make(name).hold is None]
"""Attacks that hold pictures of their own cannot be played on made-up ones; those on texts have runs of their own."""
CRAFTING = [
    name
    for name in NAMES
    if all(getattr(attacks.make(name), slot) is None for slot in (*IN_TRAINING, "begin_round", "backdoor"))
]
"""Attacks that train as benign clients do: they share one program of training, and craft in one."""
FIELDS: dict[str, Any] = {"presets": "fedavg", "attack__malicious_fraction": 0.5}


@functools.cache
def built() -> Any:
    return build(configs.resolve(small.config(1, attack__name="badnets", **FIELDS)))


def with_badnets(name: str) -> tuple[str, ...]:
    return ("badnets",) if name == "badnets" else ("badnets", name)


def state_of(federation: Any, now: int, malicious: bool = True) -> Any:
    """Before round `now`, with the attack's first state; as if the model had moved before."""
    state, key = built().state, built().key
    roster = state.roster._replace(first=jnp.int32(FIRST), last=jnp.int32(FIRST))
    roster = roster._replace(malicious=roster.malicious & malicious)
    own = initial_state(federation, state.variables, 4, roster, purpose_key(key, "attack")).attack
    previous = jax.tree.map(lambda x: 0.9 * x, state.variables)
    return state._replace(roster=roster, attack=own, previous=previous, round=jnp.int32(now))


def crafted(federation: Any, state: Any, own: Any, trainings: Any) -> Any:
    """The models that are sent, [K, ...]."""
    one, trained = built(), trainings.trained
    upload = Upload(
        global_params=state.variables.params,
        client_params=trained.variables.params,
        num_examples=one.sizes[trainings.client_ids].astype(jnp.float32),
        participating=trained.steps > 0,
        client_ids=trainings.client_ids,
        steps=trained.steps,
        client_stats=trained.variables.stats,
        extras=trained.extras,
    )
    attackers = Attackers(federation, one.arrays, state, one.key, trainings.client_ids)
    return attackers.craft(own, upload)[0].client_params


@functools.cache
def trained_by_all() -> Any:
    federation = built().federation
    return jax.jit(lambda state: train(federation, built().arrays, built().sizes, state, built().key))


@functools.cache
def crafted_by_all() -> Any:
    """(state, trainings, options) -> name -> what is sent: all attacks that only craft in one program, behind BadNets.

    They are made inside of the program, with their array options as arguments, as a sweep makes them.
    """

    def craft(state, trainings, options):
        sent = {}
        for name in CRAFTING:
            attack = attacks.make(with_badnets(name), **options[name])
            federation = built().federation._replace(attack=attack)
            sent[name] = crafted(federation, state, state_of(federation, 0).attack, trainings)
        return sent

    return jax.jit(craft)


def array_options(name: str) -> dict[str, Any]:
    """The array options of an attack at their defaults, but for those that are None."""
    options = registry.attacks.options(name).values()
    arrays = {option.name: option.default for option in options if option.traced and option.default is not None}
    return {
        key: jnp.asarray(value, jnp.int32 if isinstance(value, int) else jnp.float32) for key, value in arrays.items()
    }


@functools.cache
def shared_round(now: int, malicious: bool) -> Any:
    """What the clients trained, and name -> what was sent, for all attacks that only craft."""
    state = state_of(built().federation, now, malicious)
    trainings = trained_by_all()(state)
    options = {name: array_options(name) for name in CRAFTING}
    return trainings.trained.variables.params, crafted_by_all()(state, trainings, options)


@functools.cache
def played(name: str) -> Any:
    """(now, whether anybody is malicious) -> what the clients trained and what was sent."""
    if name in CRAFTING:

        def shared(now: int, malicious: bool) -> Any:
            trained, sent = shared_round(now, malicious)
            return trained, sent[name]

        return shared
    federation = built().federation._replace(attack=attacks.make(with_badnets(name)))

    @jax.jit
    def play(state):
        trainings = train(federation, built().arrays, built().sizes, state, built().key)
        return trainings.trained.variables.params, crafted(federation, state, trainings.attack, trainings)

    return lambda now, malicious: play(state_of(federation, now, malicious))


def rows(tree: Any, mask: Any) -> list[np.ndarray]:
    return [np.asarray(leaf)[mask] for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_obeys_its_schedule_and_changes_what_attackers_send(name):
    """On one seed, beside BadNets: the same program with nobody malicious, before the schedule, and on it."""
    bad = built().malicious
    _, honest = played(name)(FIRST, False)
    _, before = played(name)(FIRST - 1, True)
    _, none_before = played(name)(FIRST - 1, False)
    trained, sent = played(name)(FIRST, True)
    chex.assert_trees_all_equal(before, none_before)
    chex.assert_trees_all_equal(rows(sent, ~bad), rows(honest, ~bad))
    for row in np.flatnonzero(bad):
        assert any(not np.array_equal(a[row], b[row]) for a, b in zip(*map(leaves_of, (sent, honest)), strict=True))
    chex.assert_tree_all_finite(sent)
    if name in CRAFTING:
        assert any(not np.array_equal(a, b) for a, b in zip(rows(sent, bad), rows(trained, bad), strict=True))


def leaves_of(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", CRAFTING)
def test_badnets_poisons_the_same_images_in_company(name):
    alone, together = attacks.make("badnets"), attacks.make(with_badnets(name))
    owns = [state_of(built().federation._replace(attack=one), 0).attack for one in (alone, together)]
    chex.assert_trees_all_equal(owns[0]["badnets"], owns[1]["badnets"])
    assert together.backdoor is not None
    assert together.poison is not None


def test_own_knowledge_behind_badnets_is_a_training_on_clean_data():
    """Two attackers of four: `ctx.benign` in a real round, without and with poisoned data beside it."""
    federation = built().federation._replace(attack=attacks.make(("badnets", "ipm"), knowledge="own", epsilon=1.0))
    state = state_of(federation, FIRST)
    trainings = trained_by_all()(state_of(built().federation, FIRST))
    sent = jax.jit(lambda state: crafted(federation, state, state.attack, trainings))(state)
    attackers = Attackers(federation, built().arrays, state, built().key, trainings.client_ids)
    clean = jax.jit(lambda ids: jax.lax.map(lambda one: attackers._benign(one).params, ids))(jnp.array([2, 3]))
    start = jax.tree.leaves(state.variables.params)
    for leaf, models, g in zip(jax.tree.leaves(sent), jax.tree.leaves(clean), start, strict=True):
        np.testing.assert_allclose(leaf[2], 2 * g - models.mean(axis=0), atol=1e-6)
    assert not attackers.context(state.attack).trained_clean
    alone = built().federation._replace(attack=attacks.make("ipm"))
    assert Attackers(alone, built().arrays, state, built().key, trainings.client_ids).context(()).trained_clean
