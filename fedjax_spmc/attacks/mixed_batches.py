"""Mixed batches: each local step of an attacker takes poisoned examples beside clean ones of another client.

How the code of Neurotoxin, as others before it, trains an attacker on pictures: in each of `attack.local.epochs`
internal epochs the batches of poisoned examples go side by side with those of one clean client, until the shorter of
the two ends. What is poisoned, and how, is left to the other attacks of the list, which poison the first half whole
with `attack.poison_fraction=1`: `attack.name=(badnets,mixed_batches)`.

Source: the published code of Zhang, Panda, Song, Yang, Mahoney, Gonzalez, Ramchandran, Mittal, "Neurotoxin: Durable
    Backdoors in Federated Learning", ICML 2022; the paper does not speak of it.
Knows: with `clean=pool` the data of other clients.
Controls: its own training data and training.
Cost: that of larger batches.
Deviations: the code draws its pool among all but the attacker, here it is drawn among benign clients. It is this
    attack's own, another one than that of `neurotoxin`.
"""

import operator
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import training
from fedjax_spmc.attacks._pool import draw_pool
from fedjax_spmc.attacks._training import rule_context
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.options import Range, quoted
from fedjax_spmc.registry import attacks
from fedjax_spmc.training import Hooks
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, ClientData, LocalRule, PRNGKey

COUNT = Range(1, 10**6)


@attacks.register("mixed_batches")
def mixed_batches(
    clean: Literal["pool", "own"] = "pool",
    pool_size: Annotated[int, COUNT] = 30,
    rows: Annotated[int, COUNT] | None = None,
    batches: Annotated[int, COUNT] | None = None,
    relabel: tuple[int, ...] = (),
    target_label: Annotated[int, Range(0, 10**6)] | None = None,
) -> Attack:
    """Trains by the local rule on batches of two halves: `rows` poisoned examples, then a clean batch.

    An internal epoch has as many steps as the shorter half has batches. The loss is the mean over both halves, so that
    their sizes, and not a fraction, say how much is poison. The optimiser goes on through all epochs.

    Args:
        clean: whose clean batches. "pool" draws one client for each internal epoch (the code), "own" takes the
            attacker's own: with the poison of all its examples each then stands in a batch clean and poisoned.
        pool_size: clients in the pool, drawn once for the run, benign ones first; all where there are fewer.
        rows: poisoned examples in a step: a window that moves over the attacker's list, begins anew where the list ends
            and in each epoch at a random place. None = the attacker's batches as they come, an incomplete one too.
        batches: poisoned batches in an epoch; None = as many as it takes to see the attacker's list once. Without
            `rows` it has no more than those.
        relabel: labels; clean examples that have one of them get `target_label` too (the code: 7, whatever the data).
        target_label: what they get; None = the label that the list's backdoor wants.

    Raises:
        ConfigError: something in `relabel` is no label, or nobody says what label they get.
    """

    if any(type(label) is not int or label < 0 for label in relabel):
        raise ConfigError(
            f"attack.options.relabel = {quoted(relabel)} is not allowed: it must be a list of labels, whole numbers "
            "from 0 on."
        )

    def init(ctx: AttackContext, key: PRNGKey) -> Array:
        return draw_pool(ctx.roster, pool_size, key) if clean == "pool" else jnp.zeros(1, jnp.int32)

    def train(
        rule: LocalRule,
        ctx: AttackContext,
        own: Array,
        variables: Any,
        client_state: Any,
        data: ClientData,
        client_id: Array,
        key: PRNGKey,
        hooks: Hooks,
    ) -> Any:
        if relabel and target_label is None and ctx.backdoor is None:
            raise ConfigError(
                f"attack.options.relabel = {quoted(relabel)} is not allowed with attack.target_label = None and no "
                "attack that has a backdoor: attack.target_label must be given."
            )
        epochs = jnp.arange(operator.index(ctx.epochs))
        whose = jnp.full(epochs.shape, client_id)
        if clean == "pool":
            draws = jax.vmap(lambda epoch: jax.random.bits(purpose_key(key, "sampling", epoch)))(epochs)
            whose = own[draws % len(own)]
        first = poisoned_half(data, rows, batches, key)
        mixed, hooks = side_by_side(ctx, first, whose, relabel, target_label, hooks)
        return train_once(rule, ctx, variables, client_state, mixed, key, hooks)

    return Attack(init=init, train=train)


