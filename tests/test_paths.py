"""`~` is the home folder or an error; what a run folder says of its data can be followed from anywhere."""

import ast
import hashlib
import json
import os
import pwd
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from fedjax_spmc import compare, data, evaluate, experiment, paths, run, sweep
from fedjax_spmc import config as configs
from fedjax_spmc.config.files import use_compilation_cache
from fedjax_spmc.data import cache, tfds_layout
from fedjax_spmc.errors import DataError, UserError
from fedjax_spmc.parity.__main__ import main as parity
from fedjax_spmc.record.folder import RunFolder
from fedjax_spmc.record.result import read_config
from fedjax_spmc.report import page
from fedjax_spmc.report.__main__ import main as report
from fedjax_spmc.sweep.table import Table
from tests import small

PACKAGE = Path(paths.__file__).parent


@pytest.fixture
def homeless(tmp_path, monkeypatch):
    """A user without HOME and without an entry, as in many containers; returns the current folder."""

    def unknown(name):
        raise KeyError(name)

    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "TFDS_DATA_DIR", "FEDJAX_SPMC_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    return tmp_path


def test_the_home_folder_is_found_in_one_place():
    found = [
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("expanduser", "home")
    ]
    assert found == ["paths.py"]


def test_a_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.expanded("~/x", "workdir") == tmp_path / "x"
    assert paths.expanded("a/~", "workdir") == Path("a/~")
    assert paths.expanded("./~", "workdir") == Path("~")
    with pytest.raises(paths.NoHomeError, match=r"^workdir = '~nobody-is-called-so/x' is not allowed: nothing says"):
        paths.expanded("~nobody-is-called-so/x", "workdir")


HOMELESS = {
    "run": lambda: RunFolder("~/run", configs.resolve(small.config())),
    "load": lambda: experiment.load("~/run"),
    "evaluate": lambda: evaluate.evaluate("~/run"),
    "sweep": lambda: Table("~/sweep"),
    "data_dir": lambda: tfds_layout.require("usps", "~/data"),
    "default data_dir": lambda: tfds_layout.require("usps"),
    "cache": lambda: cache.root("~/cache"),
    "default cache": cache.root,
    "start": lambda: experiment.run(small.config(model__start="~/model.npz")),
}


