"""Averaging by a server that knows who is malicious, marked as an oracle's."""

import json
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, compare, run
from fedjax_spmc import config as configs
from fedjax_spmc.aggregators.guard import guarded
from fedjax_spmc.config import make_config
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import TRUTH, Upload
from tests import small
from tests.uploads import random_upload

KEY = jax.random.key(0)
OPTION = "aggregator.options.oracle_weights"


def told(upload: Upload, *malicious: int) -> Upload:
    return upload._replace(
        extras={TRUTH: jnp.zeros(len(upload.participating), bool).at[jnp.array(malicious)].set(True)}
    )


@pytest.mark.parametrize("weights", ["size", "uniform"])
def test_it_is_the_mean_of_those_who_are_not_malicious(weights):
    upload = random_upload(9, absent=(2,))
    model, verdict, _ = aggregators.make("mean", weights=weights, oracle_weights=True).aggregate(
        told(upload, 0, 2, 7), (), KEY
    )
    alone = upload._replace(participating=upload.participating.at[jnp.array([0, 7])].set(False))
    expected, weighted, _ = aggregators.make("mean", weights=weights).aggregate(alone, (), KEY)
    chex.assert_trees_all_equal(model, expected)
    np.testing.assert_array_equal(verdict.weights, weighted.weights)
    np.testing.assert_allclose(verdict.weights.sum(), 1.0, rtol=1e-6)
    assert not np.asarray(verdict.weights)[[0, 2, 7]].any()
    assert not np.asarray(verdict.flagged).any()


def test_where_all_are_malicious_the_model_stays():
    upload = told(random_upload(4), 0, 1, 2, 3)
    rule = guarded(aggregators.make("mean", oracle_weights=True))
    model, verdict, _ = rule.aggregate(upload, (), KEY)
    chex.assert_trees_all_equal(model, upload.global_params)
    assert not np.asarray(verdict.weights).any()


def test_without_the_truth_it_says_what_is_missing():
    with pytest.raises(ConfigError, match=r"aggregator mean: extras.'malicious'. is missing.*oracle_weights = True"):
        aggregators.make("mean", oracle_weights=True).aggregate(random_upload(4), (), KEY)


@pytest.mark.parametrize(("method", "option"), [("fedavg", "oracle_weights"), ("fdcr", "oracle_fisher_noise")])
def test_behind_buckets_nobody_knows_whose_row_is_whose(method, option):
    config = make_config(method, aggregator__pre=("bucketing",))
    configs.set_field(config, f"aggregator.options.{option}", True)
    with pytest.raises(
        ConfigError, match=r"bucketing is not allowed with .*is told which of them are malicious, while"
    ):
        configs.resolve(config)


def test_a_run_is_marked_and_malicious_clients_weigh_nothing(tmp_path, small_cache, capsys):
    assert run.main(small.arguments(tmp_path / "run", f"{OPTION}=true", rounds=2, presets="fedavg")) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["oracle"]
    assert compare.main([str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^o  .*: oracle: the aggregator was told who is malicious", said, re.MULTILINE)
    roster = json.loads((tmp_path / "run" / "roster.json").read_text())["malicious"]
    for line in small.lines(tmp_path / "run"):
        weights = np.array(line["weights"])
        malicious = np.isin(np.arange(len(weights)), roster)
        assert malicious.sum() == 1
        assert not weights[malicious].any()
        assert (weights[~malicious] > 0).all()