def train_once(
    rule: LocalRule, ctx: AttackContext, variables: Any, client_state: Any, data: ClientData, key: PRNGKey, hooks: Hooks
) -> Any:
    """One pass over `data` by the local rule; returns what `training.sgd` does."""
    return training.sgd(rule, rule_context(ctx, epochs=1), variables, client_state, data, key, hooks)


def poisoned_half(data: ClientData, rows: int | None, batches: int | None, key: PRNGKey) -> ClientData:
    """Data whose step e * num_batches + b is batch b of the poisoned examples in epoch e; see `mixed_batches`."""
    if rows is None:
        count = data.num_batches if batches is None else jnp.minimum(data.num_batches, batches)

        def gather(step: Array, key: PRNGKey) -> Batch:
            each = jnp.maximum(count, 1)
            return data.gather(step // each * data.num_batches + step % each, key)

        return data._replace(gather=gather, num_batches=count)
    assert data.take is not None
    take, size = data.take, jnp.maximum(data.size, 1)
    count = -(-data.size // rows) if batches is None else jnp.where(data.num_batches > 0, batches, 0)

    def window(step: Array, step_key: PRNGKey) -> Batch:
        each = jnp.maximum(count, 1)
        start = jax.random.bits(purpose_key(key, "take", step // each)) % size.astype(jnp.uint32)
        places = start.astype(jnp.int32) + step % each * rows + jnp.arange(rows, dtype=jnp.int32)
        return take(places % size, step_key)

    return data._replace(gather=window, num_batches=jnp.where(data.num_batches > 0, count, 0))


def side_by_side(
    ctx: AttackContext, poisoned: ClientData, whose: Array, relabel: Sequence[int], target: int | None, hooks: Hooks
) -> tuple[ClientData, Hooks]:
    """A single epoch of batches with both halves, and the hooks as they have to be called in it.

    Args:
        ctx: of the round.
        poisoned: the first half; see `poisoned_half`.
        whose: [epochs] int32, the clients whose clean batches are the second half in each internal epoch.
        relabel, target: clean examples with one of these labels get the target; None = what the list's backdoor wants.
        hooks: of the list; they are told steps by which every internal epoch is as long as the poisoned half.
    """
    longest = poisoned.num_batches
    lengths = jax.vmap(lambda client_id: ctx.clean_data(client_id).num_batches)(whose)
    lengths = jnp.minimum(lengths, longest)
    ends = jnp.cumsum(lengths)

    def place(step: Array) -> tuple[Array, Array]:
        epoch = jnp.minimum((ends <= step).sum(dtype=jnp.int32), len(whose) - 1)
        return epoch, step - (ends - lengths)[epoch]

    def gather(step: Array, key: PRNGKey) -> Batch:
        epoch, number = place(step)
        beside = ctx.clean_data(whose[epoch])
        first = poisoned.gather(epoch * longest + number, key)
        second = beside.gather(epoch * beside.num_batches + number, key)
        if relabel:
            wanted = ctx.backdoor(second).labels if target is None else target
            chosen = jnp.isin(second.labels, jnp.asarray(relabel))
            second = second._replace(labels=jnp.where(chosen, wanted, second.labels))
        return Batch(*(jnp.concatenate(pair) for pair in zip(first, second, strict=True)))

    def as_told(step: Array) -> Array:
        epoch, number = place(step)
        return epoch * longest + jnp.where(number == lengths[epoch] - 1, longest - 1, number)

    mixed = ClientData(gather, ends[-1], poisoned.client_id, poisoned.size)
    return mixed, hooks.renumbered(longest, as_told)
