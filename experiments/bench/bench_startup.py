"""Seconds until a command says something: help, and the first round of a second start. Each in a fresh process.

    python experiments/bench/bench_startup.py [--commands=help,demo,digits] [--repeats=5] [--json]

python, jax: an empty program and `import jax`, which nothing that computes can undercut. help: `run --help`, until it
has ended. demo, digits: `python -m fedjax_spmc demo` and `run --config=digits` (SPMC) in a new run folder each time,
until their first line of a round; then they are ended. Data and compiled programs are kept in a folder of the bench's
own: the first start finds it empty (`cold_seconds`), those that count find there what the first has left. The commands
take turns; medians. The files of the packages are warm.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import single

from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.options import Option, Range

ENDS = {
    "python": ("-c", "pass"),
    "jax": ("-c", "import jax"),
    "help": ("-m", "fedjax_spmc", "run", "--help"),
}
"""Timed until they have ended."""
PLAYS = {
    "demo": ("-m", "fedjax_spmc", "demo"),
    "digits": ("-m", "fedjax_spmc", "run", "--config=digits"),
}
"""Timed until their first line of a round; each gets a run folder."""
WORD = "round "


def seconds_to_end(arguments: Sequence[str]) -> float:
    """Of a program that says what it has to say and ends."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=single.ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def seconds_to_round(arguments: Sequence[str], cache: str) -> float:
    """Until a run's first line of a round; it is ended there.

    Args:
        arguments: of Python, without the run folder.
        cache: the folder of data and compiled programs.
    """
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *arguments, f"--workdir={folder}/run"], cwd=single.ROOT, text=True,
            env={**os.environ, "FEDJAX_SPMC_CACHE": cache}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            line = ""
            for line in process.stdout:
                if line.startswith(WORD):
                    took = time.perf_counter() - start
                    process.kill()
                    return took
    raise SystemExit(f"{' '.join(arguments)} has ended without a round: {line.strip()}")


def measure(names: Sequence[str], repeats: int) -> dict[str, float]:
    """Median seconds of each command; of those that play rounds, the first start's apart."""
    times: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(repeats + 1):
            for name, kept in times.items():
                kept.append(seconds_to_end(ENDS[name]) if name in ENDS else seconds_to_round(PLAYS[name], cache))
    found = {f"seconds_{name}": statistics.median(kept[1:]) for name, kept in times.items()}
    return found | {f"cold_seconds_{name}": times[name][0] for name in names if name in PLAYS}


def main(arguments: Sequence[str] | None = None) -> int:
    names = (*ENDS, *PLAYS)
    parser = Parser("", __doc__)
    parser.flag(Option("--commands", tuple, names, choices=names), "NAME,...", "which")
    parser.flag(Option("--repeats", int, 5, range=Range(1, 1000)), "N", "counted starts of each")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    found = measure(flags["commands"], flags["repeats"])
    if flags["json"]:
        print(json.dumps({name: round(value, 4) for name, value in found.items()}))
        return 0
    for name, value in found.items():
        print(f"{name:<22} {value:7.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
