"""The config: its fields, presets, checks, and the overrides of the command line.

from fedjax_spmc.config import make_config, resolve

config = resolve(make_config("spmc", data__name="digits"))
"""

from fedjax_spmc.config.fields import (
    ATTACK_FIELDS,
    FIELDS,
    FREE_FIELDS,
    HYPER,
    PARTS,
    SECTION_FIELDS,
    Config,
    default_config,
    fields_of_result,
    flatten,
    plain,
    set_field,
    to_plain,
)
from fedjax_spmc.config.overrides import loosened, override, parse_override
from fedjax_spmc.config.presets import make_config
from fedjax_spmc.config.resolving import (
    array_options,
    attack_options,
    difference,
    method_title,
    num_malicious,
    part_options,
    recorded,
    resolve,
    resolved_name,
)

__all__ = [
    "ATTACK_FIELDS",
    "FIELDS",
    "FREE_FIELDS",
    "HYPER",
    "PARTS",
    "SECTION_FIELDS",
    "Config",
    "array_options",
    "attack_options",
    "default_config",
    "difference",
    "fields_of_result",
    "flatten",
    "loosened",
    "make_config",
    "method_title",
    "num_malicious",
    "override",
    "parse_override",
    "part_options",
    "plain",
    "recorded",
    "resolve",
    "resolved_name",
    "set_field",
    "to_plain",
]
