"""The package as it is installed: what it imports, what it ships, and that names are unique."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_spmc
from fedjax_spmc import registry
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import MANY, POSITIVE, Option, Range, option_from_hint

ROOT = Path(__file__).resolve().parent.parent
REGISTRIES = (
    registry.aggregators, registry.local_rules, registry.attacks, registry.models, registry.partitions,
    registry.samplings, registry.datasets,
)  # fmt: skip


def test_parts_import_where_config_and_data_libraries_are_absent():
    code = (
        "import sys\n"
        "for name in ('ml_collections', 'tensorflow_datasets', 'tensorflow', 'torch', 'orbax', 'tensorboardX'):\n"
        "    sys.modules[name] = None\n"
        "import fedjax_spmc\n"
        "from fedjax_spmc import aggregators, attacks, data, federation, local_rules, metrics, models, trees\n"
        "from fedjax_spmc import experiment, setup, run\n"
        "for part in (aggregators, attacks, data, local_rules, models):\n"
        "    assert part.names()\n"
        "data.load('synthetic')\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)


def test_public_names_exist_and_the_package_is_typed():
    for name in fedjax_spmc.__all__:
        assert getattr(fedjax_spmc, name) is not None
    assert (Path(fedjax_spmc.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("kind", REGISTRIES, ids=lambda kind: kind.kind)
def test_every_part_is_described_and_can_be_made_without_options(kind):
    for name in kind.names():
        assert (kind.factory(name).__doc__ or "").strip(), name
        for facts in kind.describe(name).values():
            assert set(facts) == {"default", "allowed", "array"}
        kind.make(name)


@pytest.mark.parametrize("kind", REGISTRIES, ids=lambda kind: kind.kind)
def test_unknown_names_and_options_list_the_known_ones(kind):
    few = len(kind.names()) <= MANY
    with pytest.raises(ValueError, match=kind.names()[0] if few else f"`fedjax-spmc list {kind.group}`"):
        kind.make("zzzz")
    with pytest.raises(ValueError, match=rf"did you mean {kind.names()[0]}\b"):
        kind.make(kind.names()[0].upper())
    with pytest.raises(ValueError, match="no_such_option"):
        kind.make(kind.names()[0], no_such_option=1)


def test_a_name_registered_twice_is_an_error():
    def factory():
        """A part."""

    with registry.aggregators.temporary("made_up", factory):
        assert "made_up" in registry.aggregators.names()
        with pytest.raises(ValueError, match="twice"):
            registry.aggregators.register("made_up")(lambda: None)
    assert "made_up" not in registry.aggregators.names()


@pytest.mark.parametrize(
    ("option", "bad"),
    [
        (Option("x", float, 1.0, range=POSITIVE), [0, -1, float("nan"), float("inf"), "1", True, None]),
        (Option("x", int, 1, range=Range(1, 5)), [0, 6, 2.0, "2", True, None]),
        (Option("x", bool, True), [1, 0, "True", None]),
        (Option("x", str, "a", choices=("a", "b")), ["c", 1, None]),
        (Option("x", tuple, ()), ["a", 1, None]),
    ],
    ids=lambda value: value.kind.__name__ if isinstance(value, Option) else "",
)
def test_values_of_the_wrong_type_or_range_are_refused(option, bad):
    for value in bad:
        with pytest.raises(ConfigError, match=r"x = .* is not allowed: it must be "):
            option.check(value)


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (float, "1e-2", 0.01),
        (float, "3", 3.0),
        (int, "12", 12),
        (bool, "true", True),
        (bool, "False", False),
        (str, "a,b", "a,b"),
        (int | None, "none", None),
        (int | None, "4", 4),
        (tuple[int, ...], "1,2", (1, 2)),
        (tuple[tuple[int, int, int], ...], "[(0, 1, 2), (3, 4, 5)]", ((0, 1, 2), (3, 4, 5))),
        (tuple[str, ...], "one, two", ("one", "two")),
    ],
)
def test_values_are_read_from_text_by_type(hint, text, value):
    parsed = option_from_hint("x", hint, None).parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


def imports(name: str, path: Path, modules: set[str]) -> set[str]:
    """The package's own modules that a file imports, at its top or within a function."""
    found = set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            deeper = {f"{base}.{alias.name}" for alias in node.names}
            found |= deeper & modules or {base}
    return (found & modules) - {name}


def test_no_circle_of_imports():
    folder = Path(fedjax_spmc.__file__).parent
    files = {}
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {name: imports(name, path, set(files)) for name, path in files.items()}
    assert graph["fedjax_spmc.experiment"] >= {"fedjax_spmc.setup", "fedjax_spmc.rounds", "fedjax_spmc.federation"}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(graph | {"fedjax_spmc.types": {"fedjax_spmc.experiment"}}).prepare()
