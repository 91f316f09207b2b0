"""Options that are left open: what the rule takes for them is on record, and too few clients are refused at once."""

import json

import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import experiment
from fedjax_spmc.errors import ConfigError
from tests import small


def krum(**fields):
    return small.config(rounds=fields.pop("rounds", 1), presets="fedavg", aggregator__name="krum", **fields)


@pytest.mark.slow
def test_the_record_shows_the_number_that_krum_takes_and_the_run_goes_on(small_cache, tmp_path):
    config = krum()
    assert configs.resolve(config).aggregator.options.attackers is None
    experiment.run(config, tmp_path / "run")
    options = json.loads((tmp_path / "run" / "config.json").read_text())["aggregator"]["options"]
    assert options["attackers"] == 0, "4 >= 2 f + 3"
    longer = experiment.run(krum(rounds=2), tmp_path / "run")
    assert [line["round"] for line in longer.history] == [0, 1]
    assert experiment.load(tmp_path / "run").config.aggregator.options.attackers == 0
    with pytest.raises(ConfigError, match=r"federation\.clients_per_round"):
        experiment.run(krum(rounds=2, aggregator__options__attackers=1), tmp_path / "run")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"federation__clients_per_round": 2}, "clients_per_round = 2 is not allowed with aggregator.name = 'krum'"),
        ({"aggregator__options__attackers": 1}, "'krum' and aggregator.options.attackers = 1: it must be at least 5."),
    ],
)
def test_too_few_clients_for_a_rule_are_refused_before_anything_runs(tmp_path, fields, words):
    with pytest.raises(ConfigError) as error:
        experiment.run(krum(**fields), tmp_path / "run")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_rule_that_needs_clean_data_is_refused_without_any():
    with pytest.raises(ConfigError, match=r"data\.val_fraction = 0"):
        configs.resolve(small.config(presets="fedavg", aggregator__name="fltrust", data__val_fraction=0.0))


def test_nothing_is_added_to_a_record_where_nothing_is_open():
    resolved = configs.resolve(small.config())
    assert configs.to_plain(configs.with_chosen_options(resolved)) == configs.to_plain(resolved)
