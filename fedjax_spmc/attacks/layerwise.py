"""Layerwise: only the layers that carry the backdoor come from a poisoned model, the rest is as benign clients send it.

Beside any poisoning of data: `attack.name=(badnets,layerwise)`. A layer is one tensor of the parameters. The first
attacking client of a round finds out which layers its backdoor needs, and all attackers of the round send what it
makes: the mean c of simulated benign models with these layers of its poisoned model m in place, as many of them as the
server that they simulate lets through.

Source: Zhuang, Yu, Wang, Hua, Zhang, Yuan, "Backdoor Federated Learning by Poisoning Backdoor-Critical Layers", ICLR
    2024, sections 4 and 5, and its published code.
Knows: how many clients there are and take part, and who the other malicious ones are; with `knowledge=benign` the
    benign uploads of the round. The server's rule is an option of its own.
Controls: its own upload; the training of a malicious and a benign model on the first attacker's clean data.
Cost: 2 L + 1 tests on a quarter of the first attacker's data, L being the number of tensors. With `analysis=trained`
    up to `search_epochs` + 2 epochs of training, with "local" one benign training; with `knowledge=own` a benign
    training for each simulated client; O(K D) for each list that is tried out on the server.
Deviations: the code crafts anew for every attacking slot of a round, with one attacker less each time; here all send
    the same. Where it would train for ever because the accuracy stays low, the search ends after `search_epochs`. Its
    Krum is not defined for fewer than 2 f + 3 models; here f is lowered. It simulates without any attacker where
    malicious clients are fewer than take part and few; here one stands there at least. Batches of the search have the
    config's size, the last one of an epoch is filled up with the first ones, and pictures are augmented as in training.
    The triggered examples of attacks that have test examples of their own are these.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks import _layers
from fedjax_spmc.attacks._passes import Part, parted, trained_epoch
from fedjax_spmc.attacks._success import accuracy_of, backdoor_of, require_backdoor
from fedjax_spmc.attacks._training import rule_context
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.options import FRACTION, POSITIVE, TRACED, Range, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, PRNGKey, Upload, Variables

EPOCHS_AT_ONCE = 4
"""The accuracy of the benign model is looked at so often."""
COUNT = Range(0, 10**6)


class LayerState(NamedTuple):
    """What was found in the last attack round; zeros before.

    Attributes:
        sent: [L] bool, which layers came from the poisoned model, in the order of the parameters.
        enough: int32 scalar, how many layers the backdoor needs.
        change: [L] float32, by how many percent points the success of the malicious model rises when one layer is the
            benign model's.
        success: float32 scalar, of the malicious model, in percent.
    """

    sent: Array
    enough: Array
    change: Array
    success: Array


@attacks.register("layerwise")
def layerwise(
    mode: Literal["adaptive", "plain", "flip"] = "adaptive",
    analysis: Literal["trained", "local"] = "trained",
    tau: Annotated[float, FRACTION, TRACED] | None = None,
    scale: Annotated[float, POSITIVE, TRACED] | None = 1.0,
    defence: _layers.Defence = "krum",
    assumed: Annotated[int, COUNT] = 2,
    shrink: _layers.Shrink = "accepted",
    knowledge: Literal["own", "benign"] = "own",
    search_accuracy: Annotated[float, Range(0, 100), TRACED] = 93.0,
    search_epochs: Annotated[int, COUNT] = 32,
    search_rate: Annotated[float, POSITIVE, TRACED] = 0.1,
    search_momentum: Annotated[float, Range(0, 1, high_open=True), TRACED] = 0.5,
) -> Attack:
    """Uploads c with w + scale (m - w) + max(0, 1 - scale) (c - w) in the critical layers, w being the broadcast model.

    Layers are ordered by how much success a malicious model loses when one of them is a benign model's. The critical
    ones are the first k in this order, k being the smallest number with which the benign model has the share `tau` of
    the malicious one's success; success is measured on a random quarter of the first attacker's clean data, with the
    trigger of the whole list, those left out that have the wanted label. Batch statistics of the upload are c's.

    Args:
        mode: "adaptive" (what the code runs) leaves out layers until the simulated server takes the upload; "plain" and
            "flip" (LPA and LFA, which its release cannot run) send all critical layers, with c the first attacker's own
            benign model, "flip" as 2 w - m.
        analysis: of which models: "trained" (the code) trains the benign one from w on three quarters of the data until
            the accuracy on these is reached, and the malicious one from there for an epoch of batches that stand there
            clean and triggered; "local" (the code's adaptive_local) takes the first attacker's benign model and m.
        tau: share of the malicious model's success; None = 0.95 for "adaptive", else 0.8.
        scale: of the critical layers (the code: 1, 0.5 for small networks). None = as much as the simulated server
            lets through, found by the code's search, which nothing there calls.
        defence: what the attackers simulate (the code: "krum" also against servers without a defence, FLTrust,
            FLDetector and RLR). They are let through where one of their copies is chosen.
        assumed: f, the number of attackers that the simulated Krum assumes.
        shrink: "accepted" sends the longest list that is let through, a single layer where none is; "reference" (the
            code) the list that was tried before that one; "grow" the longest up to which all are let through.
        knowledge: what c is the mean of, and what stands beside the crafted copies: "own" (the code) the models that
            the first malicious clients, in the order of their ids, train on their clean data; "benign" the uploads of
            the round but the attackers'. Of "own" there are min(M, K) - a, but at least one, of M malicious clients, K
            that take part and a attackers; where M < K, a is floor(M M / N).
        search_accuracy: of "trained": in percent (the code: 93 for CIFAR-10, else 90), looked at every four epochs.
        search_epochs: of "trained": no more than so many.
        search_rate: of "trained": learning rate.
        search_momentum: of "trained": momentum, which begins anew with each epoch.

    Raises:
        ConfigError: no attack of the list has a backdoor; an option has no effect with others.
    """
    if mode != "adaptive":
        idle = {"scale": scale, "defence": defence, "assumed": assumed, "shrink": shrink, "knowledge": knowledge}
        refuse_unused(layerwise, f"mode = {mode!r}", idle, "attack")
    if defence == "flame":
        refuse_unused(layerwise, "defence = 'flame'", {"assumed": assumed}, "attack")
    if analysis == "local":
        search = {"search_accuracy": search_accuracy, "search_epochs": search_epochs}
        search |= {"search_rate": search_rate, "search_momentum": search_momentum}
        refuse_unused(layerwise, "analysis = 'local'", search, "attack")
    threshold = (0.95 if mode == "adaptive" else 0.8) if tau is None else tau

    def init(ctx: AttackContext, key: PRNGKey) -> LayerState:
        del key
        number = len(jax.tree.leaves(ctx.variables.params))
        return LayerState(jnp.zeros(number, bool), jnp.int32(0), jnp.zeros(number), jnp.float32(0))

    def craft(ctx: AttackContext, own: LayerState, upload: Upload, key: PRNGKey) -> tuple[Upload, LayerState]:
        require_backdoor(ctx, "layerwise")
        attacking = ctx.roster.attacks_now(ctx.client_ids) & upload.participating
        first = jnp.argmax(attacking)
        poisoned: Variables = trees.take_rows(Variables(upload.client_params, upload.client_stats), first)
        client_id = ctx.client_ids[first]
        train, check = parted(ctx.clean_data(client_id), 4, purpose_key(key, "take"))

        def tested(model: Variables) -> Array:
            return backdoor_of(ctx, model, check.batch, check.batches, key)[1]

        needs_benign = mode != "adaptive" or analysis == "local"
        honest = ctx.benign(client_id) if needs_benign else ctx.variables
        benign, malicious = honest, poisoned
        if analysis == "trained":
            benign, malicious = searched(ctx, train, key)
        change, success = _layers.changes(tested, malicious, benign)
        ranks = _layers.ranks_of(change)
        length = _layers.enough(tested, ranks, malicious, benign, threshold * success)

        def made(length: Array, strength: Array | float, center: Variables) -> Variables:
            chosen = ranks < length
            return _layers.crafted(ctx.variables.params, poisoned.params, center, chosen, strength, mode == "flip")

        known, sent = jnp.ones((), bool), length
        if mode == "adaptive":
            models, mask, copies = simulated(ctx, upload, attacking, knowledge)
            known, count = mask.any(), jnp.maximum(mask.sum(), 1)
            center = trees.weighted_mean(trees.zero_rows(mask, models), mask / count)
            accepted = _layers.taken_by(defence, models, mask, ctx.variables.params, copies, assumed)
            sent = _layers.shrunk(lambda one: accepted(made(one, 1.0, center)), length, len(ranks), shrink)
            strength = scale
            if strength is None:
                strength = _layers.searched_scale(lambda one: accepted(made(sent, one, center)))
            result = made(sent, strength, center)
        else:
            result = made(length, 1.0, honest)
        rows = trees.broadcast(result, len(attacking))
        upload = upload._replace(
            client_params=trees.where(known, rows.params, upload.client_params),
            client_stats=trees.where(known, rows.stats, upload.client_stats),
        )
        return upload, LayerState(ranks < sent, length, change, success)

    def searched(ctx: AttackContext, train: Part, key: PRNGKey) -> tuple[Variables, Variables]:
        """The benign and the malicious model whose layers are exchanged."""
        hyper = {"learning_rate": search_rate, "momentum": search_momentum, "weight_decay": 0.0}
        plain = rule_context(ctx, hyper=hyper, epochs=1)

        def epoch(number: Array | int, model: Variables, poison: bool) -> Variables:
            return trained_epoch(plain, model, train, doubled(ctx, poison), purpose_key(key, "step", number))

        def goes_on(state: tuple[Array, Array, Array, Variables]) -> Array:
            number, _, accuracy, _ = state
            return (accuracy < search_accuracy) & (number < search_epochs)

        def some_epochs(state: tuple[Array, Array, Array, Variables]) -> tuple[Array, Array, Array, Variables]:
            number, more, _, model = state
            until = jnp.minimum(number + more, search_epochs)
            model = jax.lax.fori_loop(number, until, lambda i, model: epoch(i, model, False), model)
            accuracy = accuracy_of(ctx, model, train.batch, train.batches, key)
            return until, jnp.int32(EPOCHS_AT_ONCE), accuracy, model

        # The first time none is trained: the received model is looked at.
        start = jnp.int32(0), jnp.int32(0), jnp.float32(-1), ctx.variables
        number, _, _, benign = jax.lax.while_loop(goes_on, some_epochs, start)
        return benign, epoch(number, benign, True)

    return Attack(init=init, craft=craft)


def doubled(ctx: AttackContext, poison: bool) -> Callable[[Batch], Batch]:
    """Batch -> the batch, or with `poison` the batch and behind it the same one with the trigger."""

    def both(batch: Batch) -> Batch:
        if not poison:
            return batch
        return Batch(*(jnp.concatenate(pair) for pair in zip(batch, ctx.backdoor(batch), strict=True)))

    return both


def simulated(
    ctx: AttackContext, upload: Upload, attacking: Array, knowledge: Literal["own", "benign"]
) -> tuple[Variables, Array, Array]:
    """Models that stand for the benign ones, stacked [K, ...]; a mask [K]; how many crafted ones stand beside them."""
    attackers = attacking.sum(dtype=jnp.int32)
    sent = Variables(upload.client_params, upload.client_stats)
    if knowledge == "benign":
        mask = upload.participating & ~attacking
        return sent, mask & trees.finite_rows(tuple(sent)), attackers
    malicious = ctx.roster.malicious
    number, taking_part = malicious.sum(dtype=jnp.int32), len(attacking)
    few = number < taking_part
    attackers = jnp.where(few, number * number // len(malicious), attackers)
    count = jnp.maximum(jnp.minimum(number, taking_part) - attackers, 1)
    ids = jnp.argsort(~malicious, stable=True).astype(jnp.int32)

    def train(place: Array, models: Variables) -> Variables:
        return jax.tree.map(lambda rows, one: rows.at[place].set(one), models, ctx.benign(ids[place]))

    models = jax.lax.fori_loop(0, count, train, trees.broadcast(ctx.variables, taking_part))
    mask = jnp.arange(taking_part) < count
    return models, mask & trees.finite_rows(tuple(models)), jnp.maximum(attackers, 1)
