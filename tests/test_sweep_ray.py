"""A real Ray cluster of two node processes, one of which is killed during the sweep: nothing is lost or done twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_spmc import sweep
from fedjax_spmc.sweep import __main__ as command
from fedjax_spmc.sweep import engine_ray
from tests import small

ROOT = Path(__file__).resolve().parent.parent

PROGRAM = """
import os, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster

folder = Path(sys.argv[1])
node = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
try:
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
except Exception:  # a busy machine is sometimes too slow for the time that Ray gives a node to start
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
second = cluster.add_node(**node)
os.environ["RAY_ADDRESS"] = cluster.address

def kill_the_second():
    # Two pieces have kept a chunk: each node plays one, as each has one processor.
    while len(list((folder / "work").glob("*/*/checkpoint/manifest.json"))) < 2:
        time.sleep(0.02)
    cluster.remove_node(second, allow_graceful=False)
    # Not printed: Ray writes to the same streams.
    (folder / "killed_with_rows").write_text(str(len((folder / "results.jsonl").read_text().splitlines())))

from fedjax_spmc.sweep import __main__
from tests import test_sweep_ray

ray.init(address=cluster.address, log_to_driver=False)
killer = threading.Thread(target=kill_the_second, daemon=True)
killer.start()
sweep_file = test_sweep_ray.write_config(folder.parent)
code = __main__.main([f"--config={sweep_file}", f"--workdir={folder}", "--engine=ray"])
killer.join(5)
ray.shutdown()
cluster.shutdown()
sys.exit(code)
"""


def write_config(folder: Path) -> Path:
    path = folder / "swept.py"
    path.write_text(
        "from fedjax_spmc.sweep import Sweep\nfrom tests import small\n\n\n"
        "def get_config(arg=''):\n"
        "    grid = {'method': ['fedavg'], 'local.learning_rate': [0.01, 0.02]}\n"
        "    return Sweep(small.config(rounds=6), grid, (0, 1))\n"
    )
    return path


def test_groups_are_cut_until_everybody_has_work(tmp_path):
    groups = sweep.groups_of(sweep.expand(sweep.Sweep(small.config(), {"method": ["fedavg", "krum"]}, range(10))))
    pending = {cell.id for group in groups for cell in group.cells[:9]}
    sizes = {
        slots: [len(piece.pending) for piece in engine_ray.pieces_of(groups, pending, slots, tmp_path)]
        for slots in (1, 2, 3, 100)
    }
    assert sizes == {1: [9, 9], 2: [5, 4] * 2, 3: [3, 3, 3] * 2, 100: [1] * 18}
    sent = [name for piece in engine_ray.pieces_of(groups, pending, 3, tmp_path) for name in piece.pending]
    assert sorted(sent) == sorted(pending)


def test_without_ray_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    argv = [f"--config={write_config(tmp_path)}", f"--workdir={tmp_path / 'out'}", "--engine=ray"]
    assert command.main(argv) == 2
    assert capsys.readouterr().err == "error: --engine=ray needs Ray: pip install 'fedjax_spmc[ray]'.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_node_is_killed_and_nothing_is_lost(tmp_path, cache_folder, small_cache, capsys):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'fedjax_spmc[ray]'")
    folder = tmp_path / "out"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FEDJAX_SPMC_CACHE": str(cache_folder),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "killed_with_rows").read_text() == "0"
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["config_hash"] for row in rows}) == 4
    assert {row["status"] for row in rows} == {"finished"}
    argv = [f"--config={write_config(tmp_path)}", f"--workdir={tmp_path / 'here'}"]
    assert command.main(argv) == 0
    capsys.readouterr()
    here = [json.loads(line) for line in (tmp_path / "here" / "results.jsonl").read_text().splitlines()]
    for row, other in zip(sorted(rows, key=_name), sorted(here, key=_name), strict=True):
        assert row["config_hash"] == other["config_hash"]
        for line, same in zip(
            small.lines(folder / row["folder"]), small.lines(tmp_path / "here" / other["folder"]), strict=True
        ):
            assert line["A"] == same["A"]
            assert line["train_loss"] == pytest.approx(same["train_loss"], abs=1e-5)


def _name(row: dict) -> str:
    return row["config_hash"]
