"""The plan of a sweep: a base config and a grid become cells, and cells that can share a program become groups."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_spmc import config as configs
from fedjax_spmc import setup
from fedjax_spmc.config import presets
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import Option, quoted
from fedjax_spmc.reading import reason_of

METHOD = "method"
"""A field of the grid that is no field of the config: presets, as behind `--config=FILE:`."""

HOST_FIELDS = (
    "seed", "model.start", "partition.name", "partition.beta", "partition.min_size", "partition.shards",
    "attack.malicious_fraction", "attack.placement", "attack.schedule.first", "attack.schedule.last",
    "attack.schedule.every", "attack.schedule.turns",
)  # fmt: skip
"""Fields that no program sees: index lists, the roster and the key are made of them, and those are data."""

Rule = Mapping[str, Any] | Callable[[Mapping[str, Any]], bool]
"""Which cells to leave out: those whose swept fields have the given values (each may be a list), or for which the
function returns True."""


class Sweep(NamedTuple):
    """Many experiments around one config.

    Attributes:
        base: the config that all cells start from.
        grid: dotted path of a field, or "method" for presets -> the values that it takes; every combination is a cell.
        seeds: every cell is played once with each.
        leave_out: cells that match any of these rules are left out.
        keep_models: whether each cell's final model is kept.
    """

    base: Any
    grid: Mapping[str, Sequence[Any]] = {}
    seeds: Sequence[int] = (0,)
    leave_out: Sequence[Rule] = ()
    keep_models: bool = True


class Cell(NamedTuple):
    """One experiment of a sweep: one row of its table.

    Attributes:
        fields: the swept fields and their values.
        config: resolved; the seed is in it.
        id: sixteen hex digits over all fields that touch the numbers; never to be mistaken for a number.
    """

    fields: dict[str, Any]
    config: Any
    id: str

    def title(self) -> str:
        """The swept fields and the seed as text."""
        return fields_text(self.fields | {"seed": self.config.seed})


class Group(NamedTuple):
    """Cells that one compiled program can play, because they differ only in arrays."""

    key: str
    cells: tuple[Cell, ...]


def fields_text(fields: Mapping[str, Any]) -> str:
    """Fields for a reader: `data.name=cifar10 method=spmc`."""
    return " ".join(f"{name}={value}" for name, value in fields.items())


def as_sweep(content: Any) -> Sweep:
    """A `Sweep` from what a config file returned: a `Sweep`, or a mapping of its fields.

    Raises:
        ConfigError: it is neither, or a field is missing, unknown or of the wrong type.
    """
    if hasattr(content, "items") and not isinstance(content, Sweep):
        fields = dict(content.items())
        if "federation" in fields:
            raise ConfigError(
                "this is the config of one experiment: a sweep around it is Sweep(base=..., seeds=(0, 1))."
            )
        unknown = sorted(map(str, fields.keys() - set(Sweep._fields)))
        if unknown or "base" not in fields:
            what = f"{unknown[0]} is no field" if unknown else "base is missing"
            raise ConfigError(f"a sweep's config knows {', '.join(Sweep._fields)}: {what}.")
        content = Sweep(**fields)
    if not isinstance(content, Sweep):
        raise ConfigError(f"a sweep's get_config returns {quoted(content)} and must return a Sweep.")
    if not hasattr(content.grid, "items"):
        raise ConfigError(f"grid = {quoted(content.grid)} is not allowed: it must map fields to lists of values.")
    grid = {name: _listed(values, f"grid.{name}") for name, values in content.grid.items()}
    for name, values in grid.items():
        if name == "seed":
            raise ConfigError("grid.seed is not allowed: the seeds of a sweep are its field seeds.")
        if not isinstance(values, list) or not values:
            raise ConfigError(f"grid.{name} = {quoted(values)} is not allowed: it must be a list of one value or more.")
    seeds = _listed(content.seeds, "seeds")
    if not isinstance(seeds, list) or not seeds:
        meant = f" (did you mean range({seeds})?)" if type(seeds) is int and seeds > 0 else ""
        raise ConfigError(f"seeds = {quoted(seeds)} is not allowed: it must be a list of whole numbers{meant}.")
    leave_out: list[Rule] = []
    if not isinstance(content.leave_out, (list, tuple)):
        raise ConfigError(f"leave_out = {quoted(content.leave_out)} is not allowed: it must be a list of rules.")
    for rule in content.leave_out:
        if not callable(rule) and not (hasattr(rule, "keys") and set(rule) <= set(grid)):
            raise ConfigError(
                f"leave_out = {quoted(rule)} is not allowed: it must map swept fields ({', '.join(grid)})."
            )
        leave_out.append(rule if callable(rule) else {name: configs.plain(value) for name, value in rule.items()})
    keep_models = Option("keep_models", bool, True).check(content.keep_models)
    return content._replace(grid=grid, seeds=seeds, leave_out=leave_out, keep_models=keep_models)


def _listed(values: Any, label: str) -> Any:
    """Values as a list of Python's own, whatever kind of list they are; anything else as it is."""
    return configs.plain(list(values) if isinstance(values, range) else values, label)


