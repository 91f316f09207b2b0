"""DBA's own patterns: which bar is whose, one of them as a test, and the scaled single shot."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks, evaluate, experiment, sweep
from fedjax_spmc import config as configs
from fedjax_spmc.attacks import triggers
from fedjax_spmc.attacks.dba import PARTS
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.task import task_of
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import AttackContext, Batch, Roster
from tests import small

KEY = jax.random.key(3)
GREY = task_of(DatasetInfo("made up", 10, (28, 28, 1), (0.1,), (0.5,)))


def stamped(malicious: list[int], client: int | None, task: Any = GREY, **options: Any) -> np.ndarray:
    """[H, W, C] bool, the values that become white on a picture of zeros; of a client, or None = in the test."""
    attack = attacks.make("dba", poison_fraction=1.0, **options)
    roster = Roster(jnp.isin(jnp.arange(8), jnp.array(malicious)), jnp.int32(0), jnp.int32(9), jnp.int32(0))
    ctx, one = AttackContext(task=task, roster=roster), jnp.zeros(1, jnp.int32)
    given = Batch(jnp.zeros((1, *task.input.shape)), one, one, jnp.ones(1, bool))
    own = attack.init(ctx, KEY)
    assert attack.poison is not None
    assert attack.backdoor is not None
    if client is None:
        made = attack.backdoor(ctx, own, given)
    else:
        made = attack.poison(ctx, own, given, jnp.int32(client), jnp.int32(0), KEY)
    pixels = np.asarray(made.inputs)[0] * np.asarray(task.std) + np.asarray(task.mean)
    white = abs(pixels - 1) < 1e-6
    assert (white | (np.asarray(made.inputs)[0] == 0)).all()
    return white


def bar(shape: tuple[int, ...], row: int, column: int, size: tuple[int, int]) -> np.ndarray:
    """A bar with its first pixel at (row, column), on all channels."""
    expected = np.zeros(shape, bool)
    expected[row : row + size[0], column : column + size[1]] = True
    return expected


PUBLISHED = {
    "dba_mnist": ((1, 4), [(0, 0), (0, 6), (3, 0), (3, 6)]),
    "dba_cifar": ((1, 6), [(0, 0), (0, 9), (4, 0), (4, 9)]),
    "dba_tiny": ((2, 10), [(0, 0), (0, 12), (4, 0), (4, 12)]),
}
OTHER: dict[str, Any] = {"trigger": "dba_mnist", "part_size": (2, 3), "part_gap": (5, 1), "corner": (10, 4)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_bars_of_the_code_are_shared_out_by_id(name):
    size, corners = PUBLISHED[name]
    colour = task_of(DatasetInfo("made up", 10, (32, 32, 3), (0.1, 0.2, 0.3), (0.5, 0.4, 0.2)))
    for task in (GREY, colour):
        shape = task.input.shape
        parts = [stamped([1, 2, 5, 7], client, task, trigger=name) for client in (1, 2, 5, 7)]
        np.testing.assert_array_equal(parts, [bar(shape, *corner, size) for corner in corners])
        np.testing.assert_array_equal(stamped([1, 2, 5, 7], None, task, trigger=name), np.any(parts, axis=0))
        for rank in range(PARTS):
            shown = stamped([1, 2, 5, 7], None, task, trigger=name, test_part=rank)
            np.testing.assert_array_equal(shown, parts[rank])
    assert triggers.PRESETS[name].positions == triggers.BARS[name].positions(3)


def test_bars_of_another_size_gap_and_place():
    parts = [stamped([0, 1, 2, 3], rank, **OTHER) for rank in range(PARTS)]
    corners = [(10, 4), (10, 8), (17, 4), (17, 8)]
    np.testing.assert_array_equal(parts, [bar((28, 28, 1), *corner, (2, 3)) for corner in corners])


@pytest.mark.parametrize(
    ("malicious", "parts"), [([6], [(0, 1, 2, 3)]), ([3, 6], [0, 1]), ([0, 1, 2, 3, 5], [0, 1, 2, 3, 0])]
)
def test_fewer_and_more_attackers_than_bars(malicious, parts):
    """A single one has all; of two nobody has the last two, which the test still shows; a fifth begins anew."""
    single = [stamped([0, 1, 2, 3], rank, trigger="dba_mnist") for rank in range(PARTS)]
    for client, mine in zip(malicious, parts, strict=True):
        expected = np.any([single[i] for i in np.atleast_1d(mine)], axis=0)
        np.testing.assert_array_equal(stamped(malicious, client, trigger="dba_mnist"), expected)
    np.testing.assert_array_equal(stamped(malicious, None, trigger="dba_mnist"), np.any(single, axis=0))


def test_a_part_of_a_shared_list_is_what_that_client_stamps():
    for rank, client in enumerate((2, 4, 7)):
        shown = stamped([2, 4, 7], None, trigger="fdcr_paper", test_part=rank)
        np.testing.assert_array_equal(shown, stamped([2, 4, 7], client, trigger="fdcr_paper"))
        assert shown.sum() == 4
    assert not stamped([2, 4, 7], None, trigger="fdcr_paper", test_part=3).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"part_size": (1, 4)}, r"part_size = \(1, 4\) is not allowed with attack\.trigger = 'fdcr_paper', where"),
        (
            {"trigger": "dba_mnist", "positions": ((0, 0, 0),), "corner": (1, 1)},
            r"corner = \(1, 1\) is not allowed with attack\.options\.positions",
        ),
        ({"trigger": "dba_mnist", "part_size": (0, 4)}, r"part_size = \(0, 4\) is not allowed: .* from 1 on"),
        ({"trigger": "dba_mnist", "part_gap": (1, 2, 3)}, r"part_gap = \(1, 2, 3\) is not allowed: .* two whole"),
        ({"trigger": "dba_mnist", "corner": (1, 0.5)}, r"corner = \(1, 0\.5\) is not allowed: .* from 0 on"),
        ({"trigger": "dba_mnist", "corner": (True, 1)}, r"corner = \(True, 1\) is not allowed"),
        ({"trigger": "dba_mnist", "test_part": 4}, r"test_part = 4 is not allowed .* in \[0, 3\] or None"),
        ({"trigger": "dba_mnist", "test_part": -1}, r"test_part = -1 is not allowed"),
        ({"trigger": "dba_digits"}, r"trigger = 'dba_digits' is not allowed: it must be one of fdcr_paper, "),
    ],
)  # fmt: skip
def test_bars_that_cannot_be_are_one_sentence(options, words):
    with pytest.raises(ConfigError, match=words):
        attacks.make("dba", **options)
    fields = {
        ("attack__" if name == "trigger" else "attack__options__") + name: value for name, value in options.items()
    }
    with pytest.raises(ConfigError, match=words):
        configs.resolve(small.config(attack__name="dba", **fields))


@pytest.mark.parametrize("options", [{"corner": (25, 0)}, {"corner": (0, 20)}, {"part_size": (10**6, 10**6)}])
def test_bars_that_reach_out_of_the_image_are_refused(options):
    with pytest.raises(
        ConfigError, match=r"^attack\.trigger = 'dba_mnist' is not allowed with part_size = .*\(28, 28\)\.$"
    ):
        stamped([0], 0, trigger="dba_mnist", **options)


# Runs.

SINGLE_SHOT: dict[str, Any] = {
    "attack__name": ("dba", "model_replacement"),
    "attack__malicious_fraction": 0.5,
    "attack__trigger": "dba_mnist",
    "attack__options__factor": 4.0,
    "attack__options__poison_per_batch": 2,
    "attack__schedule__first": 0,
    "attack__schedule__last": 2,
    "attack__schedule__every": 2,
    "attack__schedule__turns": 1,
    "data__normalise": False,
    "server__optimizer": "sgd",
    "server__learning_rate": 0.1,
}


@pytest.mark.slow
@pytest.mark.usefixtures("small_cache")
def test_a_scaled_single_shot_resumes_sweeps_and_is_tested_by_parts(tmp_path):
    """Clients 2 and 3 of four in rounds 0 and 2, each with an update of four times its length."""

    def config(rounds=3, **more):
        return small.config(rounds, "fedavg", **SINGLE_SHOT | {"aggregator__options__weights": "uniform"} | more)

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    result = experiment.run(config(), straight)
    experiment.run(config(1), broken)
    experiment.run(config(), broken)
    small.assert_same_run(straight, broken)
    attacking = [sorted(np.array(line["client_ids"])[line["attacking"]].tolist()) for line in result.history]
    assert attacking == [[2], [], [3]]
    whole = evaluate.evaluate(str(straight))["ASR"]
    assert whole == result.history[-1]["ASR"]
    parts = [evaluate.evaluate(str(straight), part=rank)["ASR"] for rank in (0, 3)]
    assert len({whole, *parts}) > 1, "what is shown is another trigger"
    with pytest.raises(ConfigError, match="test_part = 4 is not allowed"):
        evaluate.evaluate(str(straight), part=4)
    rows = sweep.run(sweep.Sweep(config(), {"attack.options.poison_per_batch": [5, 2]}), tmp_path / "sweep")
    assert [row["status"] for row in rows] == ["finished"] * 2
    cell, other = (experiment.load(tmp_path / "sweep" / row["folder"]) for row in (rows[1], rows[0]))
    assert not np.allclose(*(jax.tree.leaves(one.variables)[0] for one in (cell, other)), atol=1e-5)
    for a, b in zip(jax.tree.leaves(cell.variables), jax.tree.leaves(result.variables), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