@pytest.mark.parametrize("case", HOMELESS)
def test_no_folder_is_called_so(case, homeless):
    with pytest.raises(UserError, match=r"= '~/[a-z_./]+' is not allowed: nothing says which folder ~ is"):
        HOMELESS[case]()
    assert list(homeless.iterdir()) == []


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (run.main, [*small.arguments("~/run")]),
        (run.main, ["--config=~/mine.py"]),
        (compare.main, ["~/run"]),
        (compare.main, ["run", "--png=~/x.png"]),
        (evaluate.main, ["~/run"]),
        (report, ["~/run"]),
        (report, [".", "--out=~/report"]),
        (parity, ["--golden=~/golden"]),
        (parity, ["--reference=~/SPMC"]),
    ],
)
def test_commands_say_it_in_one_sentence(main, argv, homeless, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "= '~/" in err
    assert "HOME is not set" in err
    assert list(homeless.iterdir()) == []


def test_without_a_home_folder_nothing_is_cached_and_the_run_goes_on(homeless, capsys):
    built = cache.fetch("toy", "0" * 64, None, lambda: {"x": np.arange(3)})
    assert built["x"].tolist() == [0, 1, 2]
    assert "FEDJAX_SPMC_CACHE = '~/.cache/fedjax_spmc'" in capsys.readouterr().err
    use_compilation_cache(configs.resolve(small.config()))
    assert len(data.load("synthetic", num_train=20, num_test=5).test_labels) == 5
    with pytest.raises(DataError, match="TFDS_DATA_DIR = '~/tensorflow_datasets'"):
        data.load("usps")
    assert list(homeless.iterdir()) == []


def test_a_run_folder_names_the_folders_of_its_data_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configs.resolve(small.config(data__data_dir="sets", data__cache_dir="../cache"))
    recorded = configs.with_chosen_options(config)
    assert recorded.data.data_dir == str(tmp_path / "sets")
    assert recorded.data.cache_dir == str(tmp_path.parent / "cache")
    assert config.data.data_dir == "sets"
    assert configs.differing_fields(config, recorded) == []
    assert configs.with_chosen_options(configs.resolve(small.config())).data.data_dir is None


def test_a_run_of_a_relative_folder_is_read_from_elsewhere_and_goes_on(finished_run, tmp_path, monkeypatch):
    config = configs.resolve(small.config(data__data_dir="sets"))
    environment = json.loads((finished_run / "environment.json").read_text())
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        folder = RunFolder("run", config)
        folder.begin(environment)
        folder.write_start()
        folder.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_config(tmp_path / "run").data.data_dir == str(tmp_path / "sets")


def test_a_sweep_names_no_cell_like_a_number():
    """pandas reads a column of digits, or of digits with an e among them, as numbers."""
    flats = [{"seed": seed} for seed in range(5000)]
    plain = [hashlib.sha256(json.dumps(flat).encode()).hexdigest()[:16] for flat in flats]
    names = list(map(sweep.plan._hash, flats))
    assert any(name.isdigit() for name in plain)
    assert all(name == old or re.fullmatch(r"\d+(e\d+)?", old) for name, old in zip(names, plain, strict=True))
    assert all(len(name) == 16 and set(name) <= set("0123456789abcdef") for name in names)
    for name in names:
        with pytest.raises(ValueError, match="could not convert"):
            float(name)


@pytest.mark.parametrize("command", ["top_coordinates.py", "bench/bench_gpu.py", "bench/bench_forms.py"])
def test_a_file_that_a_command_writes_at_its_end_is_looked_at_first(command, tmp_path, capsys, monkeypatch):
    """Minutes of measuring would be lost."""
    folder = PACKAGE.parent / "experiments"
    monkeypatch.syspath_prepend(str((folder / command).parent))
    main = runpy.run_path(str(folder / command))["main"]
    flag = "--json" if command == "top_coordinates.py" else "--out"
    for given, reason in (
        (tmp_path / "none" / "x.json", f"{tmp_path / 'none'} is no folder"),
        (tmp_path, "it is a folder"),
    ):
        assert main([f"{flag}={given}"]) == 2
        err = capsys.readouterr().err
        assert err == f"error: {flag} = '{given}' is not allowed ({reason}): it must be a file that you may write.\n"
    assert not list(tmp_path.iterdir())


def test_what_may_not_be_written_is_refused(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != str(tmp_path))
    with pytest.raises(UserError, match="it may not be written"):
        paths.file_to_write(tmp_path / "new.json", "--json")
    assert paths.file_to_write(tmp_path / "file", "--json") == tmp_path / "file"
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} may not be written")):
        paths.folder_to_write(tmp_path / "a" / "b", "--results")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'file'} is no folder")):
        paths.folder_to_write(tmp_path / "file" / "b", "--results")
    with pytest.raises(UserError, match=r"cannot be used .* may not be written.: give another one"):
        page.check_out(tmp_path / "report")
    assert compare.main(["none", f"--png={tmp_path / 'x.png'}"]) == 2
    assert re.search(r"--png = .*it may not be written", capsys.readouterr().err)


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not allowed"):
        paths.file_to_write(tmp_path / ("x" * 300) / "y", "--json")


def test_papers_look_at_the_folder_of_their_report_first(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(PACKAGE.parent / "experiments"))
    main = runpy.run_path(str(PACKAGE.parent / "experiments" / "papers.py"))["main"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("kept")
    assert main(["spmc_fig6", f"--workdir={tmp_path / 'work'}", f"--out={tmp_path / 'mine'}"]) == 2
    assert "holds something that is no report" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
