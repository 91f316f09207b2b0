"""`chameleon`: the contrastive loss, what each of the two stages moves, and what it refuses."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks, trees
from fedjax_spmc import config as configs
from fedjax_spmc.attacking import Attackers
from fedjax_spmc.attacks.chameleon import contrastive_loss, cut, require_features, supervised_contrast
from fedjax_spmc.data.pipeline import in_order
from fedjax_spmc.experiment import build
from fedjax_spmc.training import Hooks
from fedjax_spmc.types import AttackContext, Variables
from tests import small
from tests.uploads import random_upload, server_data

pytestmark = pytest.mark.usefixtures("small_cache")
KEY = jax.random.key(0)
PLAIN = {"contrastive_epochs": 0, "freeze": False, "radius": None, "stop_loss": None}


def by_hand(features, labels, counted, weights, temperature):
    """The formula, pair by pair."""
    rows, total = np.flatnonzero(counted), 0.0
    for i in rows:
        others = [k for k in rows if k != i]
        alike = [j for j in others if labels[j] == labels[i]]
        for j in alike:
            norm = np.log(sum(np.exp(features[i] @ features[k] / temperature) for k in others))
            total += weights[i] / len(alike) * (norm - features[i] @ features[j] / temperature)
    return total / len(rows)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss(seed):
    """Some rows are not there, some labels stand alone; at the published temperature and at another."""
    rng = np.random.default_rng(seed)
    count = 12 + seed
    features = rng.normal(size=(count, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    labels, counted = rng.integers(0, 6, count), rng.random(count) < (0.8 if seed else 1.0)
    weights = np.where(labels == 2, 3.0, 1.0)
    temperature = (0.07, 0.5)[seed % 2]
    ours = jax.jit(contrastive_loss)(jnp.float32(features), labels, counted, jnp.float32(weights), temperature)
    np.testing.assert_allclose(ours, by_hand(features, labels, counted, weights, temperature), rtol=2e-5)


def test_where_there_is_nothing_to_contrast_the_loss_is_0():
    """A single row, none, and labels that all differ; with gradients that are finite."""
    for labels, counted in (([1], [True]), ([1, 2], [False] * 2), ([0, 1, 2], [True] * 3)):
        n = len(labels)
        given = jnp.asarray(labels), jnp.asarray(counted), jnp.ones(n), 0.07
        found = jax.jit(jax.value_and_grad(lambda x, given=given: contrastive_loss(x, *given)))
        value, grad = found(np.full((n, 2), 0.5**0.5, np.float32))
        assert float(value) == 0.0
        assert (grad == 0).all()


def test_features_without_length_have_a_gradient():
    """A network whose hidden layer is dead gives features of length 0."""
    given = server_data()
    params = given.model.init(KEY).params
    leaves, structure = jax.tree.flatten(params)
    dead = jax.tree.unflatten(structure, [jnp.zeros_like(leaf) if i < 2 else leaf for i, leaf in enumerate(leaves)])
    ctx = AttackContext(model=given.model, backdoor=lambda batch: batch._replace(labels=jnp.ones_like(batch.labels)))
    rule = supervised_contrast(ctx, 0.07, 2.0)
    batch = in_order(given.inputs, given.labels, 16).gather(jnp.int32(0), KEY)
    for some in (params, dead):
        grads, _, metrics = jax.jit(lambda p: rule.gradients(None, p, {}, batch, (), KEY))(some)
        chex.assert_tree_all_finite((grads, metrics))
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads)[-2:])


@pytest.mark.parametrize(("threshold", "expected"), [(None, 2.0), (3.0, 2.0), (100.0, None)])
def test_updates_are_cut_before_the_lists_own_hook(threshold, expected):
    upload = random_upload(2)
    center, far = upload.global_params, jax.tree.map(lambda g: g + 1.0, upload.global_params)
    ctx = AttackContext(variables=Variables(center, {}))
    hooks = cut(ctx, Hooks(after_step=lambda params, step: jax.tree.map(lambda x: x + step, params)), 2.0, threshold)
    after = jax.tree.map(lambda x: x - 3, hooks.after_step(far, jnp.float32(3)))
    moved = jax.tree.map(lambda a, b: (a - b)[None], after, center)
    whole = float(np.sqrt(sum(leaf.size for leaf in jax.tree.leaves(center))))
    np.testing.assert_allclose(trees.client_norm(moved)[0], whole if expected is None else expected, rtol=1e-5)


# In a real round: clients 2 and 3 of four attack.


@functools.cache
def built() -> Any:
    fields = {"attack__name": ("badnets", "chameleon"), "attack__malicious_fraction": 0.5}
    return build(configs.resolve(small.config(1, "fedavg", **fields, attack__local__epochs=2)))


@functools.cache
def trainings(*names: str, together: bool = False, **options: Any) -> Any:
    """What all clients train of one seed, and how many steps."""
    result = small.trainings_under(built(), names, together, options)
    return result.variables.params, result.steps


def moved(params: Any) -> np.ndarray:
    """[K, L]: lengths of the clients' updates, tensor by tensor."""
    start = jax.tree.leaves(built().state.variables.params)
    pairs = zip(jax.tree.leaves(params), start, strict=True)
    return np.stack([np.linalg.norm(np.reshape(w - g[None], (4, -1)), axis=1) for w, g in pairs], axis=1)


