"""Chameleon: the attacker first makes poisoned examples look like those of the wanted class, then fits the classifier.

Beside any poisoning of data that has a class to an example: `attack.name=(badnets,chameleon)`. In a first stage the
network without its last layer learns features by supervised contrast, in which examples with the wanted label, poisoned
and clean alike, attract each other more strongly. In the second stage the last layer alone is trained on them, as
`attack.local` says (the code for pixels on CIFAR-10: 3 epochs, learning rate 0.01, milestones (2, 4), gamma 0.005).

Source: Dai, Li, "Chameleon: Adapting to Peer Images for Planting Durable Backdoors in Federated Learning", ICML 2023,
    and its published code.
Knows: nothing of the others.
Controls: its own training data and training.
Cost: `contrastive_epochs` passes more over its data; for the tests, before the second stage and behind each of its
    epochs, the clean data twice through the network.
Deviations: the code draws 1600 to 6400 pictures of the whole training set for the attacker, here it has its own data;
    what is poisoned, and how, is left to the other attacks of the list, and no noise is added. Its tests are on the
    test set, here on the attacker's own clean data, without and with the trigger. Masks of other attacks of the list
    act in both stages, in the code by default in the second alone. Features are what the last layer takes, whatever the
    network. A factor on similarities between poisoned examples and class 1, which the code has and always sets to 1, is
    left out. Of the steps that are reported those of the second stage count.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks._passes import whole
from fedjax_spmc.attacks._stopping import stopping, test_of
from fedjax_spmc.attacks._success import require_backdoor
from fedjax_spmc.attacks._training import rule_context
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.losses import asked
from fedjax_spmc.options import FRACTION, NON_NEGATIVE, POSITIVE, TRACED, Range, quoted, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.training import Hooks, step_of_sgd
from fedjax_spmc.types import (
    Array,
    Attack,
    AttackContext,
    Batch,
    ClientData,
    Context,
    LocalRule,
    Params,
    PRNGKey,
    Stats,
    Variables,
)

LAST_LAYER = 2
"""Tensors of the last layer, which are the last ones: weight and bias."""
SHORTEST = 1e-12
"""Features are divided by their length, or by this where they are shorter."""

Epoch = Callable[[Array], ClientData]
"""Number of an epoch -> its data: one pass, steps counted from 0."""


@attacks.register("chameleon")
def chameleon(
    contrastive_epochs: Annotated[int, Range(0, 10**4)] = 10,
    contrastive_rate: Annotated[float, NON_NEGATIVE, TRACED] = 0.005,
    contrastive_milestones: tuple[int, ...] = (2, 4, 6, 8),
    contrastive_gamma: Annotated[float, FRACTION, TRACED] = 0.1,
    temperature: Annotated[float, POSITIVE, TRACED] = 0.07,
    weight: Annotated[float, NON_NEGATIVE, TRACED] = 2.0,
    freeze: bool = True,
    radius: Annotated[float, POSITIVE, TRACED] | None = 5.0,
    threshold: Annotated[float, POSITIVE, TRACED] | None = None,
    stop_loss: Annotated[float, POSITIVE, TRACED] | None = 1e-4,
    keep_accuracy: bool = True,
) -> Attack:
    """Trains on sum_i o_i / (B |P_i|) sum_{j in P_i} (log sum_{k != i} exp s_ik - s_ij), then on the local rule's loss.

    s_ij is the cosine of the features of the examples i and j of a batch of B, divided by the temperature; P_i are the
    others with the label of i; o_i is `weight` where it is the label wanted, else 1. Momentum and weight decay of both
    stages are the attacker's; each begins with a fresh optimiser. In both, batch statistics move.

    Args:
        contrastive_epochs: passes of the first stage, each over the client's list in an order of its own; 0 leaves it
            out.
        contrastive_rate: its learning rate (the code: 0.005 for pixels on CIFAR-10, 0.05 on EMNIST, 0.1 for semantic
            backdoors, 0.01 for edge cases).
        contrastive_milestones: its epochs, from 0, at whose start the rate falls.
        contrastive_gamma: by which factor (the code: 0.1, 0.005, 0.01 or 0.001).
        temperature: of the cosines.
        weight: o of the label wanted (the code: 2 to 9).
        freeze: whether the second stage trains the last layer alone.
        radius: behind each step the update from the broadcast model is cut to this length, over all parameters; None =
            it is not.
        threshold: of the first stage: longer updates are brought to the length `radius`, which the code sets apart;
            None = the radius.
        stop_loss: of the second stage: see `constrain_and_scale`.
        keep_accuracy: of the second stage, against the accuracy at its start: see `constrain_and_scale`.

    Raises:
        ConfigError: milestones that are no epochs; no attack of the list has a backdoor; the network does not end in a
            linear layer with a bias; a label is asked at every place of a text.
    """
    if any(type(epoch) is not int or epoch < 0 for epoch in contrastive_milestones):
        raise ConfigError(
            f"attack.options.contrastive_milestones = {quoted(contrastive_milestones)} is not allowed: it must be a "
            "list of epochs, whole numbers from 0 on."
        )
    if stop_loss is None:
        refuse_unused(chameleon, "stop_loss = None", {"keep_accuracy": keep_accuracy}, "attack")
    if radius is None:
        refuse_unused(chameleon, "radius = None", {"threshold": threshold}, "attack")
    test = test_of("chameleon")

    def train(
        rule: LocalRule,
        ctx: AttackContext,
        own: Any,
        variables: Variables,
        client_state: Any,
        data: ClientData,
        client_id: Array,
        key: PRNGKey,
        hooks: Hooks,
    ) -> Any:
        require_backdoor(ctx, "chameleon")
        require_features(ctx, data, key)
        part = whole(data, key)
        stage_one, stage_two = (purpose_key(key, purpose) for purpose in ("prepare", "train"))
        variables = contrasted(
            supervised_contrast(ctx, temperature, weight),
            rule_context(ctx, hyper={**ctx.hyper, "learning_rate": contrastive_rate}),
            variables,
            (lambda epoch: part.epoch(purpose_key(key, "take", epoch)), contrastive_epochs, part.batches),
            stage_one,
            cut(ctx, hooks.renumbered(part.batches, lambda step: step), radius, threshold),
            (contrastive_milestones, contrastive_gamma),
        )
        fit = stopping(stop_loss, keep_accuracy, False, test, last_layer(variables.params) if freeze else None)
        hooks = cut(ctx, hooks, radius, None)
        return fit(rule, ctx, own, variables, client_state, data, client_id, stage_two, hooks)

    return Attack(train=train)


def require_features(ctx: AttackContext, data: ClientData, key: PRNGKey) -> None:
    """Refuses a network without features, and data with a label at every place.

    Raises:
        ConfigError: there is nothing to contrast.
    """
    if jax.eval_shape(lambda: data.gather(jnp.int32(0), key)).labels.ndim != 1:
        raise ConfigError(
            "attack.name = chameleon is not allowed with data that ask for a label at every place: it must be a data "
            "set of pictures or texts with a class each."
        )
    if ctx.model.features is None:
        raise ConfigError(
            "attack.name = chameleon is not allowed with a network that does not end in a linear layer with a bias, "
            "as model.name says: it must be one that does."
        )


def last_layer(params: Params) -> Any:
    """Bools like the parameters: True for the last layer."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [i >= len(leaves) - LAST_LAYER for i in range(len(leaves))])


