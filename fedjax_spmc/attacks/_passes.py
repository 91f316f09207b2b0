"""Loops of an attacker's own over parts of its data, in orders of their own; a round's epochs do not limit them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import local_rules
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.models.on_batch import on_whole_batches
from fedjax_spmc.training import Hooks, step_of_sgd
from fedjax_spmc.types import Array, Batch, ClientData, Context, PRNGKey, Variables


class Part(NamedTuple):
    """Some of a client's examples.

    Attributes:
        data: the client's.
        places: [M] int32, positions in the client's list; those of this part come first.
        size: int32 scalar, how many there are.
        rows: in a batch.
        key: what the test's augmentation is drawn with.
    """

    data: ClientData
    places: Array
    size: Array
    rows: int
    key: PRNGKey

    @property
    def batches(self) -> Array:
        """int32 scalar, in one pass; none where the client has no batch in this round."""
        return jnp.where(self.data.num_batches > 0, -(-self.size // self.rows), 0)

    def batch(self, number: Array) -> Batch:
        """A batch of a test: in order; rows of the last one that are too many are not valid."""
        rows = number * self.rows + jnp.arange(self.rows, dtype=jnp.int32)
        valid = rows < self.size
        taken = self._take(self.places[jnp.minimum(rows, len(self.places) - 1)], purpose_key(self.key, "step", number))
        asked = valid.reshape(-1, *[1] * (taken.labels.ndim - 1))
        return taken._replace(labels=jnp.where(asked, taken.labels, -1), valid=taken.valid & valid)

    def epoch(self, key: PRNGKey) -> ClientData:
        """Data of one pass in random order, whose last batch is filled up with the first examples."""
        draws = jax.random.bits(purpose_key(key, "shuffle"), self.places.shape)
        draws = jnp.where(jnp.arange(len(self.places)) < self.size, draws, jnp.uint32(0xFFFFFFFF))
        places = jax.lax.sort((draws, self.places), num_keys=1)[1]

        def gather(step: Array, step_key: PRNGKey) -> Batch:
            rows = (step * self.rows + jnp.arange(self.rows, dtype=jnp.int32)) % jnp.maximum(self.size, 1)
            return self._take(places[rows], step_key)

        return ClientData(gather, self.batches, self.data.client_id, self.size)

    def _take(self, places: Array, key: PRNGKey) -> Batch:
        assert self.data.take is not None
        return self.data.take(places, key)


def whole(data: ClientData, key: PRNGKey) -> Part:
    """All of a client's examples."""
    assert data.order is not None
    return Part(data, data.order(key), jnp.asarray(data.size, jnp.int32), _rows(data, key), key)


def _rows(data: ClientData, key: PRNGKey) -> int:
    return jax.eval_shape(lambda: data.gather(jnp.int32(0), key)).labels.shape[0]


def parted(data: ClientData, share: int, key: PRNGKey) -> tuple[Part, Part]:
    """A client's examples in two random parts, the same whenever the key is: the rest, and one in `share`.

    The second part has size // share examples, but one at least; it is in the first part too where there is no other.
    """
    assert data.order is not None
    order = data.order(key)
    rows = _rows(data, key)
    few = jnp.maximum(data.size // share, 1)
    rest = jnp.maximum(data.size - few, 1)
    behind = order[(jnp.arange(len(order), dtype=jnp.int32) + few) % jnp.maximum(data.size, 1)]
    return Part(data, behind, rest, rows, key), Part(data, order, few, rows, key)


def trained_epoch(
    ctx: Context, model: Variables, part: Part, change: Callable[[Batch], Batch], key: PRNGKey
) -> Variables:
    """One pass of SGD on the mean cross entropy with a fresh optimiser; batches are changed before they are used."""
    ctx = ctx._replace(model=on_whole_batches(ctx.model))
    data = part.epoch(key)
    changed = data._replace(gather=lambda step, step_key: change(data.gather(step, step_key)))
    step, start = step_of_sgd(local_rules.make("sgd"), ctx, model, (), changed, purpose_key(key, "train"), Hooks())
    params, stats, *_ = jax.lax.fori_loop(0, data.num_batches, step, start)
    return Variables(params, stats)
