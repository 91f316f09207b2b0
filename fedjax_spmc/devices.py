"""Several devices of one machine for one experiment: they share the clients of a round.

A client's training is the same program on whichever device it runs, and nothing is exchanged before the server's part,
which every device computes alike; so the numbers do not depend on how many devices there are. On a CPU every core is
made a device (`use_cores`): two clients on a core each train faster than one on both, because not all of a step can be
split.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedjax_spmc import trees
from fedjax_spmc.training import map_clients
from fedjax_spmc.types import Array

CLIENTS = "clients"
MALLOC = {"mmap_threshold": (-3, 2**31 - 1), "trim_threshold": (-1, 2**31 - 1), "top_pad": (-2, 2**26)}
"""Of glibc's `mallopt`: number and value. Blocks up to 2 GiB come from the heap, which is not handed back."""
MAX_CORES = 8
"""CPU devices at most: each has a copy of the images."""
WAIT_FLAG = "xla_cpu_collective_call_terminate_timeout_seconds"
"""XLA's flag that says how long one CPU device may wait for another."""


def use_cores(wanted: int | None = None) -> None:
    """Makes as many CPU devices as this process may use cores, `MAX_CORES` at most.

    It has an effect only before JAX's first computation, and none on accelerators; but for memory, see
    `keep_freed_memory`. Where it can, it lets these devices
    wait for each other as long as they like (`may_wait`), by way of the variable XLA_FLAGS.

    Args:
        wanted: another number.
    """
    keep_freed_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    try:
        jax.config.update("jax_num_cpu_devices", wanted or min(cores, MAX_CORES))
    except RuntimeError:  # JAX has computed something: the devices are what they are
        return
    # XLA aborts on a flag that it does not know: these are set where they were tried.
    if version("jaxlib").startswith("0.10.") and WAIT_FLAG not in os.environ.get("XLA_FLAGS", ""):
        limits = [f"--{name}=1000000" for name in (WAIT_FLAG, WAIT_FLAG.replace("terminate", "warn_stuck"))]
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *limits]).strip()


def keep_freed_memory() -> None:
    """Tells glibc, where it is the C library, to keep freed memory for the next allocation.

    Else every array of some size lies in pages that are fresh from the system, and a round that copies many clients'
    models spends most of that time on the first touch of each page. The process then holds what it once needed until
    its end. It is left alone where the environment says otherwise (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_).
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        for name, value in MALLOC.values():
            mallopt(name, value)


def hand_back_freed_memory() -> None:
    """Hands back to the system what `keep_freed_memory` has kept until now."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None elsewhere, and where the environment says what it does with freed memory."""
    said = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" and not said else None


def may_wait(device: Any) -> bool:
    """Whether a device may wait for others inside of a program: a CPU's only where `use_cores` could say so.

    XLA aborts the process when one CPU device waits for another for longer than 40 s.
    """
    return device.platform != "cpu" or WAIT_FLAG in os.environ.get("XLA_FLAGS", "")


def devices_for_round(clients_per_round: int, wanted: int | None) -> tuple[Any, ...]:
    """The devices that share the clients of a round: all of this process, or `wanted` of them, no more than clients."""
    devices = jax.local_devices()
    return tuple(devices[: min(len(devices), clients_per_round, wanted or len(devices))])


def balanced_order(work: Array, num_devices: int) -> tuple[Array, Array]:
    """The order in which rows go to devices so that each gets equally many and about as much work.

    Ranked by work, every `num_devices` rows in a row make a tier, of which each device gets one. The tiers are dealt by
    how far apart their rows are, the widest first, the most work to the device that has the least so far: what is left
    to even out shrinks with every tier (the differencing method of Karmarkar and Karp, for shares of equal size).

    Args:
        work: [K], how long each row takes.
        num_devices: among so many.

    Returns:
        [num_devices * rows each] rows, those of device 0 first, the longest first; where K does not divide evenly the
        row of least work is given out again. [K] positions in it, of a row that was given out twice the first.
    """
    num_rows = len(work)
    each = -(-num_rows // num_devices)
    order = jnp.argsort(-work, stable=True)
    ranks = np.minimum(np.arange(each * num_devices), num_rows - 1).reshape(each, num_devices)
    tiers = work[order][ranks]
    widest = jnp.argsort(tiers[:, -1] - tiers[:, 0], stable=True)

    def deal(loads: Array, tier: Array) -> tuple[Array, Array]:
        idlest = jnp.argsort(loads, stable=True)
        return loads.at[idlest].add(tier), jnp.zeros(num_devices, jnp.int32).at[idlest].set(jnp.arange(num_devices))

    _, dealt = jax.lax.scan(deal, jnp.zeros(num_devices, work.dtype), tiers[widest])
    place_in_tier = jnp.zeros((each, num_devices), jnp.int32).at[widest].set(dealt)
    places = jnp.take_along_axis(jnp.asarray(ranks), place_in_tier, axis=1).T.ravel()
    rows = order[places]
    return rows, jnp.full(num_rows, len(places), jnp.int32).at[rows].min(jnp.arange(len(places), dtype=jnp.int32))


def keeps_order(num_rows: int, num_devices: int, alike: bool) -> bool:
    """Whether rows go to devices in their own order: those of equal work, where each device gets equally many."""
    return alike and num_rows % num_devices == 0


def map_clients_over(
    mesh: Mesh,
    gathered: bool,
    train_one: Callable[..., Any],
    stacked: Any,
    client_batch: int,
    work: Array,
    alike: bool = False,
) -> Any:
    """`training.map_clients` with the rows shared among the devices of a mesh.

    Args:
        mesh: with the one axis `CLIENTS`.
        gathered: every device gets all results, in order. If not, each keeps its own, as they were dealt out: then no
            device ever waits for another.
        train_one, stacked, client_batch: as there.
        work: [K], how long each row takes.
        alike: whether all rows are known to be equal work, see `keeps_order`.
    """
    order = None if keeps_order(len(work), mesh.size, alike) else balanced_order(work, mesh.size)
    each = -(-len(work) // mesh.size)

    def train_own_rows(own: Any) -> Any:
        trained = map_clients(train_one, own, min(client_batch, each))
        return jax.tree.map(lambda x: jax.lax.all_gather(x, CLIENTS, tiled=True), trained) if gathered else trained

    specs = P() if gathered else P(CLIENTS)
    shared = jax.shard_map(train_own_rows, mesh=mesh, in_specs=P(CLIENTS), out_specs=specs, check_vma=False)
    if order is None:
        return shared(stacked)
    rows, back = order
    results = shared(trees.take_rows(stacked, rows))
    return trees.take_rows(results, back) if gathered else results