def expand(sweep: Sweep) -> list[Cell]:
    """All cells, each with its config checked, in the order of the grid; the seed varies fastest.

    Raises:
        ConfigError: a cell's config is refused, or two cells are the same; the cell's fields are named.
    """
    names = list(sweep.grid)
    cells: list[Cell] = []
    refused: list[str] = []
    for values in itertools.product(*sweep.grid.values()):
        fields = dict(zip(names, map(configs.plain, values), strict=True))
        if any(_matches(rule, fields) for rule in sweep.leave_out):
            continue
        for seed in sweep.seeds:
            try:
                config = _cell_config(sweep.base, fields, seed)
            except ConfigError as error:
                refused.append(f"cell {fields_text(fields | {'seed': seed})} is refused: {error}")
            else:
                cells.append(Cell(fields, config, cell_id(config)))
    if refused:
        more = f" ({len(refused)} cells of the grid are refused, this is the first.)" if len(refused) > 1 else ""
        raise ConfigError(refused[0] + more)
    if not cells:
        raise ConfigError("leave_out is not allowed like this: it must leave at least one cell of the grid.")
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.id in seen:
            other = seen[cell.id]
            free = [name for name in configs.CHANGEABLE_FIELDS if cell.fields.get(name) != other.fields.get(name)]
            why = f": {', '.join(free)} may change on a finished run and cannot be swept" if free else ""
            raise ConfigError(f"cells {other.title()} and {cell.title()} are the same experiment{why}.")
        seen[cell.id] = cell
    return cells


def _matches(rule: Rule, fields: Mapping[str, Any]) -> bool:
    if callable(rule):
        try:
            return bool(rule(fields))
        except Exception as error:  # it is the user's code: it may raise anything
            raise ConfigError(f"leave_out fails with {reason_of(error, named=True)}.") from None
    wanted = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in rule.items()}
    return all(fields[name] in values or fields[name] == values for name, values in wanted.items())


def _cell_config(base: Any, fields: Mapping[str, Any], seed: int) -> Any:
    config = configs.editable_copy(base)
    if METHOD in fields:
        if not isinstance(fields[METHOD], str):
            raise ConfigError(f"{METHOD} = {quoted(fields[METHOD])} is not allowed: it must be presets, as text.")
        _assign(config, presets.preset_fields(fields[METHOD]))
    _assign(config, {name: value for name, value in fields.items() if name != METHOD} | {"seed": seed})
    return configs.resolve(config)


def _assign(config: Any, changes: Mapping[str, Any]) -> None:
    """Sets fields, first those that name parts: the options of a part that is replaced are dropped."""
    naming = {field: section for section, (_, field) in configs.SECTIONS.items()}
    for path in sorted(changes, key=lambda path: path not in naming):
        if path in naming:
            section = naming[path]
            configs.replace_options(config, section, configs.kept_options(config, section, changes[path]))
        configs.set_field(config, path, changes[path])


def _hash(flat: Mapping[str, Any]) -> str:
    name = hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()[:16]
    try:
        float(name)
    except ValueError:
        return name
    # Digits alone, or with one e among them: pandas would read it as a number, and as another one.
    return "abcdefabcd"[int(name[0])] + name[1:]


def cell_id(config: Any) -> str:
    """Names an experiment; unlike the name of a run folder it tells numbers of rounds apart."""
    return _hash(configs.result_fields(configs.flatten(config)))


def program_key(config: Any) -> str:
    """Equal for configs that one compiled program can play."""
    known = configs.attack_options(config)
    inert = {f"attack.{name}" for name in configs.ATTACK_FIELDS if name not in known}
    arrays = {f"local.{name}" for name in configs.hyperparameters(config)}
    arrays |= {f"server.{name}" for name in configs.server_settings(config)}
    for section in ("local", "aggregator", configs.PRE, "attack"):
        for name in configs.array_options(config, section):
            own = section == "attack" and name in configs.ATTACK_FIELDS
            arrays.add(f"attack.{name}" if own else f"{configs.OPTION_PATHS[section]}.{name}")
    shape = {
        path: value
        for path, value in configs.result_fields(configs.flatten(config)).items()
        if path not in {*HOST_FIELDS, *inert}
    }
    if config.local.schedule != "constant":  # the factors of all rounds are one array
        shape = {path: value for path, value in shape.items() if not path.startswith("local.schedule_")}
        shape["local.schedule"] = "an array"
    # An option that is None is left to the rule, which is another program than any number.
    shape |= {path: "an array" for path in arrays if shape.get(path) is not None}
    return _hash(shape | {"oracle": setup.is_oracle(config)})


def data_key(config: Any) -> str:
    """Equal for configs that read the same data."""
    return _hash({path: value for path, value in configs.flatten(config).items() if path.startswith("data.")})


def groups_of(cells: Iterable[Cell]) -> list[Group]:
    """The groups, in order of their first cells, but those of one data set one after another."""
    by_data: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        same_data = by_data.setdefault(data_key(cell.config), {})
        same_data.setdefault(program_key(cell.config), []).append(cell)
    return [Group(key, tuple(members)) for groups in by_data.values() for key, members in groups.items()]


def common_fields(group: Group) -> dict[str, Any]:
    """The swept fields that all cells of a group share."""
    first = group.cells[0].fields
    return {name: value for name, value in first.items() if all(cell.fields[name] == value for cell in group.cells)}
