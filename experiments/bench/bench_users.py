"""Many users, of whom a round draws few: seconds a round and the memory of a process, SPMC beside averaging.

    python experiments/bench/bench_users.py [--users=10000] [--drawn=10,100,1000] [--repeats=5] [--json]

SimpleCNN, random images of uint8, five of each user, batch 5: one step each, SGD without momentum, nobody attacks. What
SPMC keeps of every user goes as in a run: where N rows are large (`store.LIMIT`) they are on the host, of the users
ever drawn. Each case is a process of its own that plays a round for each line of its input (--serve); for one number of
users drawn the two methods' rounds alternate, and their medians are compared: `averaging_by_spmc` is above 1 where SPMC
is faster. Then each writes a checkpoint, as a run does. `peak_mb` is the largest memory of the process until its last
round, compilation included, `checkpoint_peak_mb` until the checkpoint is written.

Small numbers (--users=20 --drawn=2) are a check of the bench; its times mean nothing then.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent))

import single

from fedjax_spmc import config as configs
from fedjax_spmc import devices
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config
from fedjax_spmc.options import Option, Range

METHODS = {"averaging": "fedavg", "spmc": "spmc"}
EACH = 5
"""Images of a user, and of a batch."""


def serve(method: str, users: int, drawn: int, lines: Iterable[str], out: TextIO, model: str = "simple_cnn") -> None:
    """One case: says "ready", then answers each line with the steps and peak of a round, or of a checkpoint."""
    config = make_config(METHODS[method], data__name="synthetic")
    for path, value in {
        "model.name": model, "data.val_fraction": 0.0, "data.augment": False, "partition.name": "iid",
        "partition.min_size": 1, "attack.name": "none", "attack.malicious_fraction": 0.0, "local.epochs": 1,
        "local.batch_size": EACH, "local.momentum": 0.0, "local.weight_decay": 0.0, "federation.num_clients": users,
        "federation.clients_per_round": drawn,
    }.items():  # fmt: skip
        configs.set_field(config, path, value)
    play = single.Rounds(configs.resolve(config), single.made_up(EACH * users))
    print("ready", file=out, flush=True)
    for line in lines:
        answer = {"checkpoint_seconds": checkpoint(play.state)} if line.strip() else {"steps": play()}
        print(json.dumps({**answer, "peak_mb": peak_mb()}), file=out, flush=True)


def peak_mb() -> float:
    """The largest memory of this process so far.

    It begins at that of the process that started this one: the command itself computes nothing and stays small.
    """
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def checkpoint(state: Any) -> float:
    """Writes the state as a run does; returns the seconds."""
    from fedjax_spmc.record.checkpoint import Checkpoints
    from fedjax_spmc.record.lines import NONE_UNREPORTED
    from fedjax_spmc.record.resume import Snapshot

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        Checkpoints(Path(folder)).save(int(state.round), Snapshot(state, NONE_UNREPORTED))
        return time.perf_counter() - start


def command_of(method: str, users: int, drawn: int) -> list[str]:
    """Starts the process of a case."""
    return [sys.executable, __file__, f"--serve={method}", f"--users={users}", f"--drawn={drawn}"]


def measure(users: int, drawn: int, repeats: int) -> dict[str, float]:
    """What is told of one number of users drawn."""
    with ExitStack() as stack:
        asks = {name: stack.enter_context(single.answering(command_of(name, users, drawn))) for name in METHODS}
        seconds, answers = single.in_turn(asks, repeats)
        saved = {name: ask("checkpoint") for name, ask in asks.items()}
    found = {f"averaging_by_spmc_{drawn}": seconds["averaging"] / seconds["spmc"]}
    for name in METHODS:
        found |= {
            f"seconds_{name}_{drawn}": seconds[name],
            f"peak_mb_{name}_{drawn}": answers[name]["peak_mb"],
            f"checkpoint_seconds_{name}_{drawn}": saved[name]["checkpoint_seconds"],
            f"checkpoint_peak_mb_{name}_{drawn}": saved[name]["peak_mb"],
        }
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--users", int, 10_000, range=Range(1, 10**9)), "N", "all users")
    parser.flag(Option("--drawn", tuple, (10, 100, 1000), items=int), "K,...", "users of a round")
    parser.flag(Option("--repeats", int, 5, range=Range(1, 10**9)), "N", "counted rounds of each")
    serving = Option("--serve", str, None, optional=True, choices=tuple(METHODS))
    parser.flag(serving, "METHOD", "is one case: a round for each line of input, a checkpoint for a word")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    if flags["serve"] is not None:
        devices.use_cores()
        serve(flags["serve"], flags["users"], flags["drawn"][0], sys.stdin, sys.stdout)
        return 0
    results: dict[str, float] = {}
    for drawn in flags["drawn"]:
        found = measure(flags["users"], drawn, flags["repeats"])
        results |= found
        if not flags["json"]:
            print("  ".join(f"{name} {value:.4g}" for name, value in found.items()), flush=True)
    if flags["json"]:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
