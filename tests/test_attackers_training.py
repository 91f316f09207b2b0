"""The ball of `pgd`, the two halves of `mixed_batches`, the scale of `model_replacement`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, attacks, trees
from fedjax_spmc.attacks.mixed_batches import poisoned_half, side_by_side
from fedjax_spmc.attacks.pgd import project
from fedjax_spmc.data.pipeline import in_order
from fedjax_spmc.training import Hooks
from fedjax_spmc.types import AttackContext, Roster, Variables
from tests.uploads import random_upload

KEY = jax.random.key(0)
UPLOAD = random_upload(4)
CENTER = UPLOAD.global_params


def context(**fields) -> AttackContext:
    """Four clients, of whom 1 and 3 attack."""
    roster = Roster(jnp.array([False, True, False, True]), jnp.int32(0), jnp.int32(9), jnp.int32(0))
    ids = jnp.arange(4, dtype=jnp.int32)
    ctx = AttackContext(variables=Variables(CENTER, {}), roster=roster, client_ids=ids, num_batches=jnp.int32(3))
    return ctx._replace(**fields)


def distance(models, norm="l2") -> np.ndarray:
    pairs = zip(jax.tree.leaves(models), jax.tree.leaves(CENTER), strict=True)
    moved = np.concatenate([(np.asarray(w) - np.asarray(g)[None]).reshape(len(w), -1) for w, g in pairs], axis=1)
    return np.linalg.norm(moved, axis=1) if norm == "l2" else np.abs(moved).max(axis=1)


def crafted(attack, ctx, upload):
    return jax.jit(lambda upload: attack.craft(ctx, attack.init(ctx, KEY), upload, KEY)[0])(upload)


# PGD.


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_models_are_drawn_into_the_ball_and_those_inside_stay(norm):
    lengths = distance(UPLOAD.client_params, norm)
    radius = float(np.sort(lengths)[1:3].mean())
    within = jax.jit(lambda models: project(models, CENTER, radius, norm))
    inside = within(UPLOAD.client_params)
    np.testing.assert_allclose(distance(inside, norm), np.minimum(lengths, radius), rtol=1e-5)
    for old, new in zip(jax.tree.leaves(UPLOAD.client_params), jax.tree.leaves(inside), strict=True):
        np.testing.assert_array_equal(np.asarray(old)[lengths < radius], np.asarray(new)[lengths < radius])
    assert (distance(within(trees.broadcast(CENTER, 4))) == 0).all()


@pytest.mark.parametrize(
    ("options", "projected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"every": 2}, [0, 2, 3, 5]),
        ({"every": 5}, [0, 2, 3, 5]),
        ({"when": "epoch"}, [2, 5]),
    ],
    ids=str,
)
def test_when_it_projects(options, projected):
    """Two epochs of three steps, each of which goes far out."""
    attack, ctx = attacks.make("pgd", radius=0.5, **options), context()
    far = jax.tree.map(lambda g: g + 1.0, CENTER)

    @jax.jit
    def after(step):
        return attack.after_step(ctx, attack.init(ctx, KEY), far, jnp.int32(1), step)

    lengths = [float(distance(jax.tree.map(lambda x: x[None], after(jnp.int32(step))))[0]) for step in range(6)]
    assert [step for step, length in enumerate(lengths) if length < 0.51] == projected
    assert attack.craft is None


def test_per_round_projects_the_upload_alone():
    attack, ctx = attacks.make("pgd", radius=0.5, when="round"), context()
    assert attack.after_step is None
    sent = crafted(attack, ctx, UPLOAD)
    lengths, before = distance(sent.client_params), distance(UPLOAD.client_params)
    np.testing.assert_allclose(lengths[[1, 3]], 0.5, rtol=1e-5)
    np.testing.assert_array_equal(lengths[[0, 2]], before[[0, 2]])
    with pytest.raises(ValueError, match="every = 3 is not allowed with when = 'round'"):
        attacks.make("pgd", when="round", every=3)


# Model replacement.


@pytest.mark.parametrize("weights", ["uniform", "size"])
@pytest.mark.parametrize("server_rate", [1.0, 0.1])
def test_under_the_mean_that_it_expects_the_attackers_model_stays(weights, server_rate):
    """The others send the broadcast model back: the new model is the mean of the attackers' models."""
    ctx = context(server_learning_rate=server_rate)
    attacking = jnp.array([False, True, False, True])
    rows = trees.where_rows(attacking, UPLOAD.client_params, trees.broadcast(CENTER, 4))
    upload = UPLOAD._replace(client_params=rows, client_stats={"mean": jnp.arange(4.0)})
    ctx = ctx._replace(variables=Variables(CENTER, {"mean": jnp.float32(0.5)}))
    attack = attacks.make("model_replacement", weights=weights)
    sent = crafted(attack, ctx, upload)
    rule = aggregators.make("mean", weights=weights)
    params, verdict, _ = jax.jit(rule.aggregate)(sent, (), KEY)
    for trio in zip(*(jax.tree.leaves(x) for x in (CENTER, params, rows)), strict=True):
        center, new, own = map(np.asarray, trio)
        np.testing.assert_allclose(center + server_rate * (new - center), own[[1, 3]].mean(axis=0), atol=2e-5)
    moved = np.asarray(sent.client_stats["mean"])[[1, 3]] - 0.5
    scale = moved / (np.array([1.0, 3.0]) - 0.5)
    np.testing.assert_allclose(np.asarray(verdict.weights)[[1, 3]] * scale * server_rate, 0.5, rtol=1e-5)


