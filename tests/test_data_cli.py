"""`python -m fedjax_spmc.data`: one sentence and the right exit code, whatever happens."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_spmc.data import prepare
from tests.test_data_tfds import write_cifar100

main = importlib.import_module("fedjax_spmc.data.__main__").main


class StubBuilder:
    """Stands for a builder of tensorflow-datasets: writes the folder, or fails as told."""

    def __init__(self, folder: Path, error: Exception | None = None):
        self.folder, self.error, self.calls = folder, error, 0

    def download_and_prepare(self):
        self.calls += 1
        if self.error is not None:
            raise self.error
        write_cifar100(self.folder)


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Installs a stub builder; returns it."""

    def install(error: Exception | None = None, tensorflow: bool = True) -> StubBuilder:
        builder = StubBuilder(tmp_path, error)
        monkeypatch.setattr(prepare, "make_builder", lambda name, folder: builder)
        monkeypatch.setattr(prepare, "has_tensorflow", lambda: tensorflow)
        return builder

    return install


def run(capsys, *argv: str) -> tuple[int, str, str]:
    code = main(argv)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert err.count("\n") == (0 if code == 0 else 1), err
    return code, out, err


def test_prepare_builds_once(tmp_path, stub, capsys):
    builder = stub()
    code, out, _ = run(capsys, "prepare", "cifar100", f"--data_dir={tmp_path}")
    assert (code, builder.calls) == (0, 1)
    assert f"is prepared in {tmp_path / 'cifar100' / '3.0.2'}" in out
    code, out, _ = run(capsys, "prepare", "cifar100", f"--data_dir={tmp_path}")
    assert (code, builder.calls) == (0, 1)
    assert "is already prepared in" in out


def test_data_dir_from_the_environment(tmp_path, stub, capsys, monkeypatch):
    builder = stub()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert run(capsys, "prepare", "cifar100")[0] == 0
    assert builder.calls == 1


def test_without_tensorflow(tmp_path, stub, capsys):
    builder = stub(tensorflow=False)
    code, _, err = run(capsys, "prepare", "cifar10", f"--data_dir={tmp_path}")
    assert (code, builder.calls) == (2, 0)
    assert "needs TensorFlow" in err
    assert "fedjax_spmc[prepare]" in err


@pytest.mark.parametrize(
    "error", [ConnectionError("no route to host\nmore"), OSError(28, "No space left"), ValueError()]
)
def test_a_failed_download(tmp_path, stub, capsys, error):
    stub(error)
    code, _, err = run(capsys, "prepare", "cifar100", f"--data_dir={tmp_path}")
    assert code == 1
    assert f"could not be downloaded and prepared in {tmp_path}: {type(error).__name__}" in err


def test_a_folder_in_another_format_is_left_alone(tmp_path, stub, capsys):
    builder = stub()
    info = write_cifar100(tmp_path) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    code, _, err = run(capsys, "prepare", "cifar100", f"--data_dir={tmp_path}")
    assert (code, builder.calls) == (2, 0)
    assert "is stored as tfrecord" in err


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_built_in_data_sets_need_nothing(capsys, name):
    code, out, _ = run(capsys, "prepare", name)
    assert code == 0
    assert "nothing to prepare" in out


def test_usps_has_no_builder(tmp_path, capsys):
    code, _, err = run(capsys, "prepare", "usps", f"--data_dir={tmp_path}")
    assert code == 2
    assert "no builder" in err


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["prepare", "cifar11"], "'cifar11' is unknown"),
        (["prepare"], "needs the NAME"),
        (["fetch"], "fetch is given"),
        ([], "nothing is given"),
        (["list", "--nonsense"], "--nonsense is no flag"),
    ],
)
def test_wrong_arguments(capsys, argv, expected):
    code, _, err = run(capsys, *argv)
    assert code == 2
    assert expected in err


def test_list(tmp_path, capsys):
    folder = write_cifar100(tmp_path)
    code, out, _ = run(capsys, "list", f"--data_dir={tmp_path}")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert str(folder) in lines["cifar100"]
    assert "not prepared" in lines["cifar10"]
    assert "part of the package" in lines["digits"]


def test_as_a_program(tmp_path):
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "fedjax_spmc.data", "prepare", "usps", f"--data_dir={tmp_path}"],
        cwd=root, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
