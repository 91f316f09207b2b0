"""Poisoned training data: blended patterns and flipped labels, by slow statements in NumPy, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks, evaluate, experiment, sweep
from fedjax_spmc import config as configs
from fedjax_spmc.attacks.label_flip import transitions
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.task import task_of
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.report import images, read
from fedjax_spmc.types import Batch
from tests import small
from tests.test_contract_attacks import KEY, MEAN, STD, batch, context

STEP = jnp.int32(0)


def poisoned(name: Any, given: Batch, client: int = 1, seed: int = 1, ctx: Any = None, **options: Any) -> Batch:
    """What client 1 or 3, which attack, make of a batch in any step."""
    attack, ctx = attacks.make(name, **options), context(name=name) if ctx is None else ctx
    return attack.poison(ctx, attack.init(ctx, jax.random.key(seed)), given, jnp.int32(client), STEP, KEY)


def shown(name: Any, given: Batch, ctx: Any = None, **options: Any) -> Batch:
    attack, ctx = attacks.make(name, **options), context(name=name) if ctx is None else ctx
    return attack.backdoor(ctx, attack.init(ctx, KEY), given)


# Blended.


def test_blended_mixes_one_image_of_noise_into_pixels():
    """Of pixels in [0, 1], whatever the normalisation: black shows ratio k, and white 1 - ratio more."""
    mean, std = (np.asarray(one, np.float32) for one in (MEAN, STD))
    raw = np.stack([np.zeros((32, 32, 3)), np.ones((32, 32, 3)), np.full((32, 32, 3), 0.5)]).astype(np.float32)
    given = batch(3)._replace(inputs=jnp.asarray((raw - mean) / std))

    def pixels(made):
        return np.asarray(made.inputs) * std + mean

    made = pixels(poisoned("blended", given, poison_fraction=1.0, ratio=0.25))
    noise = made[0] / 0.25
    assert noise.min() > -1e-5
    assert noise.max() < 1 + 1e-5
    assert abs(noise.mean() - 0.5) < 0.02
    assert abs(noise.std() - 12**-0.5) < 0.02
    np.testing.assert_allclose(made, 0.25 * noise[None] + 0.75 * raw, atol=1e-6)
    for client, seed, same in ((3, 1, True), (1, 2, False)):
        other = pixels(poisoned("blended", given, client, seed, poison_fraction=1.0, ratio=0.25))
        assert np.allclose(other, made, atol=1e-6) == same, "shared by the attackers, drawn by the seed"
    for ratio, options in ((0.25, {}), (0.75, {"test_ratio": 0.75}), (0.0, {"test_ratio": 0.0})):
        tested = pixels(shown("blended", given, ratio=0.25, **options))
        np.testing.assert_allclose(tested, ratio * noise[None] + (1 - ratio) * raw, atol=1e-6)


def test_blended_poisons_its_share_and_takes_arrays():
    given = batch(2000)
    made = poisoned("blended", given, poison_fraction=jnp.float32(0.3), ratio=jnp.float32(0.1))
    changed = np.any(np.asarray(made.inputs) != np.asarray(given.inputs), axis=(1, 2, 3))
    assert abs(changed.mean() - 0.3) < 0.04
    np.testing.assert_array_equal(made.labels, np.where(changed, 2, given.labels))


def test_blended_fits_grey_images_and_no_texts():
    grey = context(task=task_of(DatasetInfo("made up", 10, (8, 8, 1), (0.0,), (1.0,))))
    given = Batch(jnp.zeros((2, 8, 8, 1)), jnp.arange(2), jnp.arange(2), jnp.ones(2, bool))
    assert len(np.unique(shown("blended", given, grey).inputs[0])) == 64
    with pytest.raises(ConfigError, match=r"^attack\.name = 'blended' is not allowed: inputs of shape \(12,\)"):
        attacks.make("blended").init(context(name="prefix"), KEY)


# Label flips.

LABELS = np.arange(10)
EXPECTED = {
    "source": np.array([0, 1, 2, 3, 4, 3, 6, 7, 8, 9]),
    "all": np.full(10, 3),
    "pairs": (LABELS + 1) % 10,
    "reverse": 9 - LABELS,
}


@pytest.mark.parametrize("flip", EXPECTED)
def test_labels_become_what_they_should_and_inputs_stay(flip):
    given = batch(10)._replace(labels=jnp.asarray([*LABELS[:9], -1], jnp.int32))
    expected = [*EXPECTED[flip][:9], -1]
    made = poisoned("label_flip", given, flip=flip)
    np.testing.assert_array_equal(made.labels, expected)
    tested = shown("label_flip", given, flip=flip)
    wanted = np.where(LABELS == 5, 3, -1) if flip == "source" else np.array(expected)
    np.testing.assert_array_equal(tested.labels, wanted)
    for one in (made, tested):
        np.testing.assert_array_equal(one.inputs, given.inputs)
        assert one.labels.dtype == jnp.int32
    np.testing.assert_array_equal(poisoned("label_flip", given, flip=flip, poison_fraction=0.0).labels, given.labels)


def test_other_classes_can_be_given():
    given = batch(10)._replace(labels=jnp.asarray(LABELS, jnp.int32))
    made = poisoned("label_flip", given, source_class=0, target_label=9)
    np.testing.assert_array_equal(made.labels, [9, *LABELS[1:]])
    made = poisoned("label_flip", given, flip="all", target_label=0)
    np.testing.assert_array_equal(made.labels, 0)


def test_symmetric_takes_every_other_label_equally_often_and_the_same_each_time():
    given = batch(4000)._replace(labels=jnp.full(4000, 4, jnp.int32))
    made = np.asarray(poisoned("label_flip", given, flip="symmetric").labels)
    counts = np.bincount(made, minlength=10)
    assert counts[4] == 0
    assert (abs(np.delete(counts, 4) / 4000 - 1 / 9) < 0.02).all()
    np.testing.assert_array_equal(poisoned("label_flip", given, 3, flip="symmetric").labels, made)
    assert (np.asarray(poisoned("label_flip", given, seed=2, flip="symmetric").labels) != made).any()
    half = np.asarray(poisoned("label_flip", given, flip="symmetric", poison_fraction=0.5).labels)
    assert abs((half != 4).mean() - 0.5) < 0.03
    np.testing.assert_array_equal(half[half != 4], made[half != 4])
    assert attacks.make("label_flip", flip="symmetric").backdoor is None


@pytest.mark.parametrize(("flip", "classes"), [("pairs", 1), ("symmetric", 1), ("symmetric", 2), ("reverse", 3)])
def test_a_matrix_of_few_classes(flip, classes):
    expected = {1: [[1.0]], 2: [[0.75, 0.25], [0.25, 0.75]], 3: [[0.75, 0, 0.25], [0, 1, 0], [0.25, 0, 0.75]]}[classes]
    np.testing.assert_allclose(transitions(flip, classes, 0.25), expected, atol=1e-12)


def test_labels_at_every_place_are_flipped_where_they_are_asked():
    ctx, given = context(name="sentence"), batch(6, name="sentence")
    given = given._replace(labels=given.labels.at[:, :3].set(-1))
    words = ctx.task.num_classes
    for flip in ("pairs", "symmetric"):
        made = np.asarray(poisoned("label_flip", given, ctx=ctx, flip=flip).labels)
        assert (made[:, :3] == -1).all()
        assert ((made[:, 3:] >= 0) & (made[:, 3:] < words) & (made[:, 3:] != np.asarray(given.labels)[:, 3:])).all()
    np.testing.assert_array_equal(
        poisoned("label_flip", given, ctx=ctx, flip="pairs").labels[:, 3:], (given.labels[:, 3:] + 1) % words
    )


def test_labels_behind_badnets_are_flipped_as_it_left_them():
    given = batch(64)
    both = poisoned(("badnets", "label_flip"), given, **{"label_flip.source_class": 2, "badnets.poison_fraction": 1.0})
    assert (np.asarray(both.labels) == 3).all()


@pytest.mark.parametrize("name", ["blended", "dba", "label_flip"])
def test_what_is_poisoned_beside_badnets_is_not_what_badnets_poisons(name):
    """On one seed; alone, and in a list, where the later part has the last word."""
    given = batch(64)
    plain, alone, both = (poisoned(names, given) for names in ("badnets", name, ("badnets", name)))
    for one, other in ((alone, plain), (both, plain), (both, alone)):
        assert any(not np.array_equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source_class": 3}, r"source_class = 3 is not allowed: .* than attack\.target_label = 3"),
        ({"target_label": 5}, r"source_class = 5 is not allowed: .* than attack\.target_label = 5"),
        ({"flip": "pairs", "source_class": 1}, r"source_class = 1 is not allowed with attack\.options\.flip = 'pairs'"),
        ({"flip": "all", "source_class": 1}, r"source_class = 1 is not allowed with attack\.options\.flip = 'all'"),
        ({"flip": "reverse", "target_label": 1}, r"target_label = 1 is not allowed with .*'reverse'.* must be None"),
        ({"flip": "both"}, r"flip = 'both' is not allowed: it must be one of source, all, pairs"),
        ({"poison_per_batch": 3, "poison_fraction": 0.3}, "poison_fraction = 0.3 is not allowed .* be None"),
    ],
)
def test_a_flip_that_cannot_be_is_one_sentence(options, words):
    with pytest.raises(ConfigError, match=words):
        attacks.make("label_flip", **options)
    fields = {
        ("attack__" if name in configs.ATTACK_FIELDS else "attack__options__") + name: value
        for name, value in options.items()
    }
    with pytest.raises(ConfigError, match=words):
        configs.resolve(small.config(attack__name="label_flip", **fields))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"source_class": 10}, r"source_class = 10 .* 0 to 9"), ({"target_label": 12}, r"target_label = 12 .* 0 to 9")],
)
def test_a_class_that_the_data_lack_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        attacks.make("label_flip", **options).init(context(), KEY)


# Runs.


@pytest.mark.slow
@pytest.mark.usefixtures("small_cache")
def test_a_run_resumes_sweeps_and_is_shown(tmp_path):
    """In one list: blended poisons, label flips are tested, and their fractions are swept."""
    names = ("blended", "label_flip")
    fields: dict[str, Any] = {"attack__name": names, "attack__options__source_class": 1}
    fields |= {"attack__poison_fraction": 0.5, "attack__options__ratio": 0.5}

    def config(rounds=2):
        return small.config(rounds, "fedavg", **fields)

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    result = experiment.run(config(), straight)
    experiment.run(config(1), broken)
    experiment.run(config(), broken)
    small.assert_same_run(straight, broken)
    line = result.history[-1]
    assert line["ASR"] == line["ASR_all"], "no example of the source class has the target's label"
    assert evaluate.evaluate(str(straight))["ASR"] == line["ASR"]
    (run,) = read.read([straight]).runs
    pictures = images.RunImages().test_images(run)
    assert not isinstance(pictures, str)
    assert pictures.caption == "the same: the attack has no trigger"
    grid = {"attack.poison_fraction": [0.25, 0.5], "attack.options.ratio": [0.5]}
    swept = sweep.Sweep(config(), grid)
    assert len(sweep.groups_of(sweep.expand(swept))) == 1
    rows = sweep.run(swept, tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished"] * 2
    cell = experiment.load(tmp_path / "sweep" / rows[1]["folder"])
    for a, b in zip(jax.tree.leaves(cell.variables), jax.tree.leaves(result.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
