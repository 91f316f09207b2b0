"""The one compiled program of a group: a round of every experiment on its leading axis, evaluated where wanted.

Several devices share the experiment axis, each with a loop of its own; or, where a group is one large experiment, the
client axis inside of its rounds. Neither exchanges a number before the server's part, so that results are the same.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.pipeline import ClientIndices
from fedjax_spmc.devices import CLIENTS, map_clients_over, may_wait
from fedjax_spmc.evaluation import Counts, make_evaluate
from fedjax_spmc.federation import Federation, FederationState, RoundReport, evaluated_model
from fedjax_spmc.one_round import play_round
from fedjax_spmc.parts import assemble
from fedjax_spmc.setup import ArraySettings
from fedjax_spmc.types import Array, Examples, PRNGKey

EXPERIMENTS = "experiments"
MAX_EXPERIMENTS = 256
"""Experiments on a device at most, where memory alone would allow more."""
USABLE_MEMORY = 0.9
"""Share of a device's memory that a program may take."""


class Layout(NamedTuple):
    """How many experiments a program holds and which devices share what.

    Attributes:
        devices: the devices in use.
        axis: `EXPERIMENTS` or `CLIENTS`, what they share.
        batch: experiments vmapped on each device.
    """

    devices: tuple[Any, ...]
    axis: str
    batch: int

    @property
    def lanes(self) -> int:
        """Experiments in the program."""
        return self.batch * (len(self.devices) if self.axis == EXPERIMENTS else 1)


class Lane(NamedTuple):
    """The inputs of an experiment that its rounds do not change; stacked, every leaf leads with the experiment axis."""

    key: PRNGKey
    indices: ClientIndices
    settings: ArraySettings


class SharedData(NamedTuple):
    """The images that all experiments of a program read; `server` are those that the server holds, if any."""

    train: Examples
    test: Examples
    server: Examples | None
    held: Any


class RoundOutcome(NamedTuple):
    """The result of a round of all lanes, every leaf [lanes, ...]; `counts` are zeros where nothing was evaluated."""

    states: FederationState
    reports: RoundReport
    counts: Counts


def layout_of(config: Any, num_cells: int, devices: Sequence[Any]) -> Layout:
    """How to lay out a group of `num_cells` cells before its memory is known.

    A cell that is alone shares its clients among the devices, where these may wait for each other or
    `federation.devices` says how many.
    """
    shared = config.federation.devices or (len(devices) if may_wait(devices[0]) else 1)
    shared = min(shared, len(devices), config.federation.clients_per_round)
    if num_cells == 1 and shared > 1:
        return Layout(tuple(devices[:shared]), CLIENTS, 1)
    used = min(len(devices), num_cells)
    wanted = config.sweep.experiment_batch or (1 if devices[0].platform == "cpu" else MAX_EXPERIMENTS)
    return Layout(tuple(devices[:used]), EXPERIMENTS, min(wanted, -(-num_cells // used)))


def make_program(config: Any, info: DatasetInfo, layout: Layout) -> Callable[..., RoundOutcome]:
    """The program of a group, to be jitted: (states, lanes, shared, evaluate) -> RoundOutcome.

    Args:
        config: resolved, of any cell of the group.
        info: the data set's.
        layout: see there; the leading axis of states and lanes is `layout.lanes`.
    """
    mesh = mesh_of(layout)

    def parts(lane: Lane, shared: SharedData) -> Federation:
        federation = assemble(config, info, shared.server, shared.held, lane.settings)
        if mesh is not None and layout.axis == CLIENTS:
            return federation._replace(map_clients=functools.partial(map_clients_over, mesh, True))
        return federation

    def play(state: FederationState, lane: Lane, shared: SharedData) -> tuple[FederationState, RoundReport]:
        arrays = shared.train, lane.indices
        return play_round(parts(lane, shared), arrays, lane.indices.sizes, state, lane.key)

    def count(state: FederationState, lane: Lane, shared: SharedData) -> Counts:
        federation = parts(lane, shared)
        evaluate = make_evaluate(federation.model, federation.attack, federation.task, shared.held)
        return evaluate(evaluated_model(federation, state), shared.test, state.roster, state.attack)

    def block(states: FederationState, lanes: Lane, shared: SharedData, evaluate: Array) -> RoundOutcome:
        new, reports = _map_experiments(play, layout.batch)(states, lanes, shared)
        counted = functools.partial(_map_experiments(count, layout.batch), new, lanes, shared)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(counted))
        # The round in which an experiment diverges is evaluated whatever the schedule says, as in a single run.
        wanted = evaluate | jnp.any(new.diverged != states.diverged)
        return RoundOutcome(new, reports, jax.lax.cond(wanted, counted, lambda: nothing))

    if mesh is None or layout.axis == CLIENTS:
        return block
    specs = P(EXPERIMENTS), P(EXPERIMENTS), P(), P()
    return jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=P(EXPERIMENTS), check_vma=False)


def _map_experiments(fn: Callable[..., Any], batch: int) -> Callable[..., Any]:
    """Maps over the leading axis of the first two arguments; one experiment alone is not vmapped, which costs speed."""
    if batch > 1:
        return jax.vmap(fn, in_axes=(0, 0, None))

    def alone(states: Any, lanes: Any, shared: Any) -> Any:
        first = jax.tree.map(lambda x: x[0], (states, lanes))
        return jax.tree.map(lambda x: x[None], fn(*first, shared))

    return alone


def mesh_of(layout: Layout) -> Mesh | None:
    """The mesh of a layout; None for one device."""
    return Mesh(np.array(layout.devices), (layout.axis,)) if len(layout.devices) > 1 else None


def sharding(layout: Layout, stacked: bool) -> Any:
    """Where the program wants its arguments: shared along the experiment axis, or whole on every device."""
    mesh = mesh_of(layout)
    if mesh is None:
        return SingleDeviceSharding(layout.devices[0])
    return NamedSharding(mesh, P(EXPERIMENTS) if stacked and layout.axis == EXPERIMENTS else P())


def place(layout: Layout, tree: Any, stacked: bool) -> Any:
    """Puts arrays where the program wants them."""
    return jax.device_put(tree, sharding(layout, stacked))


def bytes_needed(compiled: Any) -> int | None:
    """Memory that a compiled program takes on each device, by its own account; None where there is none."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )


def bytes_usable(device: Any) -> int | None:
    """Memory that a program may take on a device; None where the device does not say (a CPU)."""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(USABLE_MEMORY * limit)


def largest_batch(needed: int, batch: int, shared: int, usable: int) -> int:
    """How many experiments fit on a device, at least one.

    Args:
        needed: bytes of a program with `batch` experiments.
        batch: on each device.
        shared: bytes of it that do not grow with the experiments.
        usable: bytes of a device.
    """
    each = max(1, -(-(needed - shared) // batch))
    return max(1, min(batch, (usable - shared) // each))
