"""Name -> factory. One registry for each kind of part; a file that registers itself joins every contract test."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from fedjax_spmc.errors import PluginError
from fedjax_spmc.options import Option, check_options, options_of, quoted
from fedjax_spmc.reading import reason_of

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Factories of one kind of part, by name.

    Args:
        kind: what the parts are, in words, as error messages name them.
        package: the package whose modules register themselves; imported at the first look-up.
        given: parameters of the factories that the simulator fills in; they are no options of the user.
        group: what `fedjax-spmc list` calls these parts.
    """

    def __init__(self, kind: str, package: str = "", given: tuple[str, ...] = (), group: str = ""):
        self.kind = kind
        self.group = group or kind
        self.given = given
        self._package = package
        self._factories: dict[str, Callable[..., T]] = {}
        self._loaded = not package

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorator that adds a factory under `name`.

        Raises:
            ValueError: the name is taken by another factory.
        """

        def add(factory: Factory) -> Factory:
            known = self._factories.get(name)
            if known is not None:
                raise ValueError(
                    f"{self.kind} {name!r} is registered twice: by {known.__module__} and {factory.__module__}"
                )
            options_of(factory, self.given)
            self._factories[name] = factory
            return factory

        return add

    @contextmanager
    def temporary(self, name: str, factory: Callable[..., T]):
        """Registers a factory for the length of a `with` block (tests)."""
        self.register(name)(factory)
        try:
            yield
        finally:
            del self._factories[name]

    def names(self) -> tuple[str, ...]:
        """The registered names, sorted."""
        self._load()
        return tuple(sorted(self._factories))

    def factory(self, name: str, field: str = "") -> Callable[..., T]:
        """The factory registered under `name`.

        Raises:
            ConfigError: there is none; the nearest names are said.
        """
        if not isinstance(name, str) or name not in self.names():
            one = Option(field or self.kind, str, None, choices=self.names, group=self.group)
            raise one.refusal(name, verdict="is unknown")
        return self._factories[name]

    def options(self, name: str, field: str = "") -> dict[str, Option]:
        """The options that the factory `name` takes."""
        return options_of(self.factory(name, field), self.given)

    def needs(self, name: str, given: str) -> bool:
        """Whether the factory `name` asks for `given`, one of the parameters that the simulator fills in."""
        return given in inspect.signature(self.factory(name)).parameters

    def describe(self, name: str) -> dict[str, dict[str, Any]]:
        """Options of `name`: option -> {"default", "allowed", "array"}, plain values for printing."""
        return {
            option.name: {"default": option.default, "allowed": option.allowed(), "array": option.traced}
            for option in self.options(name).values()
        }

    def make(self, name: str, /, **options: Any) -> T:
        """Builds the part `name`.

        Raises:
            ConfigError: (a ValueError) unknown name or option, wrong type, value out of range.
        """
        factory = self.factory(name)
        filled = {key: options.pop(key) for key in self.given if key in options}
        return factory(**check_options(f"{self.kind} {name}", self.options(name), options), **filled)

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
                importlib.import_module(f"{self._package}.{module.name}")


IN_REACH = "its folder must be the one that you stand in, or one of PYTHONPATH"


def load_plugins(modules: Sequence[str]) -> None:
    """Imports the modules of `config.plugins`, so that they register themselves.

    Raises:
        PluginError: a module cannot be imported.
    """
    for module in modules:
        if isinstance(module, str) and (module.endswith(".py") or "/" in module):
            meant = module.removesuffix(".py").rpartition("/")[2]
            raise PluginError(
                f"plugins = {quoted(module)} is not allowed: it must be a module's name and no file's (did you mean "
                f"{meant}?); {IN_REACH}."
            )
        try:
            importlib.import_module(module)
        except Exception as error:  # a plug-in is the user's code: it may raise anything
            raise PluginError(f"plugins = {quoted(module)} {_why_not_imported(module, error)}.") from None


def _why_not_imported(module: str, error: Exception) -> str:
    """What keeps a plug-in from being imported, and the way out, as the end of a sentence."""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}" if error.filename else "its file"
        return f"cannot be imported: {where} is no Python ({error.msg}); it must be mended there"
    absent = error.name if isinstance(error, ModuleNotFoundError) else None
    if absent and (absent == module or module.startswith(f"{absent}.")):
        return f"cannot be imported: there is no module {absent} on the Python path; {IN_REACH}"
    return f"cannot be imported ({reason_of(error, named=True)}{_line_of(error)}): it must be mended there"


def _line_of(error: Exception) -> str:
    """Where an exception was raised, as the end of a phrase."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" in {trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"


aggregators: Registry = Registry(
    "aggregator", "fedjax_spmc.aggregators", given=("server", "network", "rounds"), group="aggregators"
)
preaggregators: Registry = Registry("pre-aggregator", "fedjax_spmc.preaggregators", group="pre-aggregators")
local_rules: Registry = Registry("local rule", "fedjax_spmc.local_rules", given=("network",), group="rules")
attacks: Registry = Registry("attack", "fedjax_spmc.attacks", group="attacks")
models: Registry = Registry(
    "model", "fedjax_spmc.models", given=("num_classes", "image_shape", "sequence_length", "vocabulary"), group="models"
)
datasets: Registry = Registry("data set", "fedjax_spmc.data", given=("data_dir", "cache_dir", "order"), group="data")
partitions: Registry = Registry("partition", "fedjax_spmc.data", given=("owners",), group="partitions")
samplings: Registry = Registry("sampling", "fedjax_spmc.sampling")
