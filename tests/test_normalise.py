"""`data.normalise`: False leaves pixels in [0, 1], and a raw trigger is the same pixels either way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc.experiment import build
from fedjax_spmc.federation import data_of_client
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
