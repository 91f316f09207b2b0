"""Every field and every option is checked before anything runs, whatever the rest of the config says."""

import json
import math
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from fedjax_spmc import attacks, parts, registry
from fedjax_spmc import config as configs
from fedjax_spmc.config import listing, presets
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import Option, Range, option_from_hint, plain, quoted
from fedjax_spmc.sweep import plan
from fedjax_spmc.types import Attack
from tests import small

KINDS = [kind for _, kind in listing.PART_KINDS]
OPTIONS = [(kind, name, option) for kind in KINDS for name in kind.names() for option in kind.options(name).values()]


def wrong_values(option: Option) -> list[Any]:
    """Values of wrong types, that are not finite, and out of range."""
    wrong: list[Any] = [{}, {"a": 1}, math.nan, math.inf, -math.inf, np.float32("nan"), b"bytes", object, 1j]
    wrong += [np.datetime64("2020"), np.array({}, dtype=object), {1}]
    kind = option.kind
    wrong += [] if option.optional else [None]
    wrong += [] if option.kind is bool else [True, np.bool_(False)]
    wrong += [] if option.kind is tuple or option.name == "attack.name" else [[1], (), ["a", "b"]]
    wrong += ["no such text"] if option.kind is not str or option.choices is not None else []
    wrong += [3, 3.5] if option.kind in (bool, str, tuple) else []
    wrong += [10**400, -(10**400)] if option.kind in (int, float) else []
    wrong += [1.0, 1.5] if option.kind is int else []
    if option.range is not None:
        low, high = option.range.low, option.range.high
        wrong += [math.nextafter(high, math.inf)] if option.kind is float and math.isfinite(high) else []
        wrong += [math.nextafter(low, -math.inf)] if option.kind is float and math.isfinite(low) else []
        wrong += [high + 1, low - 1] if option.kind is int else []
        wrong += [kind(low)] if option.range.low_open else []
        wrong += [kind(high)] if option.range.high_open else []
    return wrong


def sentence(label: str, value: Any, option: Option) -> str:
    """All but what may be meant, in brackets."""
    return f"{label} = {quoted(plain(value))} is not allowed: it must be {option.allowed(short=True)}."


def said_by(error: Exception) -> str:
    return re.sub(r" \(did you mean [^?]*\?\)\.$", ".", str(error))


@pytest.mark.parametrize("field", configs.FIELDS.values(), ids=configs.FIELDS)
@pytest.mark.parametrize("attack", ["badnets", "none"])
def test_every_field_refuses_every_wrong_value(field, attack):
    """Also those that the chosen attack or partition would not use."""
    for value in wrong_values(field):
        config = small.config(attack__name=attack, partition__name="iid")
        configs.set_field(config, field.name, value)
        with pytest.raises(ConfigError) as caught:
            configs.resolve(config)
        assert said_by(caught.value) == sentence(field.name, value, field)


@pytest.mark.parametrize("field", configs.FIELDS.values(), ids=configs.FIELDS)
def test_the_ends_of_every_range_are_allowed(field):
    if field.range is None:
        assert field.check(field.default) == field.default
        return
    if not field.range.low_open:
        assert field.check(field.range.low) == field.range.low
    if not field.range.high_open:
        assert field.check(field.range.high) == field.range.high
    assert field.check(field.default) == field.default
    assert f"{field.range}" in field.allowed()


@pytest.mark.parametrize(("kind", "name", "option"), OPTIONS, ids=[f"{k.kind}-{n}-{o.name}" for k, n, o in OPTIONS])
def test_every_option_of_every_part_refuses_wrong_values(kind, name, option):
    assert option.default is None or option.check(option.default) == option.default
    for value in wrong_values(option):
        with pytest.raises(ConfigError) as caught:
            kind.make(name, **{option.name: value})
        assert said_by(caught.value) == sentence(option.name, value, option)


