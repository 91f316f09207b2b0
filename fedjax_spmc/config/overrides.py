"""The overrides of the command line: `--config.FIELD=VALUE` on top of a config."""

from collections.abc import Iterable, Mapping
from typing import Any

from fedjax_spmc import registry
from fedjax_spmc.config import advice
from fedjax_spmc.config.fields import (
    FIELDS,
    OPTION_PATHS,
    PRE,
    SECTIONS,
    Config,
    default_config,
    flatten,
    option_at,
    options_in,
    plain,
    set_field,
    unknown_field,
)
from fedjax_spmc.config.resolving import (
    check_field,
    names_text,
    options_of_one,
    part_options,
    resolved_name,
    resolved_names,
)
from fedjax_spmc.errors import ConfigError


def editable_copy(config: Config) -> Config:
    """A copy that has every section and takes values of any type, ready for `override`.

    Raises:
        ConfigError: an unknown field.
    """
    loose = default_config()
    for path, value in flatten(config).items():
        if path not in FIELDS and not option_at(path)[0]:
            raise ConfigError(unknown_field(path))
        set_field(loose, path, value)
    return loose


def parse_override(config: Config, path: str, text: str) -> Any:
    """The value of `--config.PATH=TEXT`, typed by the field or by the option of the chosen part."""
    section, name = option_at(path)
    if section:
        alike = part_options(config, section)
        known = alike | options_of_one(config, section)
        if name not in known:
            owner = f"{SECTIONS[section][1]} = {names_text(resolved_name(config, section))}"
            raise advice.unknown_option(section, name, owner, alike)
        advice.refuse_several(path, text, known[name])
        return known[name].parse(text, path)
    if path not in FIELDS:
        section, _, name = path.partition(".")
        if section in OPTION_PATHS and name in part_options(config, section):
            right = f"{OPTION_PATHS[section]}.{name}"
            raise ConfigError(f"{path} is no field of the config but an option (did you mean {right}?).")
        raise ConfigError(unknown_field(path))
    if path in ("attack.name", PRE) and any(sign in text for sign in ",(["):
        parts = [word.strip("'\" ") for word in text.strip("()[] ").split(",")]
        return check_field(path, tuple(part for part in parts if part))
    advice.refuse_wrong_part(path, text)
    advice.refuse_several(path, text, FIELDS[path])
    value = FIELDS[path].parse(text, path)
    return check_field(path, value) if path == PRE else value


def override(config: Config, assignments: Iterable[tuple[str, str]]) -> list[str]:
    """Applies the overrides of the command line in place: first the fields that name a part, then the rest.

    Returns:
        Notices for the user: overriding the name of a part drops the options that a preset gave the old one.

    Raises:
        ConfigError: an unknown field or option, a wrong type, a value out of range.
    """
    notices = []
    assignments = list(assignments)
    naming = {field: section for section, (_, field) in SECTIONS.items()}
    for path, text in assignments:
        if path == "plugins":
            set_field(config, path, parse_override(config, path, text))
            registry.load_plugins(config.plugins)
    for path, text in assignments:
        if path not in naming:
            continue
        value = parse_override(config, path, text)
        section = naming[path]
        kept = kept_options(config, section, value)
        dropped = {name: old for name, old in options_in(config, section).items() if name not in kept}
        if dropped:
            replace_options(config, section, kept)
            where = f"{OPTION_PATHS[section]} {dropped}"
            notices.append(f"{path} is now {names_text(value)}: dropped {where} of the preset.")
        set_field(config, path, value)
    for path, text in assignments:
        if path not in naming and path != "plugins":
            set_field(config, path, parse_override(config, path, text))
    return notices


def kept_options(config: Config, section: str, value: Any) -> dict[str, Any]:
    """Of a section's options those that stay when the field that names its part gets a value.

    None where it changes; of a list of pre-aggregators or of attacks those of the parts that stay.
    """
    given = options_in(config, section)
    listed = (value,) if isinstance(value, str) else value if isinstance(value, (tuple, list)) else ()
    if section == PRE:
        return {name: option for name, option in given.items() if name.partition(".")[0] in listed}
    if section == "attack":
        names = registry.attacks.names()
        staying = [one for one in resolved_names(config, section) if one in listed and one in names]
        known = {option for one in staying for option in registry.attacks.options(one)}
        return {name: option for name, option in given.items() if name in known or name.partition(".")[0] in staying}
    same = plain(value) == plain(resolved_name(config, section))
    return given if same else {}


def replace_options(config: Config, section: str, options: Mapping[str, Any]) -> None:
    """Puts these options in the place of all that a section has."""
    from ml_collections import ConfigDict

    set_field(config, OPTION_PATHS[section], ConfigDict(type_safe=False))
    for name, value in options.items():
        set_field(config, f"{OPTION_PATHS[section]}.{name}", value)
