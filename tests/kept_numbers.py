"""Metrics of a few short runs, kept to the last bit: a change that should not touch numbers is held against them.

    python -m tests.kept_numbers        # writes the fixture anew, as the tests compile

Bits belong to a kind of machine, so the fixture says on which it was made.
"""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "fixtures"
FIXTURE = FOLDER / "numbers.json"
METHODS = ("fedavg", "spmc", "fdcr", "krum", "spmc,reference")
DATA: dict[str, dict[str, Any]] = {
    "digits": {"federation.rounds": 3, "local.epochs": 2},
    "cifar10": {"federation.rounds": 2, "data.limit_train": 2000, "data.limit_test": 300, "local.epochs": 1},
}


def kept(name: str) -> dict[str, Any]:
    """A fixture: "made_on", and "runs" by data set and method."""
    return json.loads((FOLDER / name).read_text())


def config_of(data: str, method: str) -> Any:
    """The config of a run."""
    from configs import cifar10, digits
    from fedjax_spmc import config as configs

    config = {"digits": digits, "cifar10": cifar10}[data].get_config(method)
    for path, value in DATA[data].items():
        configs.set_field(config, path, value)
    configs.set_field(config, "federation.devices", 1)
    return config


def play(data: str, method: str) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` without what holds times, as JSON gives them back."""
    from fedjax_spmc import experiment
    from tests import small

    history = experiment.run(config_of(data, method)).history
    return [small.without_times(json.loads(json.dumps(line))) for line in history]


def without_bulk(line: dict[str, Any]) -> dict[str, Any]:
    """A line without its histograms, which are longer than all the rest of it."""
    return {name: value for name, value in line.items() if name != "histograms"}


def machine() -> dict[str, Any]:
    """What the bits of a compiled program depend on besides the code."""
    facts = {}
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    names = ("vendor_id", "cpu family", "model", "flags")
    return {
        "jaxlib": version("jaxlib"),
        "machine": platform.machine(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **{name: facts.get(name) for name in names},
    }


def main() -> None:
    """Writes the fixture."""
    os.environ.setdefault("TFDS_DATA_DIR", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    runs = {data: {method: [without_bulk(line) for line in play(data, method)] for method in METHODS} for data in DATA}
    FIXTURE.write_text(json.dumps({"made_on": machine(), "runs": runs}, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    from tests import conftest  # noqa: F401  (sets the flags of the tests before JAX starts)

    main()