def test_unknown_options_list_the_known_ones():
    for kind in KINDS:
        for name in kind.names():
            with pytest.raises(ConfigError, match=f"bogus is no option of {kind.kind} {name}; it knows"):
                kind.make(name, bogus=1)
        with pytest.raises(ConfigError, match="'bogus' is unknown: it must be one of "):
            kind.make("bogus")


@pytest.mark.parametrize("section", configs.PARTS)
def test_options_in_the_config_are_named_in_full(section):
    config = small.config()
    with pytest.raises(ConfigError, match=rf"^{section}\.options\.bogus is no option of {section}\.\w+ = "):
        configs.resolve(_with(config, f"{section}.options.bogus", 1))
    for name, option in configs.part_options(config, section).items():
        path = f"{section}.options.{name}"
        for value in wrong_values(option):
            with pytest.raises(ConfigError) as caught:
                configs.resolve(_with(small.config(), path, value))
            assert said_by(caught.value) == sentence(path, value, option)


def _with(config, path, value):
    configs.set_field(config, path, value)
    return config


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("federation.clients_per_round", 5, ("at most", "federation.num_clients = 4")),
        ("attack.malicious_fraction", 1.25, ("[0, 1]",)),
        ("attack.trigger", "bogus", ("fdcr_paper",)),
        ("bogus", 1, ("no field",)),
        ("federation.bogus", 1, ("no field", "federation.rounds")),
        ("federation", 3, ("no field",)),
        ("aggregator.options", 3, ("no field", "aggregator.options.NAME")),
        ("plugins", ("no_such_module",), ("no_such_module", "cannot be imported")),
        ("plugins", (3,), ("cannot be imported",)),
        ("attack.name", (), ("()",)),
        ("attack.name", ("badnets", "bogus"), ("'bogus'", "fedjax-spmc list attacks")),
        ("attack.name", ("badnets", 3), ("3",)),
    ],
)
def test_what_does_not_fit_is_refused(path, value, words):
    with pytest.raises(ConfigError) as caught:
        configs.resolve(_with(small.config(), path, value))
    for word in (path, *words):
        assert word in str(caught.value)


def test_a_schedule_cannot_end_before_it_begins():
    config = small.config(attack__schedule__first=3, attack__schedule__last=2)
    with pytest.raises(ConfigError, match=r"attack\.schedule\.last = 2 .* attack\.schedule\.first = 3\.$"):
        configs.resolve(config)


@pytest.mark.parametrize("value", [None, 3, "text", [1]])
def test_a_config_is_a_mapping(value):
    with pytest.raises(ConfigError, match="must be a ConfigDict"):
        configs.resolve(value)


def test_resolving_writes_everything_out_and_is_idempotent():
    config = small.config()
    resolved = configs.resolve(config)
    flat = configs.flatten(resolved)
    assert configs.FIELDS.keys() <= flat.keys()
    assert flat["aggregator.options.temperature"] == 1.0
    reread = json.loads(json.dumps(configs.to_plain(resolved), allow_nan=False))
    assert configs.differing_fields(configs.resolve(reread), resolved) == []
    assert configs.flatten(configs.resolve({})) == configs.flatten(configs.resolve(configs.default_config()))


def test_numbers_get_their_own_types():
    config = small.config(local__learning_rate=1, seed=np.int64(3), local__momentum=np.float32(0.5))
    config.aggregator.options.temperature = jnp.float32(2)
    flat = configs.flatten(configs.resolve(config))
    values = [
        flat[name] for name in ("local.learning_rate", "seed", "local.momentum", "aggregator.options.temperature")
    ]
    assert [(type(value), value) for value in values] == [(float, 1.0), (int, 3), (float, 0.5), (float, 2.0)]


def forms(value: Any) -> list[Any]:
    """A value as people have it who compute their settings: scalars and arrays of NumPy and of JAX."""
    if isinstance(value, (tuple, list)):
        return [np.array(value), [np.array(item) for item in value], tuple(map(np.array, value))]
    made = [np.array(value), np.asarray(value)[()], np.array(value, dtype=object)]
    return made if isinstance(value, str) else [*made, jnp.asarray(value)]


