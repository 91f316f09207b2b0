"""Percentages, detection and summaries, worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks, evaluation, metrics
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.task import task_of
from fedjax_spmc.evaluation import Counts
from fedjax_spmc.types import AttackContext, Examples, Model, Roster, Variables


def test_percentages_with_and_without_the_target_class():
    # class 1 is the target: 4 images, all "hit"; of the 6 others 3 are hit.
    counts = Counts(*(np.array(x) for x in ([4, 4, 2], [3, 4, 1], 10, 7, 6, 3)))
    values = metrics.percentages(counts, backdoor=True)
    assert values["A"] == 80.0
    assert values["ASR"] == 50.0
    assert values["ASR_all"] == 70.0
    assert values["R"] == 50.0
    assert values["V"] == 65.0
    assert values["R_all"] == pytest.approx(30.0)
    assert values["V_all"] == pytest.approx(55.0)
    assert values["per_class"] == [75.0, 100.0, 50.0]


def test_undefined_is_none():
    counts = Counts(*(np.array(x) for x in ([2, 0], [1, 0], 0, 0, 0, 0)))
    values = metrics.percentages(counts, backdoor=False)
    assert values["A"] == 50.0
    assert values["per_class"] == [50.0, None]
    assert all(values[name] is None for name in ("ASR", "ASR_all", "R", "V", "R_all", "V_all"))
    nobody = metrics.detection(np.zeros(2, bool), np.arange(2.0), np.ones(2, bool), np.zeros(2, bool))
    assert nobody == {"tpr": None, "fpr": 0.0, "precision": None, "f1": None, "auc": None}


def test_detection_counts_participants_only():
    flagged = np.array([True, True, False, True])
    present = np.array([True, True, True, False])
    attacking = np.array([True, False, True, True])
    found = metrics.detection(flagged, np.array([3.0, 2.0, 2.0, 9.0]), present, attacking)
    assert found == {"tpr": 50.0, "fpr": 100.0, "precision": 50.0, "f1": 50.0, "auc": 0.75}
    assert metrics.detection(flagged, np.zeros(4), present, attacking)["auc"] is None


def test_the_summary_is_the_mean_of_the_last_five():
    history = [dict.fromkeys(metrics.SCALARS, float(i)) for i in range(7)]
    history[-1]["tpr"] = None
    summary = metrics.summarise(history)
    assert summary["A"] == 4.0
    assert summary["A_last"] == 6.0
    assert summary["tpr"] == 3.5
    assert summary["tpr_last"] is None


@pytest.mark.parametrize("num_images", [3, 500, 777])
def test_evaluate_counts_every_image_once(num_images):
    """A model that reads the class off the first pixel: A is 100, and the trigger there decides the answer."""

    def apply(params, stats, images, train, key):
        return jax.nn.one_hot(jnp.round(images[:, 5, 5, 0] * 3 + images[:, 0, 0, 0] * 9).astype(jnp.int32), 4), stats

    task = task_of(DatasetInfo("made up", 4, (8, 8, 3), (0.0,) * 3, (1.0,) * 3))
    model = Model(lambda key: Variables({}, {}), apply, (), 4, task.input)
    attack = attacks.make("badnets", positions=((0, 0, 0),), value=0.0, target_label=2)
    roster = Roster(jnp.zeros(1, bool), jnp.int32(0), jnp.int32(0), jnp.int32(0))
    own = attack.init(AttackContext(task=task, roster=roster), jax.random.key(0))
    labels = np.random.default_rng(0).integers(0, 4, num_images)
    images = np.zeros((num_images, 8, 8, 3), np.uint8)
    images[:, 5, 5, 0] = labels * 85
    evaluate = evaluation.make_evaluate(model, attack, task)
    test = Examples(jnp.asarray(images), jnp.asarray(labels, jnp.int32))
    counts = evaluate(Variables({}, {}), test, roster, own)
    np.testing.assert_array_equal(counts.asked, np.bincount(labels, minlength=4))
    np.testing.assert_array_equal(counts.correct, counts.asked)
    targets = (labels == 2).sum()
    assert (counts.triggered, counts.hits) == (num_images, targets)
    assert (counts.triggered_others, counts.hits_others) == (num_images - targets, 0)
