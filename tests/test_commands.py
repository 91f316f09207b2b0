"""`fedjax-spmc`: one command for all, help without JAX, examples that hold, what is listed, configs by name."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import fedjax_spmc
from fedjax_spmc import registry
from fedjax_spmc.__main__ import main
from fedjax_spmc.commands import COMMANDS, GROUPS, make
from fedjax_spmc.config import files, listing
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.nearest import nearest

ROOT = Path(__file__).resolve().parent.parent


def test_help_and_version_come_without_jax():
    code = (
        "import importlib, sys; sys.argv = ['/x/bin/fedjax-spmc']\n"
        "from fedjax_spmc.__main__ import COMMANDS, main\n"
        "helps = [[name, '--help'] for name in COMMANDS]\n"
        "for words in ([], ['--help'], ['--version'], *helps, ['run', '--versoin']):\n"
        "    assert main(words) == (0 if '--help' in words or '--version' in words else 2), words\n"
        "for command in COMMANDS.values():  # as `python -m` runs them\n"
        "    assert importlib.import_module(command.module).main(['--help']) == 0, command\n"
        "heavy = {'jax', 'flax', 'optax', 'ml_collections', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"usage: fedjax-spmc {name} " in done.stdout
    assert f"fedjax_spmc {fedjax_spmc.__version__}\n" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_all_its_flags_and_two_examples_that_hold(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    parser = make(name)
    help_text = parser.help()
    for flag in parser.flags():
        assert re.search(rf"^  (-h, )?{flag}\b", help_text, re.MULTILINE), flag
    assert len(parser.examples) >= 2
    for example in parser.examples:
        assert f"fedjax_spmc {name} {example}\n" in help_text
        flags = parser.read(shlex.split(example))
        if name in ("run", "sweep"):
            assert files.call_config(flags["config"])
    module = import_module(COMMANDS[name].module)
    assert module.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedjax_spmc {fedjax_spmc.__version__}\n"


def test_the_command_hands_on_what_follows(capsys):
    assert main(["compare"]) == 2
    assert "no run folder is given; usage: python -m fedjax_spmc compare " in capsys.readouterr().err
    assert main(["list", "presets"]) == 0
    assert capsys.readouterr().out.startswith("presets (behind --config=CONFIG:")


@pytest.mark.parametrize("group", GROUPS)
def test_one_group_is_listed(group, capsys):
    assert main(["run", f"--list={group}"]) == 0
    alone = capsys.readouterr().out
    assert alone.strip().removesuffix(listing.ARRAY).strip() in listing.listing()
    assert main(["list", group]) == 0
    assert capsys.readouterr().out == alone


def test_papers_are_named_and_array_is_explained():
    kinds = (registry.aggregators, registry.preaggregators, registry.attacks, registry.local_rules)
    for kind in kinds:
        assert all(listing.source(kind, name) for name in kind.names())
    text = listing.listing("aggregators")
    assert '      paper: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries' in text
    assert text.endswith(f"\n\n{listing.ARRAY}")
    assert listing.ARRAY not in listing.listing("presets")


# Configs by name.


def test_shipped_configs_are_those_of_the_folder():
    folder = ROOT / "configs"
    assert files.shipped_folder() == folder
    assert set(files.shipped()) == {str(path.relative_to(folder))[:-3] for path in folder.rglob("*.py")}


def test_a_name_is_a_file_of_the_package_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name, label = files.read_config("digits:fedavg")
    by_file, same = files.read_config(f"{ROOT}/configs/digits.py:fedavg")
    assert (label, same) == ("digits-fedavg", "digits-fedavg")
    assert by_name.to_dict() == by_file.to_dict()
    assert files.call_config("sweeps/digits")[1:] == ("digits", ROOT / "configs" / "sweeps" / "digits.py")


def test_a_file_of_the_same_name_is_not_taken_for_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.py").write_text("def get_config(arg=''):\n    raise RuntimeError('mine')\n")
    assert files.read_config("digits")[1] == "digits"
    with pytest.raises(ConfigError, match="RuntimeError: mine"):
        files.read_config("digits.py")


@pytest.mark.parametrize(
    "text",
    [
        "from fedjax_spmc.config import make_config as get_config\n",
        "from configs_of_mine import *\n",
        "if True:\n    def get_config(arg=''): ...\n",
        "get_config = lambda arg='': None\n",
    ],
)
def test_a_get_config_is_seen_however_it_is_made(text, tmp_path):
    """Whatever comes of it: the file is not refused for want of a get_config."""
    path = tmp_path / "mine.py"
    path.write_text(text)
    said = ""
    try:
        files.read_config(str(path))
    except ConfigError as error:
        said = str(error)
    assert "no get_config" not in said


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("krumm", ("krum", "multi_krum", "mean"), ["krum"]),
        ("Trimmed-Mean", ("trimmed_mean", "mean"), ["trimmed_mean"]),
        ("resnet", ("resnet18", "resnet10", "mlp"), ["resnet18", "resnet10"]),
        ("zzz", ("krum", "mean"), []),
        ("", ("krum",), []),
        ("k" * 1000, ("k" * 999,), []),
    ],
)
def test_what_is_near(word, known, found):
    assert nearest(word, known) == found
