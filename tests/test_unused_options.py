"""An option that has no effect with the value of another one is refused in one sentence, and never ignored."""

import jax
import jax.numpy as jnp
import pytest

from fedjax_spmc import aggregators, local_rules
from fedjax_spmc import config as configs
from fedjax_spmc.errors import ConfigError
from tests import small

REFERENCE = ("variant", "paper", "reference")

# section, rule, (the option that decides, a value with an effect, a value without), option, a value of it
UNUSED = [
    ("aggregator", "krum", REFERENCE, "attackers", 1),
    ("aggregator", "multi_krum", REFERENCE, "attackers", 1),
    ("aggregator", "multi_krum", REFERENCE, "keep", 2),
    ("aggregator", "bulyan", REFERENCE, "attackers", 1),
    ("aggregator", "trimmed_mean", REFERENCE, "attackers", 1),
    ("aggregator", "trimmed_mean", REFERENCE, "beta", 0.25),
    ("aggregator", "rfa", REFERENCE, "iterations", 4),
    ("aggregator", "rfa", REFERENCE, "nu", 0.5),
    ("aggregator", "multi_metrics", REFERENCE, "fraction", 0.5),
    ("aggregator", "fltrust", REFERENCE, "server_rate", 0.5),
    ("aggregator", "fedcpa", ("variant", "reference", "paper"), "install", True),
    ("aggregator", "signguard", ("cluster", "meanshift", "kmeans"), "quantile", 0.25),
    ("aggregator", "deepsight", ("ddifs", True, False), "seeds", 2),
    ("aggregator", "deepsight", ("ddifs", True, False), "samples", 64),
    ("aggregator", "fdcr", ("cluster", "dbscan", "finch"), "dbscan_eps", 2.0),
    ("aggregator", "fdcr", ("cluster", "dbscan", "kmeans"), "dbscan_min_samples", 2),
    ("aggregator", "fdcr", ("discrepancy", True, False), "cluster", "kmeans"),
    ("aggregator", "fdcr", ("rescale", "raw", "off"), "no_partition", "rescale"),
    ("aggregator", "fdcr", ("importance", True, False), "minmax_eps", 1e-12),
    ("aggregator", "spmc", ("score", "cosine", "euclidean"), "eps", 1e-3),
    ("aggregator", "spmc", ("partner", "coalition", "global"), "coalition_weights", "size"),
    ("local", "scaffold", REFERENCE, "control", "gradient"),
    ("local", "fdcr", ("fisher_kind", "per_sample", "batch"), "fisher_chunk", 8),
    ("local", "flip", ("schedule", "reference", "parallel"), "short_steps", 5),
    ("local", "flip", ("schedule", "reference", "parallel"), "cost_short", 0.5),
    ("local", "flip", ("schedule", "reference", "parallel"), "shorten_one_way", True),
    ("local", "flip", ("schedule", "reference", "parallel"), "rollback_other", True),
    ("local", "flip", ("schedule", "reference", "parallel"), "pair_key", "reference"),
    ("local", "flip", ("schedule", "parallel", "reference"), "pairs", 4),
    ("local", "flip", ("schedule", "parallel", "reference"), "pair_samples", 4),
    ("local", "flip", ("triggers", "inverted", "noise"), "pair_steps", 4),
    ("local", "flip", ("triggers", "inverted", "none"), "mask_init", "uniform_small"),
    ("local", "flip", ("triggers", "noise", "inverted"), "noise_pixels", 4),
]
KINDS = {"aggregator": aggregators, "local": local_rules}


def resolved(section, name, **options):
    """The options as the config resolves them, with enough clients for every rule."""
    fields = {"local__rule" if section == "local" else "aggregator__name": name}
    fields |= {f"{section}__options__{option}": value for option, value in options.items()}
    presets = "fdcr" if (section, name) == ("aggregator", "fdcr") else "fedavg"
    config = small.config(
        presets=presets, federation__num_clients=7, federation__clients_per_round=7, data__val_fraction=0.1, **fields
    )
    return configs.resolve(config)[section].options


@pytest.mark.parametrize(
    ("section", "name", "decides", "option", "value"), UNUSED, ids=[f"{case[1]}-{case[3]}" for case in UNUSED]
)
def test_an_option_without_effect_is_refused_in_one_sentence(section, name, decides, option, value):
    setting, with_effect, without = decides
    default = KINDS[section].describe(name)[option]["default"]
    assert resolved(section, name, **{setting: with_effect, option: value})[option] == value
    assert resolved(section, name, **{setting: without, option: default})[option] == default
    with pytest.raises(ConfigError) as error:
        resolved(section, name, **{setting: without, option: value})
    assert str(error.value) == (
        f"{section}.options.{option} = {value!r} is not allowed with {setting} = {without!r}, where it has no effect: "
        f"it must be {default!r}."
    )


# the field that decides, a value with an effect, a value without, field, a value of it
UNUSED_FIELDS = [
    ("local.optimizer", "adam", "sgd", "local.beta2", 0.99),
    ("local.schedule", "linear", "constant", "local.schedule_rounds", 3),
    ("local.schedule", "cosine", "neurotoxin_cifar", "local.schedule_end", 0.5),
    ("local.schedule", "step", "linear", "local.schedule_milestones", (3,)),
    ("server.optimizer", "sgd", "none", "server.learning_rate", 1.0),
    ("server.optimizer", "momentum", "sgd", "server.beta1", 0.5),
    ("server.optimizer", "adam", "adagrad", "server.beta2", 0.5),
    ("server.optimizer", "yogi", "momentum", "server.tau", 0.5),
]


@pytest.mark.parametrize(("decides", "with_effect", "without", "field", "value"), UNUSED_FIELDS)
def test_a_field_without_effect_is_refused_in_one_sentence(decides, with_effect, without, field, value):
    def resolved(deciding, value):
        config = small.config(presets="fedavg")
        for path, one in ((decides, deciding), (field, value)):
            configs.set_field(config, path, one)
        return configs.flatten(configs.resolve(config))[field]

    default = configs.FIELDS[field].default
    assert resolved(with_effect, value) == value
    assert resolved(without, default) == default
    with pytest.raises(ConfigError) as error:
        resolved(without, value)
    assert str(error.value) == (
        f"{field} = {value!r} is not allowed with {decides} = {without!r}, where it has no effect: it must be "
        f"{default!r}."
    )


def test_an_array_is_refused_where_it_is_certain_to_differ_from_the_default():
    """Nothing is known of a traced number but that it is none: a sweep may set what has a number for its default."""
    jax.make_jaxpr(lambda nu: aggregators.make("rfa", variant="reference", nu=nu) and nu)(1.0)
    with pytest.raises(ConfigError, match=r"beta = .* is not allowed with variant = 'reference'"):
        aggregators.make("trimmed_mean", variant="reference", beta=jnp.float32(0.1))
