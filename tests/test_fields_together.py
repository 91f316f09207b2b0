"""The server's optimiser, Adam, clipping and a schedule at once: in a sweep, resumed, and as an attack sees them."""

import chex
import jax
import jax.numpy as jnp
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import experiment, sweep
from fedjax_spmc.attacking import Attackers
from fedjax_spmc.sweep import engine
from fedjax_spmc.sweep.table import Table
from tests import small

pytestmark = pytest.mark.usefixtures("small_cache")
FIELDS = {
    "presets": "fedavg",
    "server__optimizer": "adam",
    "server__learning_rate": 0.02,
    "local__optimizer": "adam",
    "local__learning_rate": 0.002,
    "local__clip_norm": 0.5,
    "local__schedule": "linear",
    "local__schedule_rounds": 6,
}


def test_an_attack_is_told_the_rate_of_the_server_and_of_the_round():
    built = experiment.build(configs.resolve(small.config(4, **FIELDS, attack__local__momentum=0.3)))
    state = built.state._replace(round=jnp.int32(3))
    attackers = Attackers(built.federation, built.arrays, state, built.key, jnp.arange(4))
    ctx = attackers.context(state.attack, client_id=jnp.int32(3))
    assert ctx.server_learning_rate == 0.02
    assert float(ctx.hyper["learning_rate"]) == pytest.approx(0.001)
    assert (float(ctx.hyper["momentum"]), ctx.hyper["beta2"], ctx.hyper["clip_norm"]) == (
        pytest.approx(0.3),
        0.999,
        0.5,
    )
    plain = experiment.build(configs.resolve(small.config(1, "fedavg")))
    assert (
        Attackers(plain.federation, plain.arrays, plain.state, plain.key, jnp.arange(4))
        .context(plain.state.attack)
        .server_learning_rate
        == 1.0
    )


@pytest.mark.slow
def test_cells_that_differ_in_their_numbers_share_a_program_and_are_their_single_runs(tmp_path):
    grid = {
        "server.learning_rate": [0.01, 0.05],
        "local.schedule_end": [0.0, 0.5],
        "local.clip_norm": [0.1],
        "local.beta2": [0.9],
    }
    made = sweep.Sweep(small.config(2, **FIELDS, sweep__experiment_batch=2), grid)
    cells = sweep.expand(made)
    assert len(sweep.groups_of(cells)) == 1
    engine.play(made, cells, table := Table(tmp_path), None)
    for cell in cells:
        swept = experiment.load(tmp_path / table.rows[cell.id]["folder"])
        chex.assert_trees_all_close(swept.variables, experiment.run(cell.config).variables, atol=1e-5)


@pytest.mark.slow
def test_a_longer_run_goes_on_with_the_optimizers_state_bit_for_bit(tmp_path):
    whole = experiment.run(small.config(3, **FIELDS), tmp_path / "whole")
    experiment.run(small.config(2, **FIELDS), tmp_path / "parts")
    resumed = experiment.run(small.config(3, **FIELDS), tmp_path / "parts")
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    assert small.saved_state(tmp_path / "parts") == small.saved_state(tmp_path / "whole")
    assert len(jax.tree.leaves(experiment.build(configs.resolve(whole.config)).state.server_optimizer)) > 0
