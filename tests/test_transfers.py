"""Nothing goes between host and device inside a round: neither when one device plays it nor when two share it."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc.experiment import build
from tests import small
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments" / "bench"))

from host_work import round_without_transfers


@pytest.fixture(scope="module")
def built():
    config = configs.resolve(small.config(2, "spmc"))
    return build(config)


@pytest.mark.parametrize("count", [1, 2])
def test_a_round_moves_nothing_between_host_and_device(built, count):
    assert round_without_transfers(built, tuple(jax.local_devices()[:count])) is None


def test_the_guard_sees_a_transfer():
    total = jax.jit(jnp.sum)
    total(np.ones(3))
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
        total(np.ones(3))
