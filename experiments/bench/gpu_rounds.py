"""Parts of `bench_gpu.py` that play rounds: the sweep's program on made-up images of CIFAR-10's shape.

The program is the one that a sweep plays, with the paper's ten local epochs in it; how much of its data each client has
is an argument of it. So a round is timed with a sixteenth and with a quarter (or an eighth) of every client's data, and
the whole round is told from the two as a straight line in the sequential steps: the line's slope is the time of a step,
its intercept what a round costs without any (shuffles, the server's part).
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc import data, keys, registry
from fedjax_spmc.config import make_config
from fedjax_spmc.data.dataset import Dataset, num_train
from fedjax_spmc.data.pipeline import ClientIndices
from fedjax_spmc.sweep import Cell, Sweep, expand, groups_of
from fedjax_spmc.sweep import program as programs
from fedjax_spmc.sweep.player import Player
from fedjax_spmc.sweep.program import EXPERIMENTS, Lane, Layout

METHODS = {"sgd": "fedavg", "spmc": "spmc"}
ROUNDS = 50
"""Of a cell of SPMC's Table 2, to which the times are scaled."""
SLOW = 0.8
"""Seconds of the short round from which on the long one is an eighth instead of a quarter."""


class Size(NamedTuple):
    """How much is played.

    Attributes:
        images, test_images: of the data set, a tenth of the first kept apart for validation.
        clients, epochs, batch, model: of the config.
        experiments: numbers of experiments side by side.
        together: of the comparisons of precision and of deterministic operations.
    """

    images: int = 50_000
    test_images: int = 10_000
    clients: int = 10
    epochs: int = 10
    batch: int = 64
    model: str = "simple_cnn"
    experiments: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    together: int = 16


TOY = Size(images=120, test_images=10, clients=2, epochs=1, batch=4, model="mlp", experiments=(1, 2), together=1)


class Case(NamedTuple):
    """One program to be timed.

    Attributes:
        section: of the bench.
        method: one of `METHODS`.
        experiments: side by side.
        client_batch: clients of an experiment side by side; None = all.
        precision: of matrix products, as in the config.
    """

    section: str
    method: str
    experiments: int
    client_batch: int | None = None
    precision: str = "float32"

    def title(self) -> str:
        """In words, for a reader."""
        clients = "" if self.client_batch is None else f", {self.client_batch} clients at a time"
        precision = "" if self.precision == "float32" else f", {self.precision}"
        return f"{self.section}: {self.method} x {self.experiments}{clients}{precision}"


def cases(size: Size) -> list[Case]:
    """What is timed, the most telling first: what does not fit into the time is left out from the end."""
    if size == TOY:  # one of each kind
        single = [Case("precision", "sgd", 1, None, "bfloat16"), Case("client_batch", "sgd", 1, 1)]
        return [*[Case("experiments", "spmc", n) for n in size.experiments], *single]
    first, last, middle = size.experiments[0], size.experiments[-1], size.together
    ends = [n for n in dict.fromkeys((first, middle, last)) if n in size.experiments]
    rest = [n for n in size.experiments if n not in ends]
    batches = [n for n in (1, 5) if n < size.clients]
    return [
        *[Case("experiments", "spmc", n) for n in ends],
        *[Case("experiments", "sgd", n) for n in ends],
        *[Case("precision", "spmc", middle, None, kind) for kind in ("tensorfloat32", "bfloat16")],
        *[Case("client_batch", "spmc", 1, n) for n in batches],
        *[Case("experiments", "spmc", n) for n in rest],
        *[Case("client_batch", "sgd", 1, n) for n in batches],
        *[Case("experiments", "sgd", n) for n in rest],
    ]


def made_up(size: Size) -> Dataset:
    """Random images with the shape, the statistics and the augmentation of CIFAR-10."""
    rng = np.random.default_rng(0)
    cut = num_train(size.images, 0.1)
    images = rng.integers(0, 256, (size.images + size.test_images, 32, 32, 3), np.uint8)
    labels = rng.permutation(np.arange(len(images), dtype=np.int32) % 10)
    spans = (slice(0, cut), slice(cut, size.images), slice(size.images, None))
    info = registry.datasets.make("cifar10").info
    return Dataset(info, *[array[span] for span in spans for array in (images, labels)], fingerprint="made up")


