"""Backdoors without a trigger: whose pictures they are, what is trained on, what is tested, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks, data, evaluate, experiment, sweep
from fedjax_spmc import config as configs
from fedjax_spmc.attacks._own_examples import draw
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.task import task_of
from fedjax_spmc.errors import ConfigError, DataError
from fedjax_spmc.report import images, read
from fedjax_spmc.types import Attack, AttackContext, Batch
from tests import small

KEY = jax.random.key(5)
SHAPE = (4, 4, 3)
SIZE = 100
INFO = DatasetInfo("cifar10", 10, SHAPE, (0.0,) * 3, (1 / 255,) * 3, crop_padding=0, flip=True)


def numbered(count: int, first: int = 0) -> np.ndarray:
    """Pictures that each show their own number, left half black, so that a mirrored one is another."""
    pictures = np.zeros((count, *SHAPE), np.uint8)
    pictures[:, :, 2:] = (first + np.arange(count, dtype=np.uint8))[:, None, None, None]
    return pictures


def dataset_of(info: DatasetInfo = INFO, tests: int = 200) -> data.Dataset:
    """Test pictures 0, 1, 2, ... of the classes 0 to 9 in turn, training pictures from 100 on."""
    train, test = numbered(60, 100), numbered(tests)
    labels = [np.arange(n, dtype=np.int32) % 10 for n in (60, tests)]
    return data.Dataset(info, train, labels[0], train[:0], labels[0][:0], test, labels[1], "")


def prepared(name: str, dataset: data.Dataset = dataset_of(), **options: Any) -> tuple[Attack, AttackContext, Any]:
    """An attack alone, what it sees, and its state for one seed."""
    attack = attacks.registry.attacks.make(name, **options)
    held = attack.hold(dataset, lambda name, **options: dataset)
    ctx = AttackContext(task=task_of(dataset.info), held=jax.tree.map(jnp.asarray, held))
    return attack, ctx, attack.init(ctx, KEY)


def numbers(inputs: Any) -> list[int]:
    """What pictures show; -1 where one is mirrored."""
    pixels = np.rint(np.asarray(inputs))
    return [int(one[0, 3, 0]) if one[0, 3, 0] > 0 or not one.any() else -1 for one in pixels]


def batch_of(valid: int = SIZE) -> Batch:
    """Clean pictures that show 255, of class 3; all batches are of one size, so that little is compiled."""
    counted, ids = np.arange(SIZE) < valid, np.arange(SIZE, dtype=np.int32)
    labels = np.where(counted, 3, -1).astype(np.int32)
    return jax.tree.map(jnp.asarray, Batch(np.full((SIZE, *SHAPE), 255, np.float32), labels, ids, counted))


def poisoned(attack: Attack, ctx: AttackContext, own: Any, batch: Batch, client: int = 1, key: Any = KEY) -> Batch:
    return attack.poison(ctx, own, batch, jnp.int32(client), jnp.int32(0), key)


def shown_in_test(attack: Attack, ctx: AttackContext, own: Any) -> Batch:
    """All test examples as evaluation hands them to `backdoor`."""
    examples = attack.test(ctx.held)
    rows = jnp.arange(len(examples.labels), dtype=jnp.int32)
    return attack.backdoor(ctx, own, Batch(ctx.task.prepare(examples.inputs, None), examples.labels, rows, rows >= 0))


def test_semantic_parts_the_class_in_what_is_trained_on_and_what_is_tested():
    attack, ctx, own = prepared("semantic", draws=30)
    shown = shown_in_test(attack, ctx, own)
    trained = set(numbers(poisoned(attack, ctx, own, batch_of()).inputs)) - {255}
    assert all(n % 10 == 5 for n in trained | set(numbers(shown.inputs)))
    assert trained | set(numbers(shown.inputs)) == set(range(5, 200, 10))
    assert not trained & set(numbers(shown.inputs))
    assert len(shown.labels) == 10
    assert (np.asarray(shown.labels) == 9).all()
    other = attack.init(ctx, jax.random.key(6))
    assert set(numbers(shown_in_test(attack, ctx, other).inputs)) != set(numbers(shown.inputs)), "the seed parts them"


def test_semantic_as_the_code_tests_on_its_draws_as_often_as_they_were_drawn():
    """512 draws, 64 at a time without replacement, of 250 pictures."""
    attack, ctx, own = prepared(
        "semantic", dataset_of(tests=250)._replace(test_labels=np.full(250, 5, np.int32)), disjoint=False
    )
    shown = numbers(shown_in_test(attack, ctx, own).inputs)
    assert len(shown) == len(own.train) == 512
    np.testing.assert_array_equal(shown, np.asarray(own.train))
    for start in range(0, 512, 64):
        assert len(set(shown[start : start + 64])) == 64
    assert len(set(shown)) < 250


def test_draws_of_fewer_than_come_at_once():
    drawn = np.asarray(draw(KEY, jnp.array([7, 8, 9]), 8, 64))
    assert [sorted(drawn[:3]), sorted(drawn[3:6])] == [[7, 8, 9], [7, 8, 9]]
    assert len(set(drawn[6:])) == 2


@pytest.mark.parametrize(
    ("fraction", "valid", "rows"), [(0.5, 16, 8), (0.29, 100, 29), (1.0, 5, 5), (0.2, 13, 2), (0.0, 8, 0)]
)
def test_a_share_of_the_valid_rows_gives_way(fraction, valid, rows):
    attack, ctx, own = prepared("edge_case", poison_fraction=fraction)
    given = batch_of(valid)
    made = poisoned(attack, ctx, own, given)
    shown = np.array(numbers(made.inputs))
    np.testing.assert_array_equal(shown != 255, np.arange(len(shown)) < rows)
    expected = np.where(np.arange(len(shown)) < rows, 9, given.labels)
    np.testing.assert_array_equal(made.labels, expected)
    assert len(set(shown[:rows])) == min(rows, 60), "without replacement in a batch"
    array = attacks.registry.attacks.make("edge_case", poison_fraction=jnp.float32(fraction))
    np.testing.assert_array_equal(poisoned(array, ctx, array.init(ctx, KEY), given).labels, expected)


def test_steps_and_clients_draw_apart_and_pictures_are_mirrored_only_where_that_is_asked():
    attack, ctx, own = prepared("edge_case", poison_fraction=1.0)
    given = batch_of()
    first, other, later = (
        numbers(poisoned(attack, ctx, own, given, *at).inputs) for at in ((1, KEY), (2, KEY), (1, jax.random.key(0)))
    )
    assert first == numbers(poisoned(attack, ctx, own, given).inputs)
    assert first != other
    assert first != later
    assert min(first) >= 100
    attack, ctx, own = prepared("edge_case", poison_fraction=1.0, augment=True)
    mirrored = np.asarray(poisoned(attack, ctx, own, batch_of()).inputs)[:, 0, 3, 0] == 0
    assert 30 < mirrored.sum() < 70


def test_edge_cases_are_the_sets_own_parts_with_what_they_show():
    attack, ctx, own = prepared("edge_case", draws=7)
    assert len(set(np.asarray(own.train).tolist())) == 7
    examples, shown = attack.test(ctx.held), shown_in_test(attack, ctx, own)
    assert numbers(shown.inputs) == list(range(200))
    np.testing.assert_array_equal(examples.labels, np.arange(200) % 10)
    assert (np.asarray(shown.labels) == 9).all()
    one, ctx, _ = prepared("edge_case", cases="ardis")
    np.testing.assert_array_equal(one.test(ctx.held).labels, 7)
    assert int(ctx.held.target) == 1
    mnist = dataset_of(INFO._replace(name="mnist"))
    asked = []
    attacks.registry.attacks.make("edge_case").hold(
        mnist, lambda name, **options: asked.append((name, options)) or mnist
    )
    assert asked == [("ardis", {"val_fraction": 0.0, "resize": False})], "pictures of 4x4 are as stored"


@pytest.mark.parametrize(
    ("name", "options", "dataset", "words"),
    [
        ("semantic", {"source_class": 10}, dataset_of(), r"attack\.options\.source_class = 10 .* cifar10, 0 to 9\.$"),
        ("semantic", {}, dataset_of(tests=8), "at least two test pictures, and cifar10 has 1 of it here"),
        ("edge_case", {"source_class": 12}, dataset_of(), "source_class = 12 .* southwest has examples to train on"),
        ("edge_case", {"target_label": 10}, dataset_of(), r"attack\.target_label = 10 .* class of cifar10, 0 to 9\.$"),
        ("edge_case", {"cases": "digits"}, dataset_of(), "target_label = None .* 'digits': it must be a class"),
        ("edge_case", {}, dataset_of(INFO._replace(name="usps")), "cases = None .* greek_director or another one"),
        ("edge_case", {}, dataset_of(INFO._replace(mean=None)), "a data set of pictures or texts with a class each"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(name, options, dataset, words):
    with pytest.raises(ConfigError, match=words):
        attacks.registry.attacks.make(name, **options).hold(dataset, lambda *_, **__: dataset_of())


def test_pictures_that_do_not_fit_or_are_not_there(tmp_path):
    def load(name, **options):
        return data.load(name, data_dir=tmp_path, cache_dir=tmp_path, **options)

    edge = attacks.registry.attacks.make("edge_case")
    absent = r"^attack\.name = 'edge_case' takes its examples from data set southwest: .* is not prepared in "
    with pytest.raises(DataError, match=absent + r".*data\.data_dir or TFDS_DATA_DIR.*by hand\.$"):
        edge.hold(dataset_of(), load)
    other = attacks.registry.attacks.make("edge_case", cases="digits", target_label=1)
    with pytest.raises(ConfigError, match=r"examples are \(32, 32, 3\), and they must be \(4, 4, 3\)"):
        other.hold(dataset_of(), load)
    with pytest.raises(
        ConfigError, match=r"attack\.options\.cases = 'bogus' is unknown: it must be one of .*`fedjax-spmc list data`"
    ):
        attacks.registry.attacks.make("edge_case", cases="bogus")
    with pytest.raises(ConfigError, match=r"source_class = 9 is not allowed: .* than attack\.target_label = 9"):
        attacks.registry.attacks.make("semantic", source_class=9)


def test_what_the_shown_part_tests_is_its_own():
    """Behind edge cases a part with a trigger: that one's test, on the test set."""
    assert attacks.make(("badnets", "edge_case")).test is not None
    assert attacks.make(("edge_case", "badnets")).test is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("badnets", (0.5, 2, "fdcr_paper")),
        ("none", (0.5, 2, "fdcr_paper")),
        ("semantic", (0.5, 9, "fdcr_paper")),
        ("edge_case", (0.2, None, "fdcr_paper")),
        (("semantic", "badnets"), (0.5, None, "fdcr_paper")),
        (("dba", "badnets"), (0.5, 2, "fdcr_paper")),
    ],
)
def test_fields_of_attack_are_the_chosen_attacks_own_unless_given(names, expected):
    resolved = configs.resolve(small.config(attack__name=names))
    assert (resolved.attack.poison_fraction, resolved.attack.target_label, resolved.attack.trigger) == expected
    given = configs.resolve(small.config(attack__name=names, attack__target_label=3))
    assert given.attack.target_label == 3
    made = attacks.options_by_part((names,) if isinstance(names, str) else names, configs.attack_options(given))
    assert all(part["target_label"] == 3 for name, part in made.items() if name != "none")