def is_plain(value: Any) -> bool:
    inside = all(map(is_plain, value)) if isinstance(value, (tuple, list)) else True
    return inside and type(value) in (bool, int, float, str, tuple, list, type(None))


def allowed_value(option: Option) -> Any:
    """Something that an option takes, exact in float32."""
    if option.kind is tuple:
        return (1, 2)
    if option.default is not None:
        return 0.25 if option.kind is float and 0.25 in (option.range or Range()) else option.default
    choices = option.choices() if callable(option.choices) else option.choices
    if choices is not None:
        return choices[0]
    return {int: 1, float: 0.25, str: "text", bool: True}[option.kind]


EVERY = {**configs.FIELDS, **{f"{kind.kind}-{name}-{one.name}": one for kind, name, one in OPTIONS}}


@pytest.mark.parametrize("option", EVERY.values(), ids=EVERY)
def test_every_field_and_option_takes_numbers_of_numpy(option):
    value = allowed_value(option)
    wanted = option.check(value)
    for form in forms(value):
        if option.traced and isinstance(form, jax.Array):
            continue  # it may be traced, and goes on as it is
        checked = option.check(form)
        assert (checked, type(checked)) == (wanted, type(wanted)), form
        assert is_plain(checked)


@pytest.mark.parametrize(
    ("value", "same"),
    [
        (np.int8(3), 3), (np.uint64(2**40), 2**40), (np.bool_(True), True), (np.float16(0.5), 0.5),
        (np.float32(0.1), 0.10000000149011612), (np.longdouble(0.25), 0.25), (jnp.bfloat16(0.5), 0.5),
        (np.str_("x"), "x"), (np.arange(3), [0, 1, 2]), ((np.int32(1), [np.float64(2)]), (1, [2.0])),
        (np.array([np.int64(1), "a", None], dtype=object), [1, "a", None]), ("x", "x"), (None, None),
    ],
)  # fmt: skip
def test_values_become_pythons_own(value, same):
    assert plain(value) == same
    assert is_plain(plain(value))


@pytest.mark.parametrize("path", ["seed", "attack.name", "attack.options.positions"])
def test_lists_that_hold_themselves_are_refused(path):
    endless: list[Any] = []
    endless.append(endless)
    config = small.config()
    configs.set_field(config, path, endless)
    with pytest.raises(ConfigError, match=rf"^{path} is not allowed: it must not hold lists more than 32 deep"):
        configs.resolve(config)


def test_a_config_of_numpy_is_the_config_of_plain_numbers():
    """Also in lists of options, in names, and in sections of a file."""
    numbers: dict[str, Any] = {
        "federation.rounds": 3, "local.momentum": 0.5, "data.augment": False, "attack.poison_fraction": 0.25,
        "local.schedule": "step", "local.schedule_milestones": [1, 2], "attack.name": ["badnets", "none"],
        "attack.options.badnets.positions": [[0, 1, 2]], "attack.options.value": 0.5, "seed": 7,
    }  # fmt: skip
    made = [small.config(), small.config()]
    for path, value in numbers.items():
        configs.set_field(made[0], path, value)
        configs.set_field(made[1], path, forms(value)[0])
    flat, other = (configs.flatten(configs.resolve(configs.editable_copy(config))) for config in made)
    assert flat == other
    assert all(map(is_plain, other.values()))
    assert json.dumps(configs.to_plain(configs.resolve(made[1])), allow_nan=False)


def test_an_array_option_takes_a_tracer_and_the_config_checks_arrays():
    make = registry.aggregators.make
    jax.make_jaxpr(lambda t: make("spmc", temperature=t) and t)(1.0)
    config = small.config()
    config.aggregator.options.temperature = jnp.float32(jnp.nan)
    with pytest.raises(ConfigError, match=r"aggregator\.options\.temperature = nan"):
        configs.resolve(config)


# Lists of attacks.