def config_of(size: Size, case: Case) -> Any:
    """The paper's config: ten clients, Dirichlet 0.5, three malicious ones with BadNets."""
    config = make_config(METHODS[case.method], data__name="cifar10", model__name=size.model)
    for path, value in {
        "precision": case.precision,
        "federation.num_clients": size.clients,
        "federation.clients_per_round": size.clients,
        "federation.client_batch": case.client_batch or size.clients,
        "federation.rounds": ROUNDS,
        "local.epochs": size.epochs,
        "local.batch_size": size.batch,
    }.items():
        configs.set_field(config, path, value)
    return config


class Ready(NamedTuple):
    """A compiled case and its arguments; `seconds` to compile, together with those compiled beside it."""

    case: Case
    size: Size
    run: Any
    states: Any
    lanes: Lane
    shared: Any
    seconds: float


def prepare_all(size: Size, wave: Sequence[Case], dataset: data.Dataset) -> list[Ready | Exception]:
    """Compiles several cases at once, each on a thread, and lays out their arguments: nothing is timed meanwhile."""
    layouts = [Layout((jax.local_devices()[0],), EXPERIMENTS, case.experiments) for case in wave]
    sweeps = [Sweep(config_of(size, case), seeds=range(case.experiments)) for case in wave]
    groups = [groups_of(expand(sweep))[0] for sweep in sweeps]
    players = [Player(group, dataset) for group in groups]

    def compiled(player: Player, layout: Layout, like: Cell) -> tuple[Any, float] | Exception:
        start = time.perf_counter()
        try:
            return player.program(layout, like), time.perf_counter() - start
        except Exception as error:  # memory, or an operation that this device lacks: the others have their turn
            return error

    with ThreadPoolExecutor(max(1, len(wave))) as pool:
        programs_of = list(pool.map(compiled, players, layouts, [group.cells[0] for group in groups]))

    ready: list[Ready | Exception] = []
    for case, layout, group, player, made in zip(wave, layouts, groups, players, programs_of, strict=True):
        if isinstance(made, Exception):
            ready.append(made)
            continue
        states, lanes = player.stacked(group.cells, layout)
        states = programs.place(layout, states, stacked=True)
        ready.append(Ready(case, size, made[0], states, lanes, player.shared(layout), made[1]))
    return ready


def shortened(ready: Ready, share: float) -> Lane:
    """The lanes with a share of every client's data, one batch at least."""
    sizes, batch = np.asarray(ready.lanes.indices.sizes), ready.size.batch
    few = np.where(sizes >= batch, np.maximum(np.ceil(sizes * share), batch), sizes).astype(np.int32)
    return ready.lanes._replace(indices=ClientIndices(ready.lanes.indices.rows, jax.device_put(few)))


def step_counts(steps: np.ndarray, client_batch: int) -> tuple[int, int]:
    """Sequential steps of a round, and client-steps.

    Args:
        steps: [experiments, K] local steps, clients in the order in which they are mapped.
        client_batch: clients side by side; the groups come one after another, all experiments side by side.
    """
    groups = [steps[:, i : i + client_batch] for i in range(0, steps.shape[1], client_batch)]
    return int(sum(group.max() for group in groups)), int(steps.sum())


class Round(NamedTuple):
    """A round that was played: seconds, sequential steps, client-steps."""

    seconds: float
    sequential: int
    client_steps: int


def copied(states: Any) -> Any:
    """States for a program, which writes on what it is given."""
    return jax.block_until_ready(jax.tree.map(jnp.copy, states))


def play(ready: Ready, share: float, evaluate: bool = False) -> Round:
    """Plays the first round with a share of the data, once to warm up and twice for the clock: the faster counts."""
    lanes, flag = shortened(ready, share), jnp.asarray(evaluate)
    outcome = jax.block_until_ready(ready.run(copied(ready.states), lanes, ready.shared, flag))
    times = []
    for _ in range(2):
        given = copied(ready.states)
        start = time.perf_counter()
        jax.block_until_ready(ready.run(given, lanes, ready.shared, flag))
        times.append(time.perf_counter() - start)
    steps = np.asarray(outcome.reports.steps)
    return Round(min(times), *step_counts(steps, ready.case.client_batch or ready.size.clients))


