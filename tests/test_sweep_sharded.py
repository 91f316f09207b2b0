"""Eight devices give what one gives: experiments shared among them, or the clients of one experiment."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import small
from tests.flags import QUICK

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
DEVICES = 8
EIGHT = f"{QUICK} --xla_force_host_platform_device_count={DEVICES}"

PROGRAM = """
import sys
import jax
from fedjax_spmc import sweep
from fedjax_spmc.sweep import program
from tests import small

folder, fields = sys.argv[1], {"federation__num_clients": 5, "federation__clients_per_round": 5}
fields |= {"sweep__experiment_batch": 2, "attack__malicious_fraction": 0.4}
# Nine cells on 8 x 2 lanes leave seven to fill; of the ten clients of a cell alone two devices have two.
SWEEPS = {
    "experiments": sweep.Sweep(small.config(1, "fedavg", **fields), {}, range(9)),
    "clients": sweep.Sweep(small.config(2, "fedavg", federation__num_clients=10, federation__clients_per_round=10,
                                       federation__devices=8, partition__min_size=8)),
}
devices = jax.local_devices()
for name, made in SWEEPS.items():
    cells = sweep.expand(made)
    layout = program.layout_of(cells[0].config, len(cells), devices)
    print(name, layout.axis, len(layout.devices), layout.batch, layout.lanes, flush=True)
    sweep.run(made, f"{folder}/{name}/8")
    jax.local_devices = lambda: devices[:1]
    sweep.run(made, f"{folder}/{name}/1")
    jax.local_devices = lambda: devices
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache_folder) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": EIGHT, "FEDJAX_SPMC_CACHE": str(cache_folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    (folder / "layouts").write_text(done.stdout)
    return folder


def test_the_devices_are_used(folder):
    assert (folder / "layouts").read_text().splitlines() == [
        "experiments experiments 8 2 16",
        "clients clients 8 1 1",
    ]


@pytest.mark.parametrize("name", ["experiments", "clients"])
def test_the_results_are_those_of_one_device(name, folder):
    tables = [(folder / name / count / "results.jsonl").read_text().splitlines() for count in ("8", "1")]
    rows, others = ([json.loads(line) for line in table] for table in tables)
    assert len(rows) == {"experiments": 9}.get(name, 1)
    for row, other in zip(rows, others, strict=True):
        assert (row["status"], row["error"]) == ("finished", None)
        assert row["config_hash"] == other["config_hash"]
        cells = folder / name / "8" / row["folder"], folder / name / "1" / other["folder"]
        for line, same in zip(*map(small.lines, cells), strict=True):
            assert line.pop("train_loss") == pytest.approx(same.pop("train_loss"), abs=1e-6)
            np.testing.assert_allclose(line.pop("weights"), same.pop("weights"), atol=1e-6)
            np.testing.assert_allclose(line.pop("scores"), same.pop("scores"), atol=1e-6)
            assert line == same
        with np.load(cells[0] / "model.npz") as ours, np.load(cells[1] / "model.npz") as theirs:
            for tensor in ours:
                np.testing.assert_allclose(ours[tensor], theirs[tensor], atol=1e-6)
