"""A stand-in for `ml_collections.ConfigDict`, for machines on which it is missing and nothing can be installed."""

import sys
from types import ModuleType
from typing import Any


class ConfigDict(dict[str, Any]):
    """A dict whose entries are attributes too, and whose dicts are such dicts: as much of it as the package uses."""

    def __init__(self, entries: Any = (), type_safe: bool = True):
        super().__init__()
        del type_safe
        for name, value in dict(entries).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, ConfigDict(value) if type(value) is dict else value)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]


def stand_in() -> None:
    """Puts the stand-in where the package looks for `ml_collections`."""
    module = ModuleType("ml_collections")
    module.ConfigDict = ConfigDict  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules["ml_collections"] = module