def test_with_nothing_of_its_own_it_is_plain_training_bit_for_bit():
    chex.assert_trees_all_equal(trainings("badnets"), trainings("badnets", "chameleon", **PLAIN))


def test_the_second_stage_moves_the_last_layer_alone():
    bad = built().malicious
    lengths = moved(trainings("badnets", "chameleon", **PLAIN | {"freeze": True})[0])
    assert (lengths[bad][:, :-2] == 0).all()
    assert (lengths[bad][:, -2:] > 0).all()
    assert (lengths[~bad] > 0).all()


def test_the_first_stage_moves_the_rest_and_all_stay_in_the_ball():
    bad, radius = built().malicious, 0.05
    options = PLAIN | {"freeze": True, "contrastive_epochs": 2, "contrastive_rate": 0.1, "radius": radius}
    params, steps = trainings("badnets", "chameleon", **options)
    assert (moved(params)[bad] > 0).all()
    lengths = np.linalg.norm(moved(params), axis=1)
    assert (lengths[bad] <= radius * (1 + 1e-5)).all()
    assert (lengths[~bad] > radius).any()
    np.testing.assert_array_equal(steps, trainings("badnets")[1])
    at_once, same = trainings("badnets", "chameleon", together=True, **options)
    np.testing.assert_array_equal(same, steps)
    chex.assert_trees_all_close(at_once, params, atol=1e-5)


def test_poisoned_examples_come_to_look_like_those_of_the_wanted_class():
    """The contrastive loss of an attacker's first poisoned batch falls, from a first stage alone."""
    one = built()
    options = PLAIN | {"contrastive_epochs": 8, "contrastive_rate": 0.1, "freeze": True, "temperature": 0.5}
    params, _ = trainings("badnets", "chameleon", **options)
    federation = one.federation._replace(attack=attacks.make(("badnets", "chameleon")))
    attackers = Attackers(federation, one.arrays, one.state, one.key, jnp.arange(4))

    @jax.jit
    def loss(model: Any) -> Any:
        own, client = one.state.attack, jnp.int32(2)
        data = attackers.poisoned_data(own, client)
        ctx = attackers.context(own, client, data.num_batches)
        batches = [data.gather(jnp.int32(i), KEY) for i in range(3)]
        rule = supervised_contrast(ctx, 0.5, 2.0)
        return sum(rule.gradients(ctx, model, {}, batch, (), KEY)[2]["loss"] for batch in batches)

    assert float(loss(jax.tree.map(lambda x: x[2], params))) < 0.9 * float(loss(one.state.variables.params))


def test_what_it_cannot_do_is_refused():
    for options, words in (
        ({"radius": None, "threshold": 1.0}, "threshold = 1.0 is not allowed with radius = None"),
        ({"stop_loss": None, "keep_accuracy": False}, "keep_accuracy = False is not allowed with stop_loss = None"),
        ({"contrastive_milestones": (2, -1)}, r"contrastive_milestones = \(2, -1\) is not allowed: it must be a list"),
    ):
        with pytest.raises(ValueError, match=words):
            attacks.make("chameleon", **options)
    with pytest.raises(ValueError, match="chameleon is not allowed without an attack that has a backdoor"):
        trainings("chameleon")
    everywhere = in_order(jnp.zeros((4, 3)), jnp.zeros((4, 3), jnp.int32), 2)
    with pytest.raises(ValueError, match="data that ask for a label at every place"):
        require_features(AttackContext(model=server_data().model), everywhere, KEY)
    headless = AttackContext(model=server_data().model._replace(features=None))
    with pytest.raises(ValueError, match="a network that does not end in a linear layer with a bias"):
        require_features(headless, in_order(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), 2), KEY)
