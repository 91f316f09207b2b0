"""Averaging many clients without keeping their models: each is added to a sum as soon as it is trained.

Where the new model is a mean whose weights are known before anything is uploaded, nobody needs the K models side by
side. The clients of a round are dealt to `BINS` bins; those of a bin train one after another, and a bin leaves the sum
of their models. Devices share the bins. How many bins there are does not depend on the devices, so neither does the
order in which models are added, and with it no bit of the result.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.aggregators import guard
from fedjax_spmc.devices import balanced_order
from fedjax_spmc.training import Trained
from fedjax_spmc.types import Aggregator, Array, LocalRule, Variables, Verdict

BINS = 24
"""1, 2, 3, 4, 6 and 8 devices have equally many of them, five have nearly so."""
FROM_CLIENTS = 2 * BINS
"""Fewer clients in a round are not summed: their models are hardly more than the bins."""


class Bins(NamedTuple):
    """Which clients go where.

    Attributes:
        rows: [BINS, each] int32, rows of the round's clients, the longest first; K where a place is empty.
        back: [K] int32, each client's place in `rows.ravel()`.
        work: [BINS], how long each bin takes.
    """

    rows: Array
    back: Array
    work: Array


class Summed(NamedTuple):
    """What the bins leave of a round, every leaf [BINS, ...].

    Attributes:
        sums: of the usable clients' variables, each times its coefficient.
        usable, steps, metrics: [BINS, each], of each place: see `guard.usable_rows` and `training.Trained`.
    """

    sums: Variables
    usable: Array
    steps: Array
    metrics: dict[str, Array]


def can_be(rule: LocalRule, aggregator: Aggregator) -> bool:
    """Whether neither clients nor server look at single uploads: a rule without a state or extras, under a mean."""
    fields = LocalRule._field_defaults
    keeps_nothing = rule.init is fields["init"] and rule.after_round is fields["after_round"]
    plain = aggregator.details is Aggregator._field_defaults["details"]
    return keeps_nothing and not rule.sends and aggregator.coefficients is not None and plain


def dealt(work: Array) -> Bins:
    """Deals clients to bins of about the same work, so that each half, quarter and eighth of the bins has as much.

    Args:
        work: [K], how long each client takes.
    """
    num_clients = len(work)
    each = -(-num_clients // BINS)
    padded = jnp.concatenate([work, jnp.zeros(BINS * each - num_clients, work.dtype)])
    rows = balanced_order(padded, BINS)[0].reshape(BINS, each)
    loads = padded[rows].sum(axis=1)
    halves = jnp.arange(BINS).reshape(3, 2, 2, 2).T.ravel()  # a bin's place -> its rank by work
    rows = rows[jnp.argsort(-loads, stable=True)[halves]]
    back = jnp.zeros(BINS * each, jnp.int32).at[rows.ravel()].set(jnp.arange(BINS * each, dtype=jnp.int32))
    return Bins(jnp.minimum(rows, num_clients).astype(jnp.int32), back[:num_clients], padded[rows].sum(axis=1))


def train(
    train_one: Callable[[Array], Trained],
    client_ids: Array,
    sizes: Array,
    aggregator: Aggregator,
    map_bins: Callable[..., Any],
) -> Summed:
    """Trains all clients of a round and sums their models.

    Args:
        train_one: client id -> what it trained.
        client_ids: [K].
        sizes: [N], examples of each client.
        aggregator: whose `coefficients` weigh the models.
        map_bins: (train_bin, stacked bins, 1, work of each) -> stacked results, as `Federation.map_clients`.
    """
    coefficients, num_clients = aggregator.coefficients, len(client_ids)
    assert coefficients is not None
    bins = dealt(sizes[client_ids])
    train_one = jax.jit(train_one, inline=True)  # traced once for its shape and for its use
    like = jax.eval_shape(train_one, client_ids[0])
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (like.steps, like.metrics))

    def train_bin(rows: Array) -> Summed:
        def add(sums: Variables, row: Array) -> tuple[Variables, tuple[Array, Any]]:
            def added() -> tuple[Variables, tuple[Array, Any]]:
                client_id = client_ids[row]
                trained = train_one(client_id)
                row_of_one = trees.broadcast(trained.variables, 1)
                (usable,) = guard.usable_among(trained.steps[None] > 0, row_of_one.params, row_of_one.stats)
                factor = coefficients(sizes[client_id].astype(jnp.float32), usable)
                more = jax.tree.map(
                    lambda total, x: total + jnp.where(usable, x, 0).astype(total.dtype) * factor.astype(total.dtype),
                    sums,
                    trained.variables,
                )
                return more, (usable, (trained.steps, trained.metrics))

            return jax.lax.cond(row < num_clients, added, lambda: (sums, (jnp.zeros((), bool), nothing)))

        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, trees.float_kind([x])), like.variables)
        sums, (usable, (steps, metrics)) = jax.lax.scan(add, sums, rows)
        return Summed(sums, usable, steps, metrics)

    return map_bins(train_bin, bins.rows, 1, bins.work)


def mean(
    summed: Summed, sizes: Array, aggregator: Aggregator, old: Variables
) -> tuple[Variables, Verdict, tuple[Array, Array, dict[str, Array]]]:
    """The server's part, with what `guard.guarded` promises: nothing non-finite comes out.

    Args:
        summed: of the round.
        sizes: [K], examples of the round's clients.
        aggregator: whose `coefficients` the sums are made with.
        old: the model that was broadcast.

    Returns:
        the new model (the old one where it is not finite or fewer than `min_clients` were usable), the verdict, and
        (usable, steps, metrics), each [K].
    """
    assert aggregator.coefficients is not None
    back = dealt(sizes).back
    clients = summed.usable, summed.steps, summed.metrics
    usable, steps, metrics = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], clients)
    factors = aggregator.coefficients(sizes.astype(jnp.float32), usable)
    total = factors.sum()
    mean_of_all = trees.weighted_mean(summed.sums, jnp.full(BINS, 1 / jnp.maximum(total, 1e-30)))
    made = jax.tree.map(lambda x, like: x.astype(like.dtype), mean_of_all, old)
    none = jnp.zeros_like(factors)
    said = Verdict(factors / jnp.maximum(total, 1e-30), none, none > 0)
    finite = trees.all_finite(made.params)
    succeeded, verdict = guard.settled(said, steps > 0, usable, aggregator.min_clients, finite)
    return trees.where(succeeded, made, old), verdict, (usable, steps, metrics)
