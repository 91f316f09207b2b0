"""Several devices of one machine for one experiment: they share the clients of a round.

A client's training is the same program on whichever device it runs, and nothing is exchanged before the server's part,
which every device computes alike; so the numbers do not depend on how many devices there are. On a CPU every core is
made a device (`use_cores`): two clients on a core each train faster than one on both, because not all of a step can be
split.
"""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_spmc.federation import Federation, FederationState, RoundReport, Trainings, aggregate, train
from fedjax_spmc.training import map_clients
from fedjax_spmc.types import Array, PRNGKey

CLIENTS = "clients"
MOST_CORES = 8
"""So many CPU devices at most: each has a copy of the images."""


def use_cores(wanted: int | None = None) -> None:
    """Makes as many CPU devices as this process may use cores, `MOST_CORES` at most.

    It has an effect only before JAX's first computation, and none on accelerators.

    Args:
        wanted: another number.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", wanted or min(cores, MOST_CORES))
    except RuntimeError:  # JAX has computed something: the devices are what they are
        return


def chosen(clients_per_round: int, wanted: int | None) -> tuple[Any, ...]:
    """The devices that share the clients of a round: all of this process, or `wanted` of them, no more than clients."""
    devices = jax.local_devices()
    return tuple(devices[: min(len(devices), clients_per_round, wanted or len(devices))])


def shared_out(num_rows: int, num_devices: int) -> np.ndarray:
    """Which rank goes where when rows are ranked by their work, the largest first.

    Dealt back and forth (device 0, 1, 1, 0, 0, 1, ...), so that every device gets as many rows and about as much work.

    Returns:
        [num_devices * rows each] ranks, those of device 0 first; where the rows do not divide evenly the last rank, the
        least work, is given out again.
    """
    each = -(-num_rows // num_devices)
    dealt = np.arange(each * num_devices).reshape(each, num_devices)
    dealt[1::2] = dealt[1::2, ::-1]
    return np.minimum(dealt.T.ravel(), num_rows - 1)


def map_clients_over(
    mesh: Mesh, train_one: Callable[..., Any], stacked: Any, client_batch: int, work: Array | None = None
) -> Any:
    """`training.map_clients` with the rows shared among the devices of a mesh; everyone gets all results.

    Args:
        mesh: with the one axis `CLIENTS`.
        train_one, stacked, client_batch: as there.
        work: [K], how long each row takes; None = alike.
    """
    count = jax.tree.leaves(stacked)[0].shape[0]
    order = jnp.arange(count) if work is None else jnp.argsort(-work, stable=True)
    places = shared_out(count, mesh.size)
    rows = order[places]
    # Of a row that was given out twice the first result counts: they are the same.
    first = np.array([np.flatnonzero(places == rank)[0] for rank in range(count)])
    back = jnp.zeros(count, jnp.int32).at[order].set(jnp.asarray(first, jnp.int32))

    def own_rows(mine: Any) -> Any:
        trained = map_clients(train_one, mine, min(client_batch, len(places) // mesh.size))
        return jax.tree.map(lambda x: jax.lax.all_gather(x, CLIENTS, tiled=True), trained)

    shared = jax.shard_map(own_rows, mesh=mesh, in_specs=P(CLIENTS), out_specs=P(), check_vma=False)
    return jax.tree.map(lambda x: x[back], shared(jax.tree.map(lambda x: x[rows], stacked)))


def make_round(
    federation: Federation, arrays: Any, sizes: Array, devices: Sequence[Any]
) -> Callable[[FederationState, PRNGKey], tuple[FederationState, RoundReport]]:
    """The round as two jitted programs, training on all devices and the server's part on the first.

    Apart, because a compiler that sees both rounds the server's part as the way suggests in which the clients' results
    were brought together: its bits would depend on the number of devices.

    Args:
        federation, arrays, sizes: as for `federation.make_round`.
        devices: at least one; they share the clients. States and reports stay on the first.

    Returns:
        (state, key) -> (state, report).
    """

    @jax.jit
    def server_part(state: FederationState, key: PRNGKey, trainings: Trainings, sizes: Array, server: Any) -> Any:
        return aggregate(federation._replace(server=server), sizes, state, key, trainings)

    train_all = _training(federation, arrays, sizes, devices)

    def play(state: FederationState, key: PRNGKey) -> tuple[FederationState, RoundReport]:
        return server_part(state, key, train_all(state, key), sizes, federation.server)

    return play


def _training(
    federation: Federation, arrays: Any, sizes: Array, devices: Sequence[Any]
) -> Callable[[FederationState, PRNGKey], Trainings]:
    """(state, key) -> what the clients have trained, on the first device."""
    if len(devices) == 1:
        jitted = jax.jit(functools.partial(train, federation))
        return lambda state, key: jitted(arrays, sizes, state, key)
    mesh = Mesh(np.array(devices), (CLIENTS,))
    everywhere = NamedSharding(mesh, P())
    sharing = federation._replace(map_clients=functools.partial(map_clients_over, mesh))
    jitted = jax.jit(functools.partial(train, sharing), in_shardings=everywhere, out_shardings=everywhere)
    held = jax.device_put((arrays, sizes), everywhere)
    compiled: list[Any] = []

    def train_all(state: FederationState, key: PRNGKey) -> Trainings:
        if not compiled:
            # Lowered from shapes alone: of arrays that are laid out already, training could not close over any.
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (*held, state, key))
            compiled.append(jitted.lower(*shapes).compile())
        trainings = compiled[0](*held, *jax.device_put((state, key), everywhere))
        return jax.tree.map(lambda x: x.addressable_data(0), trainings)

    return train_all
