"""What many experiments, many clients and a published workload cost, on the devices of this machine.

    python experiments/bench/bench_sweep.py [--parts=experiments,clients,one_step,s1,pfl] [--methods=sgd,spmc]
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
one_step: what a client costs besides its training, where it takes a single step of 16 images: 1000 clients
    (--one-step-clients), SimpleCNN and an MLP of 402,250 parameters, SGD without momentum. `whole` is a round as a run
    plays it, `training` the program in which the devices train the clients, alone: its results stay where they were
    computed, nothing is moved, put in order or averaged. Both in ms a client; `whole_by_training` is their ratio.
s1: a round of `configs/s1.py` on made-up images (50 of 1000 clients, 250 steps of 10 images, the CNN with dropout)
    against plain torch loops in two forked processes of one thread each (--processes), which share the clients and
    whose sums the parent averages: the strongest that a careful user starts on two cores. Float32 images of the round's
    clients in memory (`parity/torch_reference/forked_rounds.py`). Ours draws and normalises its batches from uint8.
pfl: the same round of ours against pfl-research's simulator with as many workers of one thread each (`pfl_rounds.py`).
    Left out, with a sentence, where the interpreter of --pfl, by default this one, has no `pfl` and torch.

GFLOP/s: of the gradients of all local steps (`counting.py`: XLA's account of one step, times the steps), nothing else;
what our form of the network multiplies, which for a convolution with its pool is ((k + 1) / k)^2 of the plain one.
step_mb: what XLA's operations of one step read and write. gflop, mb: of its matrix products alone, as traced.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).resolve().parent))

import counting
import s1_rounds
import single

from fedjax_spmc import config as configs
from fedjax_spmc import devices, numerics, rounds, setup
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config, set_field
from fedjax_spmc.one_round import Trainings, train
from fedjax_spmc.options import Option, Range
from fedjax_spmc.parts import assemble
from fedjax_spmc.sweep import program as programs
from fedjax_spmc.sweep.plan import Sweep, expand, groups_of
from fedjax_spmc.sweep.player import Player
from fedjax_spmc.types import Examples

METHODS = {"sgd": "fedavg", "spmc": "spmc"}
PARTS = ("experiments", "clients", "one_step", "s1", "pfl")
PARTITIONS = {"equal": "iid", "unequal": "dirichlet"}
Found = dict[str, float]
ONE_STEP = ("simple_cnn", "mlp")
ONE_STEP_BATCH = 16


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
            for at, (states, lanes) in enumerate(loads):
                # The program writes on the states: a round goes on from another.
                loads[at] = jax.block_until_ready(run(states, lanes, shared, flag).states), lanes

        def alone(count=count):
            for held, (state, lane) in zip(helds[:count], starts[:count], strict=True):
                jax.block_until_ready(play(held, state, lane.key)[0])

        seconds, _ = single.in_turn({"sweep": together, "alone": alone}, repeats)
        steps = sum(int((np.asarray(lane.indices.sizes) // 64).sum()) for _, lane in starts[:count])
        yield (
            count,
            {
                "sweep_seconds": seconds["sweep"] / count,
                "alone_seconds": seconds["alone"] / count,
                "ratio": seconds["sweep"] / seconds["alone"],
                "gflops": counting.speed(step, steps, seconds["sweep"]),
                "alone_gflops": counting.speed(step, steps, seconds["alone"]),
            },
        )


def part_clients(images: int, repeats: int, counts: list[int], methods: Sequence[str]) -> Iterator[Found]:
    for method in methods:
        made = {str(k): single.Rounds(configs.resolve(made_up(method, images, k, 16, "iid"))) for k in counts}
        seconds, taken = single.in_turn(made, repeats)
        for name, run in made.items():
            steps = taken[name]
            yield {
                f"clients_seconds_{method}_{name}": seconds[name],
                f"clients_ms_{method}_{name}": seconds[name] / steps * 1e3,
                f"clients_gflops_{method}_{name}": counting.speed(
                    cost(run.experiment.federation, 16), steps, seconds[name]
                ),
            }


def part_one_step(repeats: int, clients: int) -> Iterator[Found]:
    for model in ONE_STEP:
        config = made_up("sgd", clients * ONE_STEP_BATCH, clients, ONE_STEP_BATCH, "iid")
        for path, value in {"model.name": model, "local.momentum": 0.0, "local.weight_decay": 0.0}.items():
            set_field(config, path, value)
        whole = single.Rounds(configs.resolve(config))
        runs = {"whole": whole, "training": training_alone(whole.experiment, clients)}
        seconds, _ = single.in_turn(runs, repeats)
        federation = whole.experiment.federation
        flops, moved = counting.traced_step(federation.model, federation.rule, ONE_STEP_BATCH)
        yield {
            f"one_step_gflop_{model}": flops / 1e9,
            f"one_step_mb_{model}": moved / 1e6,
            **{f"one_step_ms_{name}_{model}": value / clients * 1e3 for name, value in seconds.items()},
            f"one_step_whole_by_training_{model}": seconds["whole"] / seconds["training"],
        }


def training_alone(experiment: setup.Experiment, clients: int) -> single.Run:
    """A function that trains the clients of round 0 on all devices and leaves the results there."""
    used = devices.devices_for_round(clients, None)
    federation, state, key = experiment.federation, experiment.state, experiment.key
    placed = rounds.place_inputs(experiment.arrays, experiment.sizes, federation.held, used)
    sharding: dict[str, Any] = {}
    if len(used) > 1:
        mesh = Mesh(np.array(used), (devices.CLIENTS,))
        everywhere, apart = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (devices.CLIENTS,)))
        federation = federation._replace(
            map_clients=functools.partial(devices.map_clients_over, mesh, False, alike=True)
        )
        state, key = jax.device_put((state, key), everywhere)
        sharding = {"in_shardings": everywhere, "out_shardings": Trainings(everywhere, everywhere, apart)}

    def trained(shared: Any, state: Any, key: Any) -> Trainings:
        arrays, sizes, held = shared
        return train(federation._replace(held=held), arrays, sizes, state, key)

    # Lowered from shapes alone, as in the round: of arrays that are laid out already it could not close over any.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (placed.shared, state, key))
    with numerics.pinned():
        compiled = jax.jit(trained, **sharding).lower(*shapes).compile()

    def run() -> None:  # what it returned would lie in memory while the other plays
        jax.block_until_ready(compiled(placed.shared, state, key))

    return run


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
    parser.flag(Option("--one-step-clients", int, 1000, range=Range(1, 10**9)), "N", "clients of one step each")
    parser.flag(Option("--processes", int, 2, range=Range(1, 1024)), "N", "processes of torch, workers of pfl")
    parser.flag(Option("--pfl", str, sys.executable), "PYTHON", "the interpreter that has pfl")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    of_s1 = flags["images"] or 50_000, flags["repeats"], flags["s1_clients"]
    parts: dict[str, Callable[[], Iterator[Found]]] = {
        "experiments": lambda: part_experiments(
            flags["images"] or 6400, flags["repeats"], flags["experiments"], flags["methods"], flags["shares"]
        ),
        "clients": lambda: part_clients(flags["images"] or 16000, flags["repeats"], flags["clients"], flags["methods"]),
        "one_step": lambda: part_one_step(flags["repeats"], flags["one_step_clients"]),
        "s1": lambda: s1_rounds.beside_torch(*of_s1, flags["processes"]),
        "pfl": lambda: s1_rounds.beside_pfl(*of_s1, flags["processes"], flags["pfl"]),
    }
    devices.use_cores()
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
