"""What clients keep from round to round where they are too many for a device: on the host, of those ever drawn.

A round touches the rows of the K clients that it draws and no others. So these alone go to the devices and back, and a
client that was never drawn has no row at all: `init` says what it would hold.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.errors import WorkdirError

LIMIT = 2**29
"""Bytes up to which the rows of all N clients lie on the device."""
FEW = 4
"""More than one in so many clients drawn each round: then the rows stay on the device too, as nearly all would move."""
IN_MEMORY = 2**27
"""Bytes of rows that a store holds in memory; more go to a temporary file, which the system caches in what is free."""
AT_ONCE = 16
"""Rows of clients drawn for the first time that are made at once."""


def are_few(clients_per_round: int, num_clients: int) -> bool:
    """Whether a round draws so few of the N clients that the rows of the others are worth leaving where they are."""
    return FEW * clients_per_round <= num_clients


def is_large(rows: Any, num_clients: int, clients_per_round: int) -> bool:
    """Whether N rows are kept on the host.

    Args:
        rows: what is kept of all clients, leaves [N, ...], or their shapes and dtypes.
        num_clients: N.
        clients_per_round: K.
    """
    leaves = jax.tree.leaves(rows)
    if any(jnp.issubdtype(x.dtype, jax.dtypes.extended) for x in leaves):  # keys are no arrays of the host
        return False
    size = sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves)
    return size > LIMIT and are_few(clients_per_round, num_clients)


class Store:
    """The rows of N clients, of which those are held that were ever put. It is never changed: `put` gives another.

    To JAX it is a tree without arrays, so that a state that holds one can be mapped over and moved.

    Args:
        num_clients: N.
        row: shapes and dtypes of one client's row, a tree of arrays without the client axis.
        fresh: ids [AT_ONCE] int32 -> stacked rows of clients that were never drawn.
        held: id -> that client's row, the bytes of its leaves one after another.
        file: where rows go that do not fit into memory.
    """

    def __init__(
        self,
        num_clients: int,
        row: Any,
        fresh: Callable[[np.ndarray], Any],
        held: Mapping[int, Any] | None = None,
        file: "_File | None" = None,
    ):
        self.num_clients = num_clients
        self.row = row
        self._fresh = fresh
        self._held: Mapping[int, Any] = {} if held is None else held
        leaves = jax.tree.leaves(row)
        self._sizes = [int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in leaves]
        self.row_bytes = sum(self._sizes)
        self._file = _File(self.row_bytes) if file is None else file

    @property
    def ids(self) -> list[int]:
        """The clients whose rows are held, ascending."""
        return sorted(self._held)

    def take(self, ids: np.ndarray) -> Any:
        """Rows of clients, stacked, as arrays of the host.

        Args:
            ids: [n] int.
        """
        stacked = jax.tree.map(lambda x: np.empty((len(ids), *x.shape), x.dtype), self.row)
        flat = [_bytes_of(x) for x in jax.tree.leaves(stacked)]
        new = [place for place, one in enumerate(ids) if int(one) not in self._held]
        for start in range(0, len(new), AT_ONCE):
            places = new[start : start + AT_ONCE]
            wanted = np.asarray(ids)[places].astype(np.int32)
            padded = np.concatenate([wanted, np.repeat(wanted[-1:], AT_ONCE - len(places))])
            made = jax.tree.leaves(jax.device_get(self._fresh(padded)))
            for out, rows in zip(jax.tree.leaves(stacked), made, strict=True):
                out[places] = rows[: len(places)]
        for place, one in enumerate(ids):
            if int(one) in self._held:
                self._copy(self._held[int(one)], [x[place] for x in flat])
        return stacked

    def put(self, ids: np.ndarray, rows: Any) -> "Store":
        """The store with the rows of these clients renewed.

        Args:
            ids: [n] int, distinct.
            rows: stacked, arrays of the host.

        Raises:
            WorkdirError: they fit neither into memory nor into the temporary folder.
        """
        flat = [_bytes_of(np.ascontiguousarray(x)) for x in jax.tree.leaves(rows)]
        packed = ((int(one), np.concatenate([x[place] for x in flat])) for place, one in enumerate(ids))
        return self.with_rows(packed)

    def with_rows(self, packed: Iterable[tuple[int, np.ndarray]]) -> "Store":
        """As `put`, of (id, row as bytes [row_bytes] uint8), one after another."""
        held = dict(self._held)
        in_memory = sum(isinstance(one, np.ndarray) for one in held.values())
        for one, row in packed:
            in_memory -= isinstance(held.pop(one, None), np.ndarray)
            fits = (in_memory + 1) * self.row_bytes <= IN_MEMORY
            held[one] = row if fits else self._file.write(row)
            in_memory += fits
        return Store(self.num_clients, self.row, self._fresh, held, self._file)

    def packed(self) -> Iterator[tuple[int, np.ndarray]]:
        """(id, row as bytes) of every client held, ascending; one after another, so that few lie in memory twice."""
        for one in self.ids:
            row = self._held[one]
            yield one, row if isinstance(row, np.ndarray) else self._file.read(row)

    def _copy(self, row: Any, parts: list[np.ndarray]) -> None:
        if not isinstance(row, np.ndarray):
            row = self._file.read(row)
        start = 0
        for part, size in zip(parts, self._sizes, strict=True):
            part[:] = row[start : start + size]
            start += size


def _bytes_of(stacked: np.ndarray) -> np.ndarray:
    """[n, bytes] uint8, the same memory."""
    return stacked.reshape(len(stacked), int(np.prod(stacked.shape[1:]))).view(np.uint8)


jax.tree_util.register_pytree_node(Store, lambda store: ((), store), lambda store, _: store)


class _Place:
    """A row's place in a file; free again once nothing refers to it."""

    def __init__(self, number: int, free: list[int]):
        self.number, self._free = number, free

    def __del__(self) -> None:
        self._free.append(self.number)


class _File:
    """Rows in a temporary file without a name, made with the first of them."""

    def __init__(self, row_bytes: int):
        self._row_bytes = row_bytes
        self._free: list[int] = []
        self._count = 0
        self._file: BinaryIO | None = None

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, row: np.ndarray) -> _Place:
        """Writes a row where there is room."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it lives as long as this object
            if self._free:
                number = self._free.pop()
            else:
                number, self._count = self._count, self._count + 1
            self._file.seek(number * self._row_bytes)
            left = memoryview(row.data)
            while len(left):
                left = left[self._file.write(left) :]
        except OSError as error:
            raise WorkdirError(
                f"the folder for temporary files, {tempfile.gettempdir()}, cannot take what clients keep from round to "
                f"round ({error.strerror}): make room there, or name another in TMPDIR."
            ) from None
        return _Place(number, self._free)

    def read(self, place: _Place) -> np.ndarray:
        """A row, as bytes."""
        assert self._file is not None
        row = np.empty(self._row_bytes, np.uint8)
        self._file.seek(place.number * self._row_bytes)
        left = memoryview(row.data)
        while len(left):
            left = left[self._file.readinto(left) :]  # pyright: ignore[reportAttributeAccessIssue]
        return row