def whole_round(ready: Ready) -> tuple[int, int]:
    """Sequential steps and client-steps of a round with all data."""
    sizes = np.asarray(ready.lanes.indices.sizes)
    steps = ready.size.epochs * (sizes // ready.size.batch)
    # Who is mapped with whom is drawn anew in every round; the lists' own order stands for all of them.
    return step_counts(steps, ready.case.client_batch or ready.size.clients)


def measure(ready: Ready) -> dict[str, Any]:
    """One row of the table: times of a step, and what they make of a cell of SPMC's Table 2."""
    short = play(ready, 1 / 16)
    long = play(ready, 1 / 8 if short.seconds > SLOW else 1 / 4)
    evaluated = play(ready, 1 / 16, evaluate=True)
    apart = max(1, long.sequential - short.sequential)
    step = max(0.0, long.seconds - short.seconds) / apart
    sequential, client_steps = whole_round(ready)
    seconds = long.seconds + step * (sequential - long.sequential)
    evaluation = max(0.0, evaluated.seconds - short.seconds)
    cell = ROUNDS * (seconds + evaluation)
    needed = programs.bytes_needed(ready.run)
    return {
        **ready.case._asdict(),
        "compile_seconds": ready.seconds,
        "memory_mib": None if needed is None else needed / 2**20,
        "ms_per_sequential_step": 1e3 * step,
        "ms_per_client_step": 1e3 * step * apart / max(1, long.client_steps - short.client_steps),
        "ms_round_without_steps": 1e3 * max(0.0, short.seconds - step * short.sequential),
        "ms_evaluation": 1e3 * evaluation,
        "sequential_steps_played": [short.sequential, long.sequential],
        "sequential_steps_of_a_round": sequential,
        "client_steps_of_a_round": client_steps,
        "scaled_by": sequential / max(1, long.sequential),
        "seconds_of_all_cells": cell,
        "experiments_per_minute": 60 * ready.case.experiments / cell if cell else None,
    }


def bits(tree: Any) -> list[bytes]:
    """The bytes of every leaf."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.tree.map(keys.numbers_of, tree))]


def through_bytes(tree: Any) -> Any:
    """The tree as it comes back from a file: to bytes on the host, and from them to the device."""

    def one(leaf: Any) -> Any:
        host = np.asarray(keys.numbers_of(leaf))
        array = jax.device_put(np.frombuffer(host.tobytes(), host.dtype).reshape(host.shape), leaf.sharding)
        return keys.leaf_of(array, leaf)

    return jax.tree.map(one, tree)


def same_bits(ready: Ready) -> dict[str, bool]:
    """Whether a round gives the same bits when it is played again, and two rounds when the state was saved between."""
    lanes, flag = shortened(ready, 1 / 16), jnp.asarray(False)

    def once(states: Any) -> Any:
        return ready.run(copied(states), lanes, ready.shared, flag).states

    one = once(ready.states)
    two = bits(once(one))
    return {"repeats": bits(one) == bits(once(ready.states)), "resumes": two == bits(once(through_bytes(one)))}


def deterministic_rows(size: Size, dataset: Dataset, kept: Mapping[Any, Ready]) -> dict[str, Any]:
    """Times of SPMC for one and for several experiments, and whether their bits are the same again.

    Args:
        size, dataset: as for `prepare_all`.
        kept: programs that are there already, by (method, experiments).
    """
    wanted = list(dict.fromkeys((1, size.together)))
    missing = [n for n in wanted if ("spmc", n) not in kept]
    made = prepare_all(size, [Case("deterministic", "spmc", n) for n in missing], dataset)
    new = dict(zip(missing, made, strict=True))
    found: dict[str, Any] = {}
    for n in wanted:
        ready = kept.get(("spmc", n)) or new[n]
        if isinstance(ready, Exception):
            raise ready
        found[str(n)] = {"ms_per_sequential_step": measure(ready)["ms_per_sequential_step"], **same_bits(ready)}
    return found