def contrastive_loss(
    features: Array, labels: Array, counted: Array, weights: Array, temperature: float | Array
) -> Array:
    """The loss of `chameleon`'s first stage.

    Args:
        features: [B, F] of length 1.
        labels: [B].
        counted: [B] bool, which rows there are; B in the loss is their number.
        weights: [B], o.
        temperature: see `chameleon`.
    """
    features = jnp.where(counted[:, None], features, 0.0)
    similar = jnp.matmul(features, features.T, precision=jax.lax.Precision.HIGHEST) / temperature
    pairs = counted[:, None] & counted[None, :]
    others = pairs & ~jnp.eye(len(labels), dtype=bool)
    largest = jax.lax.stop_gradient(jnp.where(pairs, similar, -jnp.inf).max(axis=1, keepdims=True))
    logits = similar - jnp.where(jnp.isfinite(largest), largest, 0.0)
    total = jnp.where(others, jnp.exp(logits), 0.0).sum(axis=1, keepdims=True)
    logs = logits - jnp.log(jnp.where(total > 0, total, 1.0))
    alike = others & (labels[:, None] == labels[None, :])
    number = alike.sum(axis=1)
    anchors = jnp.where(alike, logs, 0.0).sum(axis=1) * weights / jnp.maximum(number, 1)
    return -anchors.sum() / jnp.maximum(counted.sum(), 1)