@pytest.mark.parametrize(
    ("value", "names", "malicious"),
    [
        ("badnets", "badnets", 1),
        (("badnets",), "badnets", 1),
        (["badnets", "none"], ("badnets", "none"), 1),
        ("none", "none", 0),
        (("none",), "none", 0),
    ],
)
def test_lists_of_attacks(value, names, malicious):
    resolved = configs.resolve(small.config(attack__name=value))
    assert configs.resolved_name(resolved, "attack") == names
    assert configs.num_malicious(resolved) == malicious
    assert ("positions" in resolved.attack.options) == ("badnets" in names)


def test_an_option_of_one_attack_is_written_with_its_name():
    """Typed, kept, read back, and handed to that attack alone."""
    config = configs.editable_copy(small.config())
    given = [
        ("attack.options.dba.poison_fraction", "0.25"),
        ("attack.options.badnets.positions", "((0, 1, 2),)"),
        ("attack.name", "badnets,dba"),
    ]
    assert configs.override(config, given) == []
    resolved = configs.resolve(config)
    flat = configs.flatten(resolved)
    assert flat["attack.options.dba.poison_fraction"] == 0.25
    assert flat["attack.options.badnets.positions"] == ((0, 1, 2),)
    assert flat["attack.options.positions"] is None
    reread = json.loads(json.dumps(configs.to_plain(resolved), allow_nan=False))
    assert configs.differing_fields(configs.resolve(reread), resolved) == []
    assert configs.differing_fields(configs.resolve(resolved), resolved) == []
    made = attacks.options_by_part(("badnets", "dba"), configs.attack_options(resolved))
    assert [made[name]["poison_fraction"] for name in ("badnets", "dba")] == [0.5, 0.25]
    assert [made[name]["positions"] for name in ("badnets", "dba")] == [((0, 1, 2),), None]
    assert "dba.poison_fraction" in configs.array_options(resolved, "attack")
    other = configs.override(config, [("attack.name", "badnets")])
    assert "dropped attack.options {" in other[0]
    assert configs.attack_options(configs.resolve(config))["positions"] is None


def test_an_option_of_one_attack_sweeps_in_one_program():
    base = small.config(attack__name=("badnets", "dba"), aggregator__name="mean", local__rule="sgd")
    cells = plan.expand(plan.Sweep(base, grid={"attack.options.dba.poison_fraction": [0.25, 0.5]}))
    assert [cell.config.attack.options.dba.poison_fraction for cell in cells] == [0.25, 0.5]
    assert len(plan.groups_of(cells)) == 1


def test_a_target_of_one_attack_is_a_class():
    config = configs.resolve(small.config(attack__options__badnets__target_label=10))
    info = DatasetInfo("synthetic", 10, (32, 32, 3), (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(ConfigError, match=r"^attack\.options\.badnets\.target_label = 10 .* 0 to 9\.$"):
        parts.check_fits(config, info)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            "attack.options.dba.value",
            1.0,
            ("is no option of attack.name = badnets; it knows poison_per_batch, positions, space, value.",),
        ),
        ("attack.options.badnets.bogus", 1, ("is no option of attack.name = badnets; it knows",)),
        ("attack.options.badnets.poison_fraction", 1.5, (" = 1.5 is not allowed", "[0, 1]")),
        ("attack.options.badnets", 3, ("is no option of attack.name = badnets",)),
    ],
)
def test_an_option_of_one_attack_that_is_not_allowed(path, value, words):
    with pytest.raises(ConfigError) as caught:
        configs.resolve(_with(small.config(), path, value))
    for word in words:
        assert word in str(caught.value)
    if path.count(".") == 3:
        with pytest.raises(ConfigError) as typed:
            configs.parse_override(small.config(), path, str(value))
        assert words[0] in str(typed.value)
    assert "attack.options" in str(caught.value)


def test_a_value_cannot_be_a_section():
    config = _with(small.config(), "attack.options.badnets", 3)
    with pytest.raises(ConfigError, match=r"^attack\.options\.badnets\.value is no field"):
        configs.set_field(config, "attack.options.badnets.value", 1.0)


