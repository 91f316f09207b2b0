"""Neurotoxin's whole setting in one small run: many tiny clients, one forced attacker, a start model, a schedule of the
learning rate, clipping and weak noise, and every part of the attack; resumed and swept.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import experiment, models, sweep
from fedjax_spmc.experiment import build
from fedjax_spmc.one_round import train
from fedjax_spmc.record.folder import RunFolder
from tests import small

pytestmark = [pytest.mark.usefixtures("small_cache"), pytest.mark.slow]
PARTS = ("badnets", "mixed_batches", "neurotoxin", "pgd", "model_replacement")
CLIENTS, ATTACKER = 50, 49
FIELDS: dict[str, Any] = {
    "data__options__num_train": 330,  # six examples for each client, less than a batch
    "partition__name": "iid",
    "federation__num_clients": CLIENTS,
    "model__options__hidden": (6,),
    "sampling__options__attackers": "forced_only",
    "aggregator__name": "norm_clip",
    "aggregator__options__threshold": 0.2,
    "aggregator__options__noise": 1e-3,
    "local__drop_last": False,
    "local__epochs": 2,
    "local__learning_rate": 0.2,
    "local__schedule": "neurotoxin_cifar",
    "local__schedule_offset": 1800,
    "attack__malicious_fraction": 0.02,
    "attack__schedule__first": 1,
    "attack__schedule__last": 2,
    "attack__poison_fraction": 1.0,
    "attack__local__epochs": 3,
    "attack__local__learning_rate": 0.02,
    "attack__local__weight_decay": 0.005,
    "checkpoint__every": 2,
    "attack__options__radius": 0.5,
    "attack__options__factor": 2.0,
    "attack__options__mixed_batches": {"pool_size": 5, "rows": 8, "relabel": (7,)},
}


def config_of(start, names=PARTS, rounds=4, **fields: Any) -> Any:
    return small.config(rounds, "fedavg", attack__name=names, model__start=str(start), **FIELDS | fields)


@pytest.fixture(scope="module")
def start(tmp_path_factory, cache_folder):
    """A saved model."""
    path = tmp_path_factory.mktemp("start") / "model.npz"
    model = models.make("mlp", hidden=(6,))
    np.savez(path, **models.to_torch_dict(model.init(jax.random.key(7))))
    return path


@pytest.fixture(scope="module")
def straight(start, tmp_path_factory, cache_folder):
    """The folder of the run, and its result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDJAX_SPMC_CACHE", str(cache_folder))
        small.share_compiled(cache_folder)
        folder = tmp_path_factory.mktemp("runs") / "straight"
        return folder, experiment.run(config_of(start), folder)


def test_all_of_it_in_one_run(straight):
    folder, result = straight
    lines = result.history
    assert [sum(line["attacking"]) for line in lines] == [0, 1, 1, 0]
    assert [sum(line["malicious"]) for line in lines] == [0, 1, 1, 0], "in no round but its own"
    assert all(line["non_finite"] == 0 and line["aggregation_failed"] == 0 for line in lines)
    for line in lines:
        clients = dict(zip(line["client_ids"], line["attacking"], strict=True))
        assert clients.get(ATTACKER, False) == (line["round"] in (1, 2))
    made = build(configs.resolve(result.config))
    own = RunFolder(folder, result.config, read_only=True).read_attack(made.state.attack)["neurotoxin"]
    counts = [x.size for x in jax.tree.leaves(own.mask)]
    assert sum(int(x.sum()) for x in jax.tree.leaves(own.mask)) == int(sum(counts) * 0.95)
    rates = [float(made.federation.hyper_at(jnp.int32(r))["learning_rate"]) for r in (0, 3)]
    np.testing.assert_allclose(rates, 0.2 * (4 / 3 - np.array([1801, 1804]) / 1500), rtol=1e-6)


def test_it_resumes_bit_for_bit(straight, start, tmp_path):
    experiment.run(config_of(start, rounds=2), tmp_path)
    experiment.run(config_of(start), tmp_path)
    small.assert_same_run(straight[0], tmp_path)


def test_a_sweep_varies_ratio_radius_and_factor(straight, start, tmp_path):
    grid = {
        "attack.options.ratio": [0.5, 0.95],
        "attack.options.radius": [0.5],
        "attack.options.factor": [2.0],
    }
    made = sweep.Sweep(config_of(start), grid)
    assert len(sweep.groups_of(sweep.expand(made))) == 1
    rows = sweep.run(made, tmp_path)
    assert [row["status"] for row in rows] == ["finished"] * 2
    (same,) = (row["folder"] for row in rows if row["attack.options.ratio"] == 0.95)
    chex.assert_trees_all_close(experiment.load(tmp_path / same).variables, straight[1].variables, atol=1e-5)


def test_benign_clients_keep_their_bits(start):
    """Beside an attacker that does all of it, and in a round without one: three of them are drawn in both."""
    made = build(configs.resolve(config_of(start)))
    compiled = jax.jit(lambda state: train(made.federation, made.arrays, made.sizes, state, made.key))
    # As if a round had been played before, so that there is an update to look back at.
    previous = jax.tree.map(lambda x: 0.9 * x, made.state.variables)
    seen = []
    for first in (1, 2):
        roster = made.state.roster._replace(first=jnp.int32(first))
        ids, own, trained = compiled(made.state._replace(previous=previous, round=jnp.int32(1), roster=roster))
        models = np.concatenate([np.reshape(x, (len(ids), -1)) for x in jax.tree.leaves(trained.variables)], axis=1)
        seen.append(dict(zip(ids.tolist(), models, strict=True)))
        assert all(x.all() for x in jax.tree.leaves(own["neurotoxin"].mask)) == (first == 2)
    attacked, clean = seen
    both = attacked.keys() & clean.keys()
    assert (len(both), ATTACKER in attacked, ATTACKER in clean) == (3, True, False)
    for client in both:
        np.testing.assert_array_equal(attacked[client], clean[client])