def supervised_contrast(ctx: AttackContext, temperature: float | Array, weight: float | Array) -> LocalRule:
    """The first stage as a local rule; the last layer has no gradient."""

    def gradients(
        _: Context, params: Params, stats: Stats, batch: Batch, client_state: Any, key: PRNGKey
    ) -> tuple[Params, Stats, dict[str, Array]]:
        del client_state
        wanted = ctx.backdoor(batch).labels.max()
        weights = jnp.where(batch.labels == wanted, weight, 1.0)
        counted = asked(batch.labels, batch.valid)

        def loss(params: Params) -> tuple[Array, Stats]:
            features, new_stats = ctx.model.features(params, stats, batch.inputs, True, key)
            lengths = jnp.maximum(trees.client_norm(features), SHORTEST)
            unit = features / lengths[:, None]
            return contrastive_loss(unit, batch.labels, counted, weights, temperature), new_stats

        (value, new_stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, new_stats, {"loss": value}

    return LocalRule(gradients=gradients)


def cut(ctx: AttackContext, hooks: Hooks, radius: float | Array | None, threshold: float | Array | None) -> Hooks:
    """The hooks, and before the list's own what brings updates that are longer than the threshold to the radius."""
    if radius is None:
        return hooks
    after, center = hooks.after_step, ctx.variables.params
    longest = radius if threshold is None else threshold

    def after_step(params: Params, step: Array) -> Params:
        moved = jax.tree.map(jnp.subtract, params, center)
        length = trees.client_norm(jax.tree.map(lambda x: x[None], moved))[0]
        share = radius / jnp.where(length > 0, length, 1.0)
        inside = jax.tree.map(lambda g, x: g + share * x, center, moved)
        return after(trees.where(length > longest, inside, params), step)

    return hooks._replace(after_step=after_step)


def contrasted(
    rule: LocalRule,
    ctx: Context,
    variables: Variables,
    passes: tuple[Epoch, int, Array],
    key: PRNGKey,
    hooks: Hooks,
    falls: tuple[Sequence[int], float | Array],
) -> Variables:
    """The first stage: SGD on all layers but the last.

    Args:
        rule: states the gradients.
        ctx: with the learning rate of this stage.
        variables: the model before.
        passes: data of an epoch, how many epochs, steps in each.
        key: of the stage.
        hooks: of the list; their rate is that of the second stage, and they may not bend these gradients.
        falls: epochs at whose start the rate is multiplied, and with what.
    """
    epoch_of, epochs, each = passes
    milestones, gamma = falls
    encoder = jax.tree.map(lambda last: not last, last_layer(variables.params))

    def stepping(epoch: Array) -> Any:
        passed = (epoch >= jnp.asarray(milestones, jnp.int32)).sum()
        data = epoch_of(epoch)
        own = hooks._replace(rate=lambda step: jnp.float32(gamma) ** passed, gradients=None)
        shifted = data._replace(gather=lambda step, step_key: data.gather(step - epoch * each, step_key))
        return step_of_sgd(rule, ctx, variables, (), shifted, key, own, moving=encoder)

    def train_epoch(epoch: Array, carry: Any) -> Any:
        step, _ = stepping(epoch)
        return jax.lax.fori_loop(epoch * each, (epoch + 1) * each, step, carry)

    first = stepping(jnp.int32(0))[1]
    params, stats, *_ = jax.lax.fori_loop(0, jnp.where(each > 0, epochs, 0), train_epoch, first)
    return Variables(params, stats)
