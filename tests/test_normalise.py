"""`data.normalise`: False leaves pixels in [0, 1], and a raw trigger is the same pixels either way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import parts
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.experiment import build
from fedjax_spmc.one_round import data_of_client
from tests import small

POSITIONS, VALUE = ((0, 3, 4), (2, 5, 6)), 0.625


@functools.cache
def built(normalise):
    return build(
        configs.resolve(
            small.config(
                presets="fedavg",
                data__normalise=normalise,
                attack__poison_fraction=1.0,
                attack__options__positions=POSITIONS,
                attack__options__value=VALUE,
                attack__options__space="raw",
            )
        )
    )


def batch(normalise, malicious):
    experiment = built(normalise)
    client = jnp.int32(int(np.flatnonzero(experiment.malicious == malicious)[0]))
    data = data_of_client(experiment.federation, experiment.arrays, experiment.state, experiment.key, client)
    return data.gather(jnp.int32(0), jax.random.key(1))


def in_unit_space(inputs):
    task = built(True).federation.task
    assert float(jnp.abs(task.mean).max()) > 0.1
    return np.asarray(inputs) * np.asarray(task.std) + np.asarray(task.mean)


def test_inputs_lie_between_0_and_1_and_are_the_normalised_ones_before_the_normalisation():
    plain, normalised = batch(False, malicious=False), batch(True, malicious=False)
    pixels = np.asarray(plain.inputs)
    assert 0 <= pixels.min() < 0.1 < 0.9 < pixels.max() <= 1
    assert float(normalised.inputs.min()) < -0.1
    np.testing.assert_allclose(in_unit_space(normalised.inputs), pixels, atol=1e-6)
    np.testing.assert_array_equal(plain.labels, normalised.labels)


def test_a_raw_trigger_is_the_same_pixels():
    plain, normalised = batch(False, malicious=True), batch(True, malicious=True)
    for channel, row, column in POSITIONS:
        assert set(np.asarray(plain.inputs)[:, row, column, channel]) == {np.float32(VALUE)}
        np.testing.assert_allclose(in_unit_space(normalised.inputs)[:, row, column, channel], VALUE, atol=1e-6)
    np.testing.assert_allclose(in_unit_space(normalised.inputs), plain.inputs, atol=1e-6)
    assert float(plain.inputs.max()) <= 1


INFO = DatasetInfo("made up", 10, (2, 2, 3), (0.5,) * 3, (0.25,) * 3)


def test_other_statistics_than_the_data_sets_own():
    """CIFAR-10's of many codes, std 0.2023, 0.1994, 0.2010: the mean over images of each image's own."""
    std = (0.2023, 0.1994, 0.2010)
    task = parts.task_of(configs.resolve(small.config(data__std=std)), INFO)
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    np.testing.assert_allclose(task.prepare(pixels, None), (pixels / 255 - 0.5) / np.array(std), rtol=1e-5)
    np.testing.assert_allclose(task.std, std, rtol=1e-6)
    np.testing.assert_allclose(task.mean, 0.5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data__std": (0.2, 0.0, 0.2)}, "data.std = (0.2, 0.0, 0.2) is not allowed: it must be a list"),
        ({"data__mean": (0.2, "x", 0.2)}, "data.mean = (0.2, 'x', 0.2) is not allowed: it must be a list"),
        ({"data__mean": (0.2,)}, "data.mean = (0.2,) is not allowed with made up: it must be a list of 3, one number"),
        ({"data__mean": (0.2,) * 3, "data__normalise": False}, "not allowed with data.normalise = False, where it has"),
    ],
)
def test_statistics_that_cannot_be(fields, words):
    with pytest.raises(ConfigError) as caught:
        parts.check_fits(configs.resolve(small.config(**fields)), INFO)
    assert words in str(caught.value)
