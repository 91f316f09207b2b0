"""The compiled round: training on all devices that share the clients, the server's part on the first.

Users, tests and parity checks play this one; `sweep/program.py` puts many experiments side by side into one program.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_spmc import numerics, summing, trees
from fedjax_spmc.devices import CLIENTS, balanced_order, hand_back_freed_memory, keeps_order, map_clients_over
from fedjax_spmc.federation import Federation, FederationState, RoundReport
from fedjax_spmc.one_round import Trainings, aggregate, for_training, sampled, train
from fedjax_spmc.store import Store
from fedjax_spmc.types import Array, PRNGKey

HANDED_BACK = 2**26
"""Bytes of a round's rows on the host from which on what training and the server's part have freed goes back to the
system: its holes would else add up to more than the first touch of fresh pages is worth."""


class PlacedInputs(NamedTuple):
    """The inputs of one experiment's rounds.

    Attributes:
        shared: (arrays, sizes, what the attack holds) on all devices.
        first: the same as they were given, on the first device.
        alike: whether all clients have equally many examples.
    """

    shared: tuple[Any, Array, Any]
    first: tuple[Any, Array, Any]
    alike: bool


def place_inputs(arrays: Any, sizes: Array, held: Any, devices: Sequence[Any]) -> PlacedInputs:
    """Puts the inputs of the rounds on the devices; arrays that lie there already are not copied."""
    given = (arrays, sizes, held)
    alike = bool(np.ptp(np.asarray(sizes)) == 0)
    if len(devices) == 1:
        return PlacedInputs(given, given, alike)
    return PlacedInputs(jax.device_put(given, NamedSharding(_mesh(devices), P())), given, alike)


def make_round(
    federation: Federation,
    arrays: Any,
    sizes: Array,
    devices: Sequence[Any] | None = None,
    program: Callable[..., tuple[FederationState, RoundReport]] | None = None,
) -> Callable[[FederationState, PRNGKey], tuple[FederationState, RoundReport]]:
    """The round as two jitted programs, training on all devices and the server's part on the first.

    Apart, because a compiler that sees both rounds the server's part as the way suggests in which the clients' results
    were brought together: its bits would depend on the number of devices.

    Args:
        federation: the parts.
        arrays: what `federation.client_data` reads (images, index lists); like `federation.server` it is an argument of
            the compiled program and no constant.
        sizes: [N] length of every client's index list.
        devices: at least one; they share the clients. States and reports stay on the first. None = JAX's first device.
        program: of `make_program`, of an equal federation on these devices; None makes one.

    Returns:
        (state, key) -> (state, report).
    """
    devices = jax.local_devices()[:1] if devices is None else devices
    play = make_program(federation, devices) if program is None else program
    placed = place_inputs(arrays, sizes, federation.held, devices)
    return numerics.pinned()(lambda state, key: play(placed, state, key))


def make_program(
    federation: Federation, devices: Sequence[Any], owned: bool = False
) -> Callable[[PlacedInputs, FederationState, PRNGKey], tuple[FederationState, RoundReport]]:
    """The programs of `make_round` for any arrays of one shape: (placed, state, key) -> (state, report).

    Only the rows of the clients drawn go in and out; those of all are on the first device or in a `store.Store`.

    Args:
        federation: the parts.
        devices: see `make_round`.
        owned: whether a state that a call has returned belongs to the next call, which writes on its memory.
    """
    train_all = _training(federation, devices)
    aggregator_rows, rule_is_narrow = federation.aggregator(federation.server).rows, federation.rule_is_narrow()

    @functools.partial(jax.jit, donate_argnums=0)  # the rows that come out take the place of those that go in
    def server_part(
        clients: Any, state: FederationState, key: PRNGKey, trainings: Trainings, first: Any, server: Any
    ) -> Any:
        arrays, sizes, held = first
        if rule_is_narrow:
            state = state._replace(rule=state.rule._replace(clients=clients))
        return aggregate(federation._replace(server=server, held=held), arrays, sizes, state, key, trainings)

    @jax.jit
    def draw(state: FederationState, key: PRNGKey) -> tuple[Array, Array | None]:
        client_ids = sampled(federation, state, key)
        return client_ids, None if aggregator_rows is None else aggregator_rows(client_ids)

    take = jax.jit(trees.take_rows)
    put = jax.jit(trees.put_rows, donate_argnums=0)
    returned: list[Any] = [(), ()]  # what the last call has returned of all clients

    def writable(part: int, kept: Any) -> Any:
        """What is kept of all clients, on the first device, where it may be written on."""
        leaves = jax.tree.leaves(kept)  # none of a Store
        if owned and len(leaves) == len(returned[part]) and all(map(operator.is_, leaves, returned[part])):
            return kept
        return jax.tree.map(jnp.copy, jax.device_put(kept, devices[0]))

    def rows_of(kept: Any, ids: Array) -> Any:
        if isinstance(kept, Store):
            return jax.device_put(kept.take(jax.device_get(ids)), devices[0])
        return take(kept, ids) if jax.tree.leaves(kept) else kept

    def with_rows(part: int, kept: Any, ids: Array, rows: Any) -> Any:
        if isinstance(kept, Store):
            return kept.put(jax.device_get(ids), jax.device_get(rows))
        made = put(kept, ids, rows) if jax.tree.leaves(kept) else kept
        returned[part] = jax.tree.leaves(made)
        return made

    def play(placed: PlacedInputs, state: FederationState, key: PRNGKey) -> tuple[FederationState, RoundReport]:
        all_clients, all_aggregated = state.rule.clients, state.aggregator
        if rule_is_narrow:
            all_clients = writable(0, all_clients)
            state = state._replace(rule=state.rule._replace(clients=()))
        if aggregator_rows is not None:
            all_aggregated = writable(1, all_aggregated)
            state = state._replace(aggregator=())
        # The first state is nowhere in particular, later ones are here: said for both, they share a program.
        state, key = jax.device_put((state, key), devices[0])
        client_ids, places = draw(state, key)
        clients = rows_of(all_clients if rule_is_narrow else state.rule.clients, client_ids)
        narrow = state._replace(drawn=client_ids)
        if aggregator_rows is not None:
            narrow = narrow._replace(aggregator=rows_of(all_aggregated, places))
        trainings = train_all(placed, for_training(state, client_ids, clients), key)
        bulky = any(
            len(client_ids) * kept.row_bytes > HANDED_BACK
            for kept in (all_clients, all_aggregated)
            if isinstance(kept, Store)
        )
        if bulky:
            jax.block_until_ready(trainings)
            hand_back_freed_memory()
        clients = clients if rule_is_narrow else ()
        new, report = server_part(clients, narrow, key, trainings, placed.first, federation.server)
        del trainings, clients
        if rule_is_narrow:
            clients = with_rows(0, all_clients, client_ids, new.rule.clients)
            new = new._replace(rule=new.rule._replace(clients=clients))
        if aggregator_rows is not None:
            new = new._replace(aggregator=with_rows(1, all_aggregated, places, new.aggregator))
        if bulky:
            hand_back_freed_memory()
        return new._replace(drawn=()), report

    return play


def _train(
    federation: Federation, arrays: Any, sizes: Array, held: Any, state: FederationState, key: PRNGKey
) -> Trainings:
    return train(federation._replace(held=held), arrays, sizes, state, key)


def _mesh(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), (CLIENTS,))


def _training(
    federation: Federation, devices: Sequence[Any]
) -> Callable[[PlacedInputs, FederationState, PRNGKey], Trainings]:
    """(placed, state, key) -> the clients' trained models, on the first device."""
    if len(devices) == 1:
        jitted = jax.jit(functools.partial(_train, federation))
        return lambda placed, state, key: jitted(*placed.shared, state, key)
    mesh = _mesh(devices)
    everywhere, apart = NamedSharding(mesh, P()), NamedSharding(mesh, P(CLIENTS))

    def shared(alike: bool) -> Any:
        sharing = federation._replace(map_clients=functools.partial(map_clients_over, mesh, False, alike=alike))
        return jax.jit(
            functools.partial(_train, sharing),
            in_shardings=everywhere,
            out_shardings=Trainings(everywhere, everywhere, apart),  # pyright: ignore[reportArgumentType]
        )

    compiled: dict[Any, Any] = {}  # by `alike` and the shapes of what goes in

    @jax.jit
    def in_order(trained: Any, client_ids: Array, sizes: Array) -> Any:
        work = sizes[client_ids]
        work = summing.dealt(work).work if isinstance(trained, summing.Summed) else work
        return trees.take_rows(trained, balanced_order(work, len(devices))[1])

    def train_all(placed: PlacedInputs, state: FederationState, key: PRNGKey) -> Trainings:
        # Lowered from shapes alone: of arrays that are laid out already, training could not close over any.
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (*placed.shared, state, key))
        rows, alike = len(state.drawn), placed.alike
        if federation.sums_models(rows):
            rows, alike = summing.BINS, True  # bins are dealt so that halves are alike
        kind = alike, *((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(shapes))
        if kind not in compiled:
            compiled[kind] = shared(alike).lower(*shapes).compile()
        client_ids, attack, trained = compiled[kind](*placed.shared, *jax.device_put((state, key), everywhere))
        client_ids, attack = jax.tree.map(lambda x: x.addressable_data(0), (client_ids, attack))
        trained = jax.device_put(trained, devices[0])  # the name is taken again, so that the shards are freed
        if not keeps_order(rows, len(devices), alike):
            trained = in_order(trained, client_ids, placed.first[1])
        return Trainings(client_ids, attack, trained)

    return train_all
