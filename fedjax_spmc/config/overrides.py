"""The overrides of the command line: `--config.FIELD=VALUE` on top of a config."""

from collections.abc import Iterable
from typing import Any

from fedjax_spmc import registry
from fedjax_spmc.config.fields import FIELDS, PARTS, Config, default_config, flatten, set_field, to_plain, unknown_field
from fedjax_spmc.config.resolving import check_field, names_text, options_of_one, part_options, resolved_name
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import check_options


def editable_copy(config: Config) -> Config:
    """A copy that has every section and takes values of any type, ready for `override`.

    Raises:
        ConfigError: an unknown field.
    """
    loose = default_config()
    for path, value in flatten(config).items():
        section, _, option = path.partition(".options.")
        if path not in FIELDS and not (option and section in PARTS):
            raise ConfigError(unknown_field(path))
        set_field(loose, path, value)
    return loose


def parse_override(config: Config, path: str, text: str) -> Any:
    """The value of `--config.PATH=TEXT`, typed by the field or by the option of the chosen part."""
    section, _, name = path.partition(".options.")
    if name and section in PARTS:
        alike = part_options(config, section)
        known = alike | options_of_one(config, section)
        if name not in known:
            owner = f"{PARTS[section][1]} = {names_text(resolved_name(config, section))}"
            check_options(owner, alike, {name: text}, f"{section}.options.")
        return known[name].parse(text, path)
    if path not in FIELDS:
        raise ConfigError(unknown_field(path))
    if path == "attack.name" and any(sign in text for sign in ",(["):
        parts = [word.strip("'\" ") for word in text.strip("()[] ").split(",")]
        return check_field(path, tuple(part for part in parts if part))
    return FIELDS[path].parse(text, path)


def override(config: Config, assignments: Iterable[tuple[str, str]]) -> list[str]:
    """Applies the overrides of the command line in place: first the fields that name a part, then the rest.

    Returns:
        Notices for the user: overriding the name of a part drops the options that a preset gave the old one.

    Raises:
        ConfigError: an unknown field or option, a wrong type, a value out of range.
    """
    from ml_collections import ConfigDict

    notices = []
    assignments = list(assignments)
    naming = {field: section for section, (_, field) in PARTS.items()}
    for path, text in assignments:
        if path == "plugins":
            set_field(config, path, parse_override(config, path, text))
            registry.load_plugins(config.plugins)
    for path, text in assignments:
        if path not in naming:
            continue
        value = parse_override(config, path, text)
        section = naming[path]
        dropped = to_plain(config[section].options)
        if value != resolved_name(config, section) and dropped:
            config[section].options = ConfigDict(type_safe=False)
            notices.append(f"{path} is now {names_text(value)}: dropped {section}.options {dropped} of the preset.")
        set_field(config, path, value)
    for path, text in assignments:
        if path not in naming and path != "plugins":
            set_field(config, path, parse_override(config, path, text))
    return notices
