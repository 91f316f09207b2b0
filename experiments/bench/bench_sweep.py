"""What many experiments, many clients and a published workload cost, on the devices of this machine.

    python experiments/bench/bench_sweep.py [--parts=experiments,clients,s1] [--methods=sgd,spmc]
                                            [--shares=equal,unequal] [--repeats=3] [--images=N] [--json]

Everything is a round of local training and aggregation, compiled before it is timed, without evaluation, checkpoints
and the reading of data. Contestants play in turn in one process; the medians are compared. On a CPU every core is a
device.

experiments: S = 1, 4, 16, 64 experiments of one group as a sweep plays them (its own program and layout), against the
    same S experiments one after another as `python -m fedjax_spmc.run` plays each. SimpleCNN, ten clients, made-up
    images of CIFAR-10's shape (--images, 6400 by default), batch 64, one epoch, SGD and SPMC; `equal` shares, and
    `unequal` ones (Dirichlet 0.5, another partition for each seed). A ratio is the cost of an experiment in the group
    by its cost alone, each with its own partition, whose index lists are padded to the group's longest in both.
    Alone, an experiment has the whole machine: its ten clients are shared among all devices, by their size. In the
    sweep each device plays whole experiments, on a CPU one at a time (two cores: loads of two experiments, which end
    when the longer one does), on a GPU all at once; one that has no other beside it shares its clients as alone. Python
    hands out a load's round in the sweep, and each round alone.
clients: 10, 100 and 1000 clients of the same images (--images, 16000), batch 16: the same steps in all, and what each
    client costs besides. SPMC and averaging, as a single run.
s1: a round of `configs/s1.py` on made-up images (50 of 1000 clients, 250 steps of 10 images, the CNN with dropout)
    against a plain torch loop over its 50 clients: float32 images in memory, SGD on torch's default number of threads
    (--threads), then the mean of the models. Ours draws and normalises its batches from uint8.

GFLOP/s: of the gradients of all local steps (`counting.py`: XLA's account of one step, times the steps), nothing else;
what our form of the network multiplies, which for a convolution with its pool is ((k + 1) / k)^2 of the plain one.
MB: what XLA's operations of one step read and write.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import counting
import single

from fedjax_spmc import config as configs
from fedjax_spmc import devices, rounds, setup
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config, set_field
from fedjax_spmc.config.files import read_config
from fedjax_spmc.options import Option, Range
from fedjax_spmc.parts import assemble
from fedjax_spmc.sweep import program as programs
from fedjax_spmc.sweep.plan import Sweep, expand, groups_of
from fedjax_spmc.sweep.player import Player
from fedjax_spmc.types import Examples

HERE = Path(__file__).resolve().parent
METHODS = {"sgd": "fedavg", "spmc": "spmc"}
PARTS = ("experiments", "clients", "s1")
PARTITIONS = {"equal": "iid", "unequal": "dirichlet"}
Found = dict[str, float]
Run = Callable[[], Any]


def medians(runs: Mapping[str, Run], repeats: int) -> Found:
    """Median seconds of each contestant; they play in turn, once before it counts."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def made_up(method: str, num_train: int, clients: int, batch: int, partition: str) -> Any:
    """One epoch of SimpleCNN on made-up images, all clients in every round, nobody attacks."""
    config = make_config(METHODS[method], data__name="synthetic")
    for path, value in {
        "data.options.num_train": num_train, "data.val_fraction": 0.0, "partition.name": partition,
        "partition.min_size": 10, "attack.name": "none", "attack.malicious_fraction": 0.0, "local.epochs": 1,
        "local.batch_size": batch, "federation.rounds": 1, "federation.num_clients": clients,
        "federation.clients_per_round": clients,
    }.items():  # fmt: skip
        set_field(config, path, value)
    return config


def cost(federation: Any, batch: int) -> counting.Cost:
    return counting.of_step(federation.model, federation.rule, batch)


