"""Several devices share the clients of a round: the numbers are those of one device, bit for bit."""

import jax
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import devices, experiment, setup
from tests import small


@pytest.mark.parametrize(("rows", "among"), [(1, 2), (2, 2), (5, 2), (10, 4), (7, 8), (100, 8)])
def test_rows_are_dealt_out_evenly_and_none_is_forgotten(rows, among):
    places = devices.shared_out(rows, among).reshape(among, -1)
    assert set(places.ravel()) == set(range(rows))
    assert places.size - rows < among
    work = np.sort(np.random.default_rng(0).gamma(2, size=rows))[::-1]
    if rows % among == 0:
        loads = work[places].sum(axis=1)
        assert loads.max() - loads.min() <= work[0] + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("presets", ["spmc", "fdcr"])
def test_two_devices_give_the_bits_of_one(presets, small_cache):
    """Five clients of unequal size, four drawn a round, so that rows are reordered, and states travel with them."""
    assert jax.local_device_count() >= 2
    fields = {
        "federation__num_clients": 5,
        "federation__clients_per_round": 3,
        "local__epochs": 2,
        "partition__min_size": 8,
        "attack__name": ("badnets", "dba"),
    }
    one, two = (experiment.run(small.config(2, presets, federation__devices=count, **fields)) for count in (1, 2))
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(two.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [small.without_times(line) for line in one.history] == [small.without_times(line) for line in two.history]


def test_states_and_reports_stay_on_one_device(small_cache):
    config = configs.resolve(small.config(1))
    built = setup.build(config, setup.load_data(config))
    play = devices.make_round(built.federation, built.arrays, built.arrays[1].sizes, jax.local_devices()[:2])
    state, report = play(built.state, built.key)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves((state, report)))
    again, _ = play(state, built.key)
    assert int(again.round) == 2


def test_no_more_devices_than_clients_or_than_there_are():
    count = jax.local_device_count()
    assert len(devices.chosen(1, None)) == 1
    assert len(devices.chosen(100, None)) == count
    assert len(devices.chosen(100, 1)) == 1
    assert len(devices.chosen(100, 64)) == count
