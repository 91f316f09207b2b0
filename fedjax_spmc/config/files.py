"""Config files: those that the package ships, by name, and a user's own.

`--config=digits` is `configs/digits.py` of the package, in a checkout and when it is installed; what ends in `.py` is a
file.
"""

import ast
import importlib.util
import os
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from fedjax_spmc.config import editable_copy
from fedjax_spmc.errors import ConfigError, UserError
from fedjax_spmc.nearest import did_you_mean
from fedjax_spmc.options import quoted
from fedjax_spmc.paths import NoHomeError, expanded
from fedjax_spmc.reading import reason_of

_PACKAGE = Path(__file__).resolve().parent.parent
_FUNCTION = "get_config"


def shipped_folder() -> Path:
    """Where the shipped configs are: within the package when it is installed, beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def shipped() -> dict[str, Path]:
    """The shipped configs by name, sweeps as `sweeps/NAME`."""
    folder = shipped_folder()
    found = [*folder.glob("*.py"), *folder.glob("sweeps/*.py")]
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(found)}


def read_config(text: str) -> tuple[Any, str]:
    """Loads the config of one experiment: `NAME[:PRESETS]` or `FILE.py[:PRESETS]`.

    Returns:
        The ConfigDict that its `get_config(presets)` returns, and a label for the run folder.

    Raises:
        ConfigError: there is no such config, or it cannot be used.
    """
    config, label, path = call_config(text)
    if hasattr(config, "grid") or (hasattr(config, "items") and "base" in dict(config.items())):
        raise ConfigError(
            f"--config = {quoted(text)} is not allowed: it is the config of a sweep: it must be played by "
            f"`fedjax-spmc sweep --config={text}`."
        )
    if not hasattr(config, "items"):
        raise ConfigError(
            f"--config = {str(path)!r} is not allowed: its get_config returns {quoted(config)} and must return a "
            "ConfigDict, as make_config(arg) does."
        )
    return editable_copy(config), label


def call_config(text: str) -> tuple[Any, str, Path]:
    """What the `get_config(presets)` of a config returns, a label for the folder, and its file.

    Raises:
        ConfigError: there is no such config, or it fails.
    """
    path, presets = _find(text)
    module = _module_of(path)
    try:
        config = getattr(module, _FUNCTION)(presets)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config = {str(path)!r} fails with {reason_of(error, named=True)}.") from None
    words = [word.strip() for word in presets.split(",") if word.strip()]
    return config, "-".join([path.stem, *words]), path


def _find(text: str) -> tuple[Path, str]:
    """The file of a config, and the presets behind it."""
    file, colon, presets = text.partition(".py:")
    if colon or text.endswith(".py"):
        path = expanded(file + ".py" if colon else text, "--config")
        if os.path.isfile(path):  # Path.is_file raises where the name is too long
            return path, presets
        raise ConfigError(f"--config = {quoted(str(path))} is not allowed: {_absent(path)}.")
    name, _, presets = text.partition(":")
    known = shipped()
    if name in known:
        return known[name], presets
    raise ConfigError(f"--config = {quoted(text)} is not allowed: {_unknown(name, known)}.")


def _absent(path: Path) -> str:
    """What is said of a file that is not there, as the end of a sentence."""
    stem = path.stem
    beside = sorted(str(one) for one in path.parent.glob("*.py")) if os.path.isdir(path.parent) else []
    near = did_you_mean(str(path), beside)
    if near:
        return f"there is no such file: {near} A config file must be given"
    names = [name for name in shipped() if name == stem or name == f"{path.parent.name}/{stem}"]
    if names:
        return f"there is no such file; the config of that name that comes with the package is --config={names[-1]}"
    near = did_you_mean(stem, shipped(), "--config=") if not beside else ""
    if near:
        return (
            f"there is no such file: {near} A config file must be given, or the name of one that comes with the package"
        )
    known = f"beside it are {', '.join(beside)}" if beside else "`fedjax-spmc list configs` names those of the package"
    return f"there is no such file; it must be a config file; {known}"


def _unknown(name: str, known: dict[str, Path]) -> str:
    """What is said of a name that no shipped config has, as the end of a sentence."""
    as_file = name + ".py"
    if not name.startswith("~") and os.path.isfile(as_file):
        return f"a file is given with its ending: did you mean {as_file}? It must be that, or a shipped config's name"
    if os.path.isfile(name):
        return "it must be a Python file, whose name ends in .py"
    near = did_you_mean(name.removeprefix("configs/"), known)
    if near:
        return f"there is no config of that name: {near} It must be a shipped config's name, or a config file"
    return f"it must be a config file (*.py) or one of {', '.join(known)}"


def _module_of(path: Path) -> ModuleType:
    """The module in a config file; a file that is no config is not executed.

    Raises:
        ConfigError: it is no Python, has no `get_config`, or fails.
    """
    said = f"--config = {str(path)!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those come again when it is executed
            tree = ast.parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise ConfigError(f"{said} is not allowed: it is no Python (SyntaxError{where}: {error.msg}).") from None
    except ValueError as error:
        raise ConfigError(f"{said} is not allowed: it is no Python ({reason_of(error, named=True)}).") from None
    if not {_FUNCTION, "*"} & _names_made(tree):
        raise ConfigError(
            f"{said} is not allowed: it has no get_config, and was not executed; it must define get_config(arg='') "
            "that returns make_config(arg), see configs/digits.py."
        )
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{said} is not allowed: it must be a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        getattr(module, _FUNCTION)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the file is the user's code: it may raise anything
        raise ConfigError(f"{said} fails with {reason_of(error, named=True)}.") from None
    return module


def _names_made(tree: ast.Module) -> set[str]:
    """The names that a module defines, imports or assigns, anywhere outside of functions and classes."""
    made: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            made.add(node.name)
            continue
        if isinstance(node, ast.alias):
            made.add(node.asname or node.name)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        waiting += ast.iter_child_nodes(node)
    return made


def use_compilation_cache(config: Any) -> None:
    """Keeps compiled programs on disk, so that a second start is faster."""
    import jax

    from fedjax_spmc.data import cache

    try:
        folder = cache.root(config.data.cache_dir) / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, NoHomeError):  # then every start compiles
        return
    # A damaged entry is compiled anew; that is no news.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    if jax.config.jax_compilation_cache_dir != str(folder):  # pyright: ignore[reportAttributeAccessIssue]
        from jax.experimental.compilation_cache import compilation_cache

        compilation_cache.reset_cache()  # JAX decides with its first program, which may have been compiled already
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
