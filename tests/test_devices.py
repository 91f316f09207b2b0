"""Several devices share the clients of a round: the numbers are those of one device, bit for bit."""

import os
import subprocess
import sys
from importlib.metadata import version

import jax
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import devices, rounds
from fedjax_spmc.data import partition
from fedjax_spmc.experiment import build
from fedjax_spmc.sweep import program
from tests import small
from tests.conftest import ROOT


@pytest.mark.parametrize(("rows", "among"), [(1, 2), (2, 2), (5, 2), (10, 2), (10, 4), (7, 8), (96, 8)])
def test_rows_are_dealt_out_evenly_and_none_is_forgotten(rows, among):
    deal = jax.jit(devices.balanced_order, static_argnums=1)
    for seed in range(5):
        work = np.random.default_rng(seed).gamma(2, 50, size=rows).astype(np.int32) + 1
        dealt, back = map(np.asarray, deal(work, among))
        assert set(dealt) == set(range(rows))
        assert len(dealt) - rows < among
        np.testing.assert_array_equal(dealt[back], np.arange(rows))
        assert all(list(dealt).index(row) == back[row] for row in range(rows))
        loads = work[dealt].reshape(among, -1)
        assert (np.diff(loads, axis=1) <= 0).all(), "rows side by side are of about one length"
        if rows % among == 0:
            assert np.ptp(loads.sum(axis=1)) <= np.ptp(work)


def test_two_devices_get_the_same_work():
    """Local steps of ten clients in five Dirichlet partitions of CIFAR-10's size, of which either device has half."""
    labels = np.repeat(np.arange(10), 4500)
    for seed in range(5):
        parts = partition.dirichlet(labels, 10, 0.5, np.random.RandomState(seed))
        steps = np.array([len(part) // 64 for part in parts], np.int32)
        loads = steps[np.asarray(devices.balanced_order(steps, 2)[0])].reshape(2, 5).sum(axis=1)
        assert loads.max() <= 1.02 * loads.mean()


TWO_AS_ONE = """
import jax, numpy as np
from fedjax_spmc import experiment
from tests import small

fields = {
    "federation__num_clients": 5,
    "federation__clients_per_round": 3,
    "local__epochs": 2,
    "partition__min_size": 8,
    "attack__name": ("badnets", "dba"),
}
assert jax.local_device_count() == 2
alike = {"partition__name": "iid", "federation__clients_per_round": 4}  # these keep their order
many = {  # these are summed as they are trained
    "federation__num_clients": 60,
    "federation__clients_per_round": 50,
    "data__options__num_train": 1000,
    "partition__min_size": 2,
}
for presets, more in (("spmc", {}), ("fdcr", {}), ("fedavg", alike), ("fedavg", many)):
    own = fields | more
    one, two = (experiment.run(small.config(2, presets, federation__devices=count, **own)) for count in (1, 2))
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(two.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [small.without_times(line) for line in one.history] == [small.without_times(line) for line in two.history]
"""


@pytest.mark.slow
def test_two_devices_give_the_bits_of_one(cache_folder):
    """Five clients of unequal size, three drawn a round, so that rows are reordered, and states travel with them; four
    of equal size, which keep their order, and fifty of unequal size, whose models are summed.

    In a process of its own, compiled as users compile: that is what the promise is about.
    """
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "FEDJAX_SPMC_CACHE": str(cache_folder),
    }
    subprocess.run([sys.executable, "-c", TWO_AS_ONE], env=environment, cwd=ROOT, check=True)


@pytest.mark.slow
def test_states_and_reports_stay_on_one_device(small_cache):
    config = configs.resolve(small.config(1))
    built = build(config)
    play = rounds.make_round(built.federation, built.arrays, built.sizes, jax.local_devices()[:2])
    state, report = play(built.state, built.key)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves((state, report)))
    again, _ = play(state, built.key)
    assert int(again.round) == 2


def test_no_more_devices_than_clients_or_than_there_are():
    count = jax.local_device_count()
    assert len(devices.devices_for_round(1, None)) == 1
    assert len(devices.devices_for_round(100, None)) == count
    assert len(devices.devices_for_round(100, 1)) == 1
    assert len(devices.devices_for_round(100, 64)) == count


def test_a_lone_cell_has_all_cores_where_they_may_wait(monkeypatch):
    config = configs.resolve(small.config(1, federation__devices=None))
    monkeypatch.setenv("XLA_FLAGS", "")
    assert program.layout_of(config, 1, jax.local_devices())[:2] == ((jax.devices()[0],), "experiments")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_collective_call_terminate_timeout_seconds=1000000")
    assert program.layout_of(config, 1, jax.local_devices()) == ((*jax.devices()[:2],), "clients", 1)
    assert program.layout_of(config, 3, jax.local_devices())[:2] == ((*jax.devices()[:2],), "experiments")


@pytest.mark.skipif(not version("jaxlib").startswith("0.10."), reason="XLA's flags for this are known of jaxlib 0.10")
def test_freed_memory_is_kept_unless_the_environment_says_how(monkeypatch):
    taken = []

    class C:
        @staticmethod
        def mallopt(name, value):
            taken.append((name, value))

        @staticmethod
        def malloc_trim(pad):
            taken.append(pad)

    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: C)
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    devices.keep_freed_memory()
    devices.hand_back_freed_memory()
    assert taken == [*devices.MALLOC.values(), 0]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    devices.keep_freed_memory()
    devices.hand_back_freed_memory()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: object())  # another C library
    devices.keep_freed_memory()
    devices.hand_back_freed_memory()
    assert len(taken) == len(devices.MALLOC) + 1


def test_cores_are_allowed_to_wait():
    """In a process of its own: XLA reads its flags once, and aborts on one that it does not know."""
    words = "from fedjax_spmc import devices; devices.use_cores(2); import jax; "
    words += "print(len(jax.devices()), devices.may_wait(jax.devices()[0]))"
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", words], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "True"]