def test_attacks_that_differ_in_a_default_keep_their_own():
    def other(value: float = 7.0, count: int = 3) -> Attack:
        """Takes `value` too."""
        return Attack(after_step=lambda ctx, own, params, client_id, step: params)

    with registry.attacks.temporary("other", other):
        resolved = configs.resolve(small.config(attack__name=("badnets", "other")))
        assert "value" not in resolved.attack.options
        assert resolved.attack.options.count == 3
        attacks.make(("badnets", "other"), **configs.attack_options(resolved))
        given = configs.resolve(small.config(attack__name=("badnets", "other"), attack__options__value=2.0))
        assert given.attack.options.value == 2.0


def test_rounds_without_an_attack_must_find_enough_benign_clients():
    fields = {"sampling__options__attackers": "forced_only", "attack__malicious_fraction": 0.5}
    configs.resolve(small.config(federation__clients_per_round=2, **fields))
    configs.resolve(small.config(federation__clients_per_round=4, attack__name="none", **fields))
    words = r"^federation\.clients_per_round = 3 .* 'forced_only', .* at most 2, the number of benign clients\.$"
    with pytest.raises(ConfigError, match=words):
        configs.resolve(small.config(federation__clients_per_round=3, aggregator__name="mean", **fields))


def test_malicious_clients_are_counted_in_exact_decimals():
    def count(clients, fraction):
        config = small.config(
            federation__num_clients=clients, federation__clients_per_round=1, attack__malicious_fraction=fraction
        )
        return configs.num_malicious(configs.resolve(config))

    assert [count(10, 0.3), count(10, 0.29), count(4, 1.0), count(4, 0), count(1, 0.99)] == [3, 2, 4, 0, 0]
    assert [count(100, 0.29), count(50, 0.58), count(1000, 0.001)] == [29, 29, 1]


# The command line.


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("local.learning_rate", "1e-2", 0.01),
        ("local.learning_rate", "1", 1.0),
        ("local.learning_rate", " .5 ", 0.5),
        ("seed", "1_000", 1000),
        ("seed", "0x10", 16),
        ("data.augment", "True", True),
        ("data.augment", "false", False),
        ("data.limit_train", "none", None),
        ("data.limit_train", "None", None),
        ("data.limit_train", "auto", None),
        ("data.limit_train", "7", 7),
        ("data.data_dir", "none", None),
        ("data.data_dir", "/a=b/c,d", "/a=b/c,d"),
        ("data.data_dir", "3", "3"),
        ("plugins", "a.b, c", ("a.b", "c")),
        ("plugins", "('a',)", ("a",)),
        ("plugins", "[]", ()),
        ("plugins", "a", ("a",)),
        ("attack.name", "badnets", "badnets"),
        ("attack.name", "badnets,none", ("badnets", "none")),
        ("attack.name", "['badnets', 'none']", ("badnets", "none")),
        ("attack.name", "(badnets,)", "badnets"),
        ("attack.schedule.last", "null", None),
        ("attack.options.positions", "((0, 1, 2), (0, 1, 3))", ((0, 1, 2), (0, 1, 3))),
        ("attack.options.positions", "none", None),
        ("attack.options.space", "raw", "raw"),
        ("attack.options.badnets.value", "2", 2.0),
        ("aggregator.options.temperature", "2", 2.0),
    ],
)
def test_values_on_the_command_line(path, text, value):
    parsed = configs.parse_override(small.config(), path, text)
    assert (type(parsed), parsed) == (type(value), value)


@pytest.mark.parametrize("field", configs.FIELDS.values(), ids=configs.FIELDS)
def test_wrong_texts_on_the_command_line(field):
    texts = ["", "1is", "{[]: 1}", "{}", "'", "0x" + "f" * 5000, "(" * 500, "nan", "inf", "-1", "1e999", "\\d", "1j"]
    for text in texts:
        if field.kind in (str, tuple) and field.choices is None:
            configs.FIELDS[field.name].parse(text) if field.kind is str else None
            continue
        with pytest.raises(ConfigError) as caught:
            configs.parse_override(small.config(), field.name, text)
        assert str(caught.value).startswith(f"{field.name} = ")
        assert field.allowed(short=True) in str(caught.value)
        assert len(str(caught.value)) < 400