@pytest.mark.slow
@pytest.mark.usefixtures("small_cache")
def test_a_run_resumes_sweeps_and_is_evaluated_again(tmp_path):
    names = ("edge_case", "badnets", "semantic")
    fields: dict[str, Any] = {"attack__options__cases": "digits", "attack__target_label": 1}
    fields |= {"attack__options__disjoint": False, "attack__options__draws": 20}

    def config(rounds=2):
        return small.config(rounds, "fedavg", attack__name=names, **fields)

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    result = experiment.run(config(), straight)
    experiment.run(config(1), broken)
    experiment.run(config(), broken)
    small.assert_same_run(straight, broken)
    assert result.history[-1]["ASR"] == result.history[-1]["ASR_all"], "no picture shows what the attacker wants"
    assert evaluate.evaluate(str(straight))["ASR"] == result.history[-1]["ASR"]
    (run,) = read.read([straight]).runs
    pictures = images.RunImages().test_images(run)
    assert {one.label for one in pictures.triggered} == {"5"}
    assert pictures.caption == "test images of the attack's own, without a trigger"
    assert pictures.note.startswith("The attacker's class is 1.")
    rows = sweep.run(sweep.Sweep(config(), grid={"attack.poison_fraction": [0.0, 0.5]}), tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished"] * 2
    cell = experiment.load(tmp_path / "sweep" / rows[1]["folder"])
    alone = experiment.run(small.config(2, "fedavg", attack__name=names, attack__poison_fraction=0.5, **fields))
    for a, b in zip(jax.tree.leaves(cell.variables), jax.tree.leaves(alone.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
