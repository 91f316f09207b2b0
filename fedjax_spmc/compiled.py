"""Programs that were compiled in this process, so that a second run of the same program compiles nothing.

Two runs share their programs where their configs differ in nothing that a program closes over (the seed, folders, how
often is recorded), on the same data, with the same parts: a part that was registered anew under an old name is another.
Few are kept, as each holds what its program closes over.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from fedjax_spmc import config as configs
from fedjax_spmc import registry

T = TypeVar("T")
KEPT = 8
"""Programs that are kept; a run has three: start, round, evaluation."""
FREE = {"seed", "model.start", "federation.eval_every"}
"""Fields that no program closes over, beside those that touch no number."""

_programs: "OrderedDict[Hashable, Any]" = OrderedDict()


def key_of(config: Any, fingerprint: str) -> Hashable:
    """What the programs of a run depend on.

    Args:
        config: resolved.
        fingerprint: of the data set.
    """
    flat = configs.flatten(config)
    counted = flat["local.schedule"] != "constant" or registry.aggregators.needs(flat["aggregator.name"], "rounds")
    free = FREE if counted else FREE | {"federation.rounds"}  # few parts know how long the run is
    fields = {path: value for path, value in configs.result_fields(flat).items() if path not in free}
    parts = []
    for kind, field in configs.SECTIONS.values():
        named = flat[field] if isinstance(flat[field], (tuple, list)) else [flat[field]]
        parts += [kind.factory(name) for name in named if name in kind.names()]
    read_from = flat["data.data_dir"]  # an attack may hold other data than those of the fingerprint
    return fingerprint, read_from, tuple((path, repr(value)) for path, value in sorted(fields.items())), tuple(parts)


def kept(kind: str, key: Hashable, make: Callable[[], T]) -> T:
    """The program of this kind and key, made where there is none; key None = it is made and not kept."""
    if key is None:
        return make()
    place = kind, key
    if place not in _programs:
        _programs[place] = make()
        while len(_programs) > KEPT:
            _programs.popitem(last=False)
    _programs.move_to_end(place)
    return _programs[place]


def forget() -> None:
    """Drops all programs."""
    _programs.clear()