def test_of_a_list_of_attacks_the_options_of_those_that_stay_are_kept():
    config = small.config(attack__name=("badnets", "neurotoxin"))
    for name, value in {"value": 0.3, "ratio": 0.9, "neurotoxin.scope": "per_tensor", "badnets.value": 0.4}.items():
        configs.set_field(config, f"attack.options.{name}", value)
    notices = configs.override(config, [("attack.name", "badnets,pgd")])
    assert configs.to_plain(config.attack.options) == {"value": 0.3, "badnets": {"value": 0.4}}
    assert "dropped attack.options {'neurotoxin.scope': 'per_tensor', 'ratio': 0.9} of the preset" in notices[0]
    assert configs.override(config, [("attack.name", "badnets")]) == []
    configs.resolve(config)
    configs.override(config, [("attack.name", "dba")])
    assert configs.to_plain(config.attack.options) == {}


def test_overriding_a_name_drops_the_presets_of_the_old_one():
    config = presets.make_config("fedavg,reference")
    assert config.aggregator.options.weights == "uniform"
    notices = configs.override(
        config, [("local.epochs", "2"), ("aggregator.options.temperature", "3"), ("aggregator.name", "spmc")]
    )
    assert notices == ["aggregator.name is now spmc: dropped aggregator.options {'weights': 'uniform'} of the preset."]
    resolved = configs.resolve(config)
    assert (resolved.aggregator.name, resolved.aggregator.options.temperature) == ("spmc", 3.0)
    same = presets.make_config("fedavg,reference")
    assert configs.override(same, [("aggregator.name", "mean")]) == []
    assert same.aggregator.options.weights == "uniform"


def test_loosened_takes_any_config_and_any_type():
    strict = ConfigDict({"seed": 1, "local": {"learning_rate": 1}})
    strict.lock()
    loose = configs.editable_copy(strict)
    configs.override(loose, [("local.learning_rate", "0.5"), ("aggregator.name", "mean")])
    resolved = configs.resolve(loose)
    assert (resolved.seed, resolved.local.learning_rate, resolved.aggregator.name) == (1, 0.5, "mean")
    with pytest.raises(ConfigError, match="local is no field"):
        configs.editable_copy({"local": 3})


def test_presets_name_what_is_known_and_never_the_model():
    with pytest.raises(ConfigError, match=r"preset 'bogus' is unknown: it must be one of .*`fedjax-spmc list presets`"):
        presets.make_config("bogus")
    with pytest.raises(ConfigError, match="exclude each other"):
        presets.make_config("fedavg,spmc")
    for word in presets.descriptions():
        config = presets.make_config(word, model__name="mlp")
        assert configs.resolve(config).model.name == "mlp"
        assert configs.resolve(presets.make_config(f" {word} ,, reference")).local.rule == config.local.rule


# The words of the messages.


def test_ranges_and_values_are_told_exactly():
    assert str(Range(0, 2**32 - 1)) == "[0, 4294967295]"
    assert str(Range(0, 1e9, low_open=True)) == "(0, 1e+09]"
    assert str(Range(0.25)) == "[0.25, inf)"
    assert str(Range()) == "(-inf, inf)"
    assert quoted("a\nb") == r"'a\nb'"
    assert len(quoted("x" * 1000)) < 120
    assert quoted(10**5000) == "a number of thousands of digits"


def test_hints_that_cannot_be_checked_are_a_fault_of_the_factory():
    with pytest.raises(TypeError, match="union"):
        option_from_hint("x", int | str, 1)
    with pytest.raises(TypeError, match="none of bool"):
        option_from_hint("x", dict, {})
    assert option_from_hint("x", Literal["a", "b"] | None, None).allowed() == "one of a, b or None"
