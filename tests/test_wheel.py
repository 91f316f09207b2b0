"""The package as it is shipped: the sdist and the wheel are built, and the wheel runs where there is no checkout."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import fedjax_spmc
from tests.flags import QUICK

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


class Shipped(NamedTuple):
    sdist: Path
    wheel: Path
    installed: Path


def python(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python, which must succeed."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Shipped:
    """The sdist of the checkout, the wheel made from the sdist alone, and the wheel unpacked in a folder of its own."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("shipped")
    python("-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    python("-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=folder / sdist.name.removesuffix(".tar.gz"))
    (wheel,) = folder.glob("*.whl")
    installed = folder / "installed"
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check", "--target")
    python("-m", "pip", "install", *options, installed, wheel, cwd=folder)
    return Shipped(sdist, wheel, installed)


def test_what_is_in_them(shipped):
    names = set(zipfile.ZipFile(shipped.wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"fedjax_spmc", f"fedjax_spmc-{fedjax_spmc.__version__}.dist-info"}
    of_package = {str(path.relative_to(ROOT)) for path in (ROOT / "fedjax_spmc").rglob("*") if path.is_file()}
    configs = {f"fedjax_spmc/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.py")}
    wanted = {name for name in of_package if "__pycache__" not in name} | configs
    assert wanted <= names
    assert {name for name in names if name.startswith("fedjax_spmc/")} == wanted
    with tarfile.open(shipped.sdist) as packed:
        tops = {name.split("/")[1] for name in packed.getnames()}
    assert {"fedjax_spmc", "configs", "docs", "experiments", "tests", "LICENSE", "README.md", "CHANGELOG.md"} <= tops


def test_its_metadata(shipped):
    packed = zipfile.ZipFile(shipped.wheel)
    (name,) = (name for name in packed.namelist() if name.endswith("METADATA"))
    metadata = packed.read(name).decode()
    head, _, page = metadata.partition("\n\n")
    assert f"\nVersion: {fedjax_spmc.__version__}\n" in head
    for word in (
        "Author: ",
        "License-Expression: Apache-2.0",
        "Project-URL: Repository, https://",
        "Topic :: Security",
    ):
        assert word in head, word
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}\n" in head
    needed = {line.split()[1].partition(">")[0] for line in head.splitlines() if line.startswith("Requires-Dist")}
    bare = [line for line in head.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not [line for line in bare if re.search("tensorflow|scikit-learn|pyarrow|torch", line)]
    assert all(">=" in line for line in bare), "each has a floor"
    assert "tensorflow-datasets" in needed
    for link in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page):
        assert link.startswith("https://"), "a page of PyPI has no files beside it"


def test_it_runs_without_the_checkout(shipped, tmp_path, cache_folder):
    """The demo's config from another folder, then list and report, by the script that the installation brings."""
    script = shipped.installed / "bin" / "fedjax-spmc"
    environment = {
        "PYTHONPATH": str(shipped.installed),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK,
        "FEDJAX_SPMC_CACHE": str(cache_folder),
    }

    def command(*arguments: str) -> str:
        return python(script, *arguments, cwd=tmp_path, **environment).stdout

    where = python("-c", "import fedjax_spmc; print(fedjax_spmc.__file__)", cwd=tmp_path, **environment).stdout.strip()
    assert Path(where) == shipped.installed / "fedjax_spmc" / "__init__.py"
    assert command("--version") == f"fedjax_spmc {fedjax_spmc.__version__}\n"
    assert "usage: fedjax-spmc run " in command("run", "--help")
    listed = command("list", "configs", "presets")
    assert re.search(r"^  digits +The handwritten digits", listed, re.MULTILINE)
    assert re.search(r"^  sweeps/digits +A sweep in a minute", listed, re.MULTILINE)
    (tmp_path / "my_rules.py").write_text(
        "from fedjax_spmc.aggregators.mean import mean\n"
        "from fedjax_spmc.registry import aggregators\n\n\n"
        "@aggregators.register('mine')\n"
        "def mine():\n"
        '    """The mean under another name."""\n'
        "    return mean()\n"
    )
    assert re.search(
        r"^  mine +The mean under another name", command("list", "aggregators", "--plugins=my_rules"), re.M
    )
    fields = ("federation.rounds=1", "local.epochs=1", "plugins=my_rules", "aggregator.name=mine")
    played = command("run", "--config=digits:fedavg", *[f"--config.{field}" for field in fields], "--workdir=runs/one")
    assert "finished after 1 rounds" in played
    assert "index.html" in command("report", "runs/one", "--details=0")
    assert (tmp_path / "report" / "index.html").stat().st_size > 10_000


def test_the_workflow_does_all_that_it_should():
    """Lint, tests on the oldest and the newest Python, the wheel in a clean environment, the site; files that exist."""
    import yaml

    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    ran = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in workflow["jobs"].items()}
    assert ran == {
        "lint": ["make lint"],
        "tests": ["make test"],
        "wheel": [".ci/clean_install python"],
        "site": ["make site"],
    }
    for name in ("tests", "wheel"):
        assert workflow["jobs"][name]["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"lint", "test", "site"} <= set(targets)
    assert os.access(ROOT / ".ci" / "clean_install", os.X_OK)