def test_a_given_factor_and_statistics_left_alone():
    attack, ctx = attacks.make("model_replacement", factor=3.0, statistics=False), context()
    upload = UPLOAD._replace(client_stats={"mean": jnp.arange(4.0)})
    sent = crafted(attack, ctx, upload)
    np.testing.assert_allclose(distance(sent.client_params)[1], 3 * distance(UPLOAD.client_params)[1], rtol=1e-5)
    np.testing.assert_array_equal(sent.client_stats["mean"], jnp.arange(4.0))
    with pytest.raises(ValueError, match="weights = 'size' is not allowed with a factor that is given"):
        attacks.make("model_replacement", factor=3.0, weights="size")


# Mixed batches.

SIZES = (9, 4, 2, 12)
"""Examples of clients 0 to 3; example i of client c has the label c and the input 100 c + i."""


def data_of(client_id, batch: int = 3):
    """A client's examples in batches of 3, in the order stored."""
    sizes = jnp.asarray(SIZES)
    rows = in_order(jnp.arange(12.0)[:, None], jnp.zeros(12, jnp.int32), batch)

    def gather(step, key):
        nb = -(-sizes[client_id] // batch)
        made = rows.gather(step % nb, key)
        valid = made.sample_ids < sizes[client_id]
        labels = jnp.where(valid, client_id, -1)
        return made._replace(inputs=100 * client_id + made.inputs, labels=labels, valid=valid)

    def take(positions, key):
        made = rows.take(positions, key)
        return made._replace(inputs=100 * client_id + made.inputs, labels=jnp.full(positions.shape, client_id))

    return rows._replace(
        gather=gather, take=take, num_batches=-(-sizes[client_id] // batch), client_id=client_id, size=sizes[client_id]
    )


def test_halves_go_side_by_side_until_the_shorter_ends():
    """Client 0 has three poisoned batches; beside it clients of two, one and four batches."""
    ctx, hooks = context(clean_data=data_of), Hooks(rate=lambda step: step)

    @jax.jit
    def gather(step):
        first = poisoned_half(data_of(jnp.int32(0)), None, None, KEY)
        mixed, told = side_by_side(ctx, first, jnp.array([1, 2, 3]), (3, 2), 9, hooks)
        return mixed.gather(step, KEY), mixed.num_batches, told.rate(step)

    assert int(gather(jnp.int32(0))[1]) == 2 + 1 + 3
    told = []
    expected = [(0, 1, 0), (1, 1, 1), (0, 2, 0), (0, 3, 0), (1, 3, 1), (2, 3, 2)]
    for step, (place, client, number) in enumerate(expected):
        batch, _, told_step = gather(jnp.int32(step))
        rows = [3 * place + i for i in range(3)] + [100 * client + 3 * number + i for i in range(3)]
        valid = np.asarray(rows) % 100 < np.repeat([SIZES[0], SIZES[client]], 3)
        np.testing.assert_array_equal(batch.valid, valid)
        np.testing.assert_array_equal(np.asarray(batch.inputs)[valid, 0], np.asarray(rows)[valid])
        wanted = np.where(valid, np.repeat([0, 1 if client == 1 else 9], 3), -1)
        np.testing.assert_array_equal(batch.labels, wanted)
        told.append(int(told_step))
    # Three steps to an epoch for the hooks, of which the last one always is the last.
    assert told == [0, 2, 5, 6, 7, 8]


def test_clean_rows_get_the_label_that_the_lists_backdoor_wants():
    """So that an attack of any target relabels as it poisons; without one somebody must say what label."""

    def backdoor(batch):
        return batch._replace(labels=jnp.where(batch.labels >= 0, 5, -1))

    first = poisoned_half(data_of(jnp.int32(0)), None, None, KEY)
    ctx = context(clean_data=data_of, backdoor=backdoor)
    mixed, _ = side_by_side(ctx, first, jnp.array([1]), (1,), None, Hooks())
    np.testing.assert_array_equal(jax.jit(mixed.gather)(jnp.int32(0), KEY).labels, [0, 0, 0, 5, 5, 5])
    attack = attacks.registry.attacks.make("mixed_batches", relabel=(1,))
    with pytest.raises(
        ValueError, match=r"relabel = \(1,\) is not allowed with attack\.target_label = None and no attack"
    ):
        attack.train(None, context(), (), None, None, None, jnp.int32(0), KEY, Hooks())


def test_hooks_are_asked_for_epochs_of_the_length_that_they_are_told():
    """Client 3 has four poisoned batches; beside it clients of three and of one."""
    hooks = Hooks(sized=lambda num_batches: Hooks(rate=lambda step: (num_batches, step // num_batches)))

    @jax.jit
    def rates(steps):
        first = poisoned_half(data_of(jnp.int32(3)), None, None, KEY)
        _, told = side_by_side(context(clean_data=data_of), first, jnp.array([0, 2]), (), 9, hooks)
        return jax.vmap(told.rate)(steps)

    lengths, epochs = rates(jnp.arange(4))
    assert (lengths.tolist(), epochs.tolist()) == ([4, 4, 4, 4], [0, 0, 0, 1])


def test_what_is_no_label_is_refused():
    with pytest.raises(
        ValueError, match=r"^attack\.options\.relabel = \('seven',\) is not allowed: it must be a list of"
    ):
        attacks.make("mixed_batches", relabel=("seven",))


def test_windows_of_poisoned_rows_wrap_around_and_are_whole():
    @jax.jit
    def run():
        half = poisoned_half(data_of(jnp.int32(1)), 7, 2, KEY)
        nobody = data_of(jnp.int32(3))._replace(num_batches=jnp.int32(0))
        once = poisoned_half(data_of(jnp.int32(3)), 5, None, KEY)
        counts = [half.num_batches, once.num_batches, poisoned_half(nobody, 5, 4, KEY).num_batches]
        return counts, jax.vmap(lambda step: half.gather(step, KEY))(jnp.arange(4))

    counts, seen = run()
    assert [int(count) for count in counts] == [2, 3, 0]
    assert seen.valid.all()
    for places in np.asarray(seen.inputs)[:, :, 0].reshape(2, 14).astype(int) - 100:
        np.testing.assert_array_equal(places, (places[0] + np.arange(14)) % 4)