def speed(step: counting.Cost, steps: float, seconds: float) -> float:
    """GFLOP/s: XLA's account, but for programs with loops, of which it counts too little."""
    return (max(step.flops, step.products) if step.in_loops else step.flops) * steps / seconds / 1e9


def part_experiments(
    images: int, repeats: int, counts: list[int], methods: Sequence[str], shares: Sequence[str]
) -> Iterator[Found]:
    for share in shares:
        for method in methods:
            for size, values in of_group(method, PARTITIONS[share], images, repeats, counts):
                yield {f"{name}_{method}_{share}_{size}": value for name, value in values.items()}


def of_group(method: str, partition: str, images: int, repeats: int, counts: list[int]) -> Iterator[tuple[int, Found]]:
    """S, seconds per experiment and round in a sweep and alone, their ratio, and how fast the sweep computes."""
    sweep = Sweep(made_up(method, images, 10, 64, partition), seeds=range(max(counts)))
    (group,) = groups_of(expand(sweep))
    config = group.cells[0].config
    dataset = setup.load_data(config)
    player = Player(group, dataset)
    if player.refused:
        raise SystemExit(f"--images={images}: {next(iter(player.refused.values()))}")
    federation = assemble(config, dataset.info, None)
    used = devices.devices_for_round(config.federation.clients_per_round, None)
    play = rounds.make_program(federation, used)
    train = Examples(jnp.asarray(dataset.train_inputs), jnp.asarray(dataset.train_labels, jnp.int32))
    starts, helds = [player.start(cell) for cell in group.cells], []
    for _, lane in starts:
        helds.append(rounds.place_inputs((train, lane.indices), lane.indices.sizes, (), used))
        train = helds[0].shared[0][0]  # one copy of the images on each device
    step = cost(federation, config.local.batch_size)
    for count in counts:
        cells = group.cells[:count]
        layout = player.fit_to_memory(programs.layout_of(config, count, jax.local_devices()), cells[0])
        run, shared = player.program(layout, cells[0]), player.shared(layout)
        flag = programs.place(layout, jnp.asarray(False), stacked=False)
        loads = []
        for at in range(0, count, layout.lanes):
            states, lanes = player.stacked(cells[at : at + layout.lanes], layout)
            loads.append((programs.place(layout, states, stacked=True), lanes))

        def together(run=run, loads=loads, shared=shared, flag=flag):
            for at, (states, lanes) in enumerate(
                loads
            ):  # the program writes on the states: a round goes on from another
                loads[at] = jax.block_until_ready(run(states, lanes, shared, flag).states), lanes

        def alone(count=count):
            for held, (state, lane) in zip(helds[:count], starts[:count], strict=True):
                jax.block_until_ready(play(held, state, lane.key)[0])

        seconds = medians({"sweep": together, "alone": alone}, repeats)
        steps = sum(int((np.asarray(lane.indices.sizes) // 64).sum()) for _, lane in starts[:count])
        yield (
            count,
            {
                "sweep_seconds": seconds["sweep"] / count,
                "alone_seconds": seconds["alone"] / count,
                "ratio": seconds["sweep"] / seconds["alone"],
                "gflops": speed(step, steps, seconds["sweep"]),
                "alone_gflops": speed(step, steps, seconds["alone"]),
            },
        )


def part_clients(images: int, repeats: int, counts: list[int], methods: Sequence[str]) -> Iterator[Found]:
    for method in methods:
        made = {str(k): single.rounds(configs.resolve(made_up(method, images, k, 16, "iid"))) for k in counts}
        seconds = medians({name: run for name, (run, _) in made.items()}, repeats)
        for name, (run, experiment) in made.items():
            steps = run()
            yield {
                f"clients_seconds_{method}_{name}": seconds[name],
                f"clients_ms_{method}_{name}": seconds[name] / steps * 1e3,
                f"clients_gflops_{method}_{name}": speed(cost(experiment.federation, 16), steps, seconds[name]),
            }


def torch_round(clients: int, images: int, batch: int, rate: float) -> Run:
    """One round of S1 as a plain torch loop over its clients; the images of every client are in memory, float32."""
    import torch

    from fedjax_spmc.parity.torch_reference.local import make_optimizer, train_sgd
    from fedjax_spmc.parity.torch_reference.model import cnn_dropout

    torch.manual_seed(0)
    pixels, labels = torch.randn(clients, images, 3, 32, 32), torch.randint(0, 10, (clients, images))
    server = cnn_dropout()

    def run() -> None:
        total: dict[str, torch.Tensor] = {}
        for client in range(clients):
            student = copy.deepcopy(server).train()
            order = torch.randperm(images).split(batch)
            batches = ((pixels[client, chosen], labels[client, chosen]) for chosen in order)
            train_sgd(student, batches, make_optimizer(student, rate, 0.0, 0.0))
            for name, tensor in student.state_dict().items():
                total[name] = total.get(name, 0) + tensor / clients
        copy.deepcopy(server).load_state_dict(total)

    return run


def part_s1(images: int, repeats: int, clients: int) -> Iterator[Found]:
    config, _ = read_config(str(HERE.parents[1] / "configs" / "s1.py"))
    for path, value in {
        "data.name": "synthetic", "data.options.num_train": images, "federation.clients_per_round": clients,
        "federation.num_clients": images // 50,
    }.items():  # fmt: skip
        set_field(config, path, value)
    config = configs.resolve(config)
    run, experiment = single.rounds(config)
    local = config.local
    runs = {"ours": run, "torch": torch_round(clients, 50, local.batch_size, local.learning_rate)}
    seconds, steps = medians(runs, repeats), run()
    step = cost(experiment.federation, local.batch_size)
    yield {
        "s1_seconds": seconds["ours"],
        "s1_torch_seconds": seconds["torch"],
        "s1_clients_per_second": clients / seconds["ours"],
        "s1_torch_clients_per_second": clients / seconds["torch"],
        "s1_ratio": seconds["torch"] / seconds["ours"],
        "s1_gflops": speed(step, steps, seconds["ours"]),
        "s1_step_mb": step.bytes / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--parts", tuple, PARTS, choices=PARTS), "NAME,...", "which parts")
    parser.flag(Option("--methods", tuple, tuple(METHODS), choices=tuple(METHODS)), "NAME,...", "which methods")
    shares = Option("--shares", tuple, tuple(PARTITIONS), choices=tuple(PARTITIONS))
    parser.flag(shares, "NAME,...", "of the experiments")
    parser.flag(Option("--repeats", int, 3, range=Range(1, 10**9)), "N", "counted rounds of each")
    images = Option("--images", int, None, optional=True, range=Range(1, 10**9))
    parser.flag(images, "N", "training images, in place of each part's own number")
    parser.flag(Option("--experiments", tuple, (1, 4, 16, 64), items=int), "N,...", "sizes of groups")
    parser.flag(Option("--clients", tuple, (10, 100, 1000), items=int), "N,...", "numbers of clients")
    parser.flag(Option("--s1-clients", int, 50, range=Range(1, 10**9)), "N", "clients of a round of S1")
    threads = Option("--threads", int, None, optional=True, range=Range(1, 1024))
    parser.flag(threads, "N", "threads of torch")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    parts: dict[str, Callable[[], Iterator[Found]]] = {
        "experiments": lambda: part_experiments(
            flags["images"] or 6400, flags["repeats"], flags["experiments"], flags["methods"], flags["shares"]
        ),
        "clients": lambda: part_clients(flags["images"] or 16000, flags["repeats"], flags["clients"], flags["methods"]),
        "s1": lambda: part_s1(flags["images"] or 50_000, flags["repeats"], flags["s1_clients"]),
    }
    devices.use_cores()
    if flags["threads"] is not None:
        import torch

        torch.set_num_threads(flags["threads"])
    results: Found = {}
    for name in flags["parts"]:
        for found in parts[name]():
            results |= found
            if not flags["json"]:
                print(f"{name}: {'  '.join(f'{key} {value:.4g}' for key, value in found.items())}", flush=True)
    if flags["json"]:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
