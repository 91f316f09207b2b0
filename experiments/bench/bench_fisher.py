"""Cost of the Fisher of all clients against one local epoch of training.

    python experiments/bench/bench_fisher.py [--data=cifar10] [--repeats=5] [--limit=0] [--json]

SimpleCNN, ten clients, Dirichlet 0.5, batch 64, the data set's augmentation. A repetition takes in turn one epoch of
SGD of all clients and one pass of each kind of Fisher over the same data, clients mapped as in a round; medians are
compared. All on one core, as every CPU device of a run has one. `--limit` takes only so many training images.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence

import jax

from fedjax_spmc import config as configs
from fedjax_spmc import fisher
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config
from fedjax_spmc.experiment import build
from fedjax_spmc.local_rules import make as make_rule
from fedjax_spmc.one_round import data_of_client
from fedjax_spmc.options import Option, Range
from fedjax_spmc.training import map_clients, train_client
from fedjax_spmc.types import Context


def programs(data: str, limit: int):
    """Name -> a jitted function of nothing that goes over the data of all clients once."""
    config = make_config("fedavg", data__name=data, data__limit_train=limit or None)
    configs.set_field(config, "local.epochs", 1)
    config = configs.resolve(config)
    experiment = build(config)
    federation, state, arrays = experiment.federation, experiment.state, experiment.arrays
    ctx = Context(federation.model, state.variables, state.variables, federation.hyper, 1, state.round)
    rule = make_rule("sgd")

    def over_clients(of_client):
        @jax.jit
        def program(arrays, key):
            def one(client_id):
                return of_client(data_of_client(federation, arrays, state, key, client_id), key)

            return map_clients(one, jax.numpy.arange(len(experiment.parts)), federation.client_batch)

        return lambda: jax.block_until_ready(program(arrays, experiment.key))

    found = {"train": over_clients(lambda data, key: train_client(rule, ctx, (), data, key).variables.params)}
    for kind in fisher.KINDS:
        found[kind] = over_clients(
            lambda data, key, kind=kind: fisher.estimate(kind, federation.model, state.variables, data, key=key)
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--data", str, "cifar10"), "NAME", "data set")
    parser.flag(Option("--repeats", int, 5, range=Range(1, 10**9)), "N", "counted repetitions")
    parser.flag(Option("--limit", int, 0, range=Range(0, 10**9)), "N", "so many training images; 0 = all")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = programs(flags["data"], flags["limit"])
    times: dict[str, list[float]] = {name: [] for name in found}
    for program in found.values():
        program()
    for _ in range(flags["repeats"]):
        for name, program in found.items():
            start = time.perf_counter()
            program()
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratios = {name: seconds[name] / seconds["train"] for name in fisher.KINDS}
    if flags["json"]:
        print(json.dumps({"seconds": seconds, **{f"ratio_{name}": ratio for name, ratio in ratios.items()}}))
        return 0
    print(f"one local epoch of all clients: {seconds['train']:.2f} s")
    for name, ratio in ratios.items():
        print(f"Fisher {name:<11} {seconds[name]:.2f} s   {ratio:.2f} of an epoch")
    return 0


if __name__ == "__main__":
    sys.exit(main())
