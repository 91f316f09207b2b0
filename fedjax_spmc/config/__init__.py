"""The config: its fields, presets, checks, and the overrides of the command line.

from fedjax_spmc.config import make_config, resolve

config = resolve(make_config("spmc", data__name="digits"))
"""

from fedjax_spmc.config.fields import (
    ATTACK_FIELDS,
    CHANGEABLE_FIELDS,
    FIELDS,
    HYPERPARAMETERS,
    OPTION_PATHS,
    PARTS,
    PRE,
    SECTION_FIELDS,
    SECTIONS,
    Config,
    belongs_to_method,
    default_config,
    flatten,
    option_at,
    options_in,
    plain,
    result_fields,
    set_field,
    to_plain,
)
from fedjax_spmc.config.overrides import editable_copy, kept_options, override, parse_override, replace_options
from fedjax_spmc.config.presets import make_config
from fedjax_spmc.config.resolving import (
    array_options,
    attack_options,
    differing_fields,
    hyperparameters,
    method_title,
    num_malicious,
    part_options,
    resolve,
    resolved_name,
    run_title,
    server_settings,
    with_chosen_options,
)

__all__ = [
    "ATTACK_FIELDS",
    "CHANGEABLE_FIELDS",
    "FIELDS",
    "HYPERPARAMETERS",
    "OPTION_PATHS",
    "PARTS",
    "PRE",
    "SECTIONS",
    "SECTION_FIELDS",
    "Config",
    "array_options",
    "attack_options",
    "belongs_to_method",
    "default_config",
    "differing_fields",
    "editable_copy",
    "flatten",
    "hyperparameters",
    "kept_options",
    "make_config",
    "method_title",
    "num_malicious",
    "option_at",
    "options_in",
    "override",
    "parse_override",
    "part_options",
    "plain",
    "replace_options",
    "resolve",
    "resolved_name",
    "result_fields",
    "run_title",
    "server_settings",
    "set_field",
    "to_plain",
    "with_chosen_options",
]
