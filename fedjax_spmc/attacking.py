"""What a round does with an attack: the context that each slot is given, and the fences around what it returns.

Whatever an attack returns for a client that does not attack is thrown away here, so that no attack needs a guard of its
own and none can harm a benign client.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.attacks.compose import fenced_upload
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.training import Hooks, Trained, train_client
from fedjax_spmc.types import (
    Array,
    AttackContext,
    Batch,
    ClientData,
    Context,
    Params,
    PRNGKey,
    State,
    Upload,
    Variables,
    Verdict,
)

IN_TRAINING = ("poison", "gradients", "mask_gradients", "after_step", "train")
"""The slots with which an attack has a hand in data and training."""


class Attackers:
    """The clients of one round as the attack has a hand in them. Made inside of the round's program.

    Args:
        federation: the parts, see `federation.Federation`.
        arrays: what `federation.client_data` reads.
        state: before the round, see `federation.FederationState`.
        key: the experiment's.
        client_ids: [K], who takes part.
    """

    def __init__(self, federation: Any, arrays: Any, state: Any, key: PRNGKey, client_ids: Array):
        self._federation, self._arrays, self._state = federation, arrays, state
        self._key, self._client_ids = key, client_ids
        self._roster = state.roster._replace(round=state.round)

    def rule_context(self, obeys: Array | bool = True) -> Context:
        """What a benign client's rule sees."""
        federation, state = self._federation, self._state
        return Context(
            model=federation.local_model(),
            variables=state.variables,
            previous=state.previous,
            hyper=federation.hyper_at(state.round),
            epochs=federation.epochs,
            round=state.round,
            obeys=obeys,
            shared=state.rule.server,
            task=federation.task,
        )

    def context(
        self, own: State, client_id: Array | None = None, num_batches: Array | None = None, crafting: bool = False
    ) -> AttackContext:
        """What a slot of the attack sees.

        Args:
            own: the attack's state.
            client_id: the client in question, in the slots of a client.
            num_batches: of that client, in an epoch.
            crafting: whether it is for `craft`.
        """
        federation = self._federation
        attacking = jnp.ones((), bool) if client_id is None else self._roster.attacks_now(client_id)
        hyper, epochs = self._training_of(attacking)
        hyper = self._plainly(hyper)
        own_fields = {"model": federation.model, "obeys": jnp.zeros((), bool), "hyper": hyper, "epochs": epochs}
        ctx = AttackContext(
            **self.rule_context()._asdict() | own_fields,
            roster=self._roster,
            client_ids=self._client_ids,
            num_batches=num_batches,
            held=federation.held,
            clean_data=self.clean_data,
            poisoned_data=lambda client_id: self.poisoned_data(own, client_id),
            benign=self._benign,
            trained_clean=all(getattr(federation.attack, slot) is None for slot in IN_TRAINING),
        )
        if federation.attack.backdoor is not None:
            show = federation.attack.backdoor
            ctx = ctx._replace(backdoor=lambda batch: show(ctx, own, batch))
        if federation.server_optimizer is not None:
            ctx = ctx._replace(server_learning_rate=federation.server_optimizer.learning_rate)
        if crafting:
            ctx = ctx._replace(defend=self._defend)
        return ctx

    def begin_round(self, own: State) -> State:
        """The attack's state in this round; it stays where none of the clients attacks."""
        begin = self._federation.attack.begin_round
        if begin is None:
            return own
        key = purpose_key(self._key, "begin_round", self._state.round)
        someone = self._roster.attacks_now(self._client_ids).any()
        return jax.lax.cond(someone, lambda: begin(self.context(own), own, key), lambda: own)

    def craft(self, own: State, upload: Upload) -> tuple[Upload, State]:
        """The uploads as the attackers send them, and the attack's state behind them."""
        craft = self._federation.attack.craft
        if craft is None:
            return upload, own
        key = purpose_key(self._key, "craft", self._state.round)
        attacking = self._roster.attacks_now(self._client_ids)

        def sent(upload: Upload) -> tuple[Any, ...]:
            return upload.client_params, upload.client_stats, upload.num_examples, dict(upload.extras)

        def crafted() -> tuple[Any, State]:
            made, new_own = craft(self.context(own, crafting=True), own, upload, key)
            return sent(fenced_upload(attacking, made, upload)), new_own

        (params, stats, num_examples, extras), own = jax.lax.cond(attacking.any(), crafted, lambda: (sent(upload), own))
        upload = upload._replace(client_params=params, client_stats=stats, num_examples=num_examples, extras=extras)
        return upload, own

    def clean_data(self, client_id: Array) -> ClientData:
        """A client's batches as they are."""
        federation, state = self._federation, self._state
        frozen = self._roster.malicious[client_id] & federation.frozen
        return federation.client_data(self._arrays, client_id, frozen, state.round, self._key)

    def poisoned_data(self, own: State, client_id: Array) -> ClientData:
        """A client's batches as the attack poisons them in this round; those of the others are clean."""
        clean, poison = self.clean_data(client_id), self._federation.attack.poison
        if poison is None:
            return clean
        attacks = self._roster.attacks_now(client_id)
        ctx = self.context(own, client_id, clean.num_batches)

        def poisoned(batch: Batch, step: Array, key: PRNGKey) -> Batch:
            made = poison(ctx, own, batch, client_id, step, key)
            return batch._replace(
                inputs=jnp.where(attacks, made.inputs, batch.inputs),
                labels=jnp.where(attacks, made.labels, batch.labels),
            )

        def gather(step: Array, key: PRNGKey) -> Batch:
            return poisoned(clean.gather(step, key), step, key)

        def take(positions: Array, key: PRNGKey) -> Batch:
            assert clean.take is not None
            return poisoned(clean.take(positions, key), jnp.int32(0), key)

        return clean._replace(gather=gather, take=None if clean.take is None else take)

    def train(self, own: State, client_id: Array, client_state: State) -> Trained:
        """One client's part of the round."""
        federation, attack = self._federation, self._federation.attack
        attacks = self._roster.attacks_now(client_id)
        data = self.poisoned_data(own, client_id)
        key = purpose_key(self._key, "train", self._state.round, client_id)
        ctx = self.rule_context(obeys=~attacks)
        hyper, epochs = self._training_of(attacks)
        ctx = ctx._replace(hyper=hyper, epochs=epochs)
        hooks = self._hooks(own, client_id, attacks, data.num_batches)
        other = federation.attacker.rule

        def benign() -> Trained:
            return train_client(federation.rule, ctx, client_state, data, key, hooks)

        apart = federation.attacker.idle or federation.attacker.plain
        if attack.train is None and other is None and not apart:
            return benign()

        def attacking() -> Trained:
            mine = federation.rule if other is None else other
            if attack.train is not None:
                step = attack.train
                hyper, epochs = self._training_of(True)
                slot_ctx = self.context(own, client_id, data.num_batches)
                slot_ctx = slot_ctx._replace(model=ctx.model, hyper=hyper, epochs=epochs)

                def train(rule: Any, ctx: Any, variables: Any, state: Any, data: Any, key: Any, hooks: Any) -> Any:
                    # Where clients are mapped at once the others come here too: they need not do a step.
                    data = data._replace(num_batches=jnp.where(attacks, data.num_batches, 0))
                    return step(rule, slot_ctx, own, variables, state, data, client_id, key, hooks)

                mine = mine._replace(train=train)
            own_ctx = ctx._replace(hyper=self._plainly(ctx.hyper))
            done = train_client(mine, own_ctx, client_state, data, key, hooks)
            return done if other is None else done._replace(client_state=client_state)

        def resting() -> Trained:
            hyper, epochs = self._training_of(True)
            own_ctx = ctx._replace(hyper=self._plainly(hyper), epochs=epochs)
            mine = federation.rule if other is None else other
            done = train_client(mine, own_ctx, client_state, self.clean_data(client_id), key)
            return done if other is None else done._replace(client_state=client_state)

        like = jax.eval_shape(benign)

        def trained() -> Trained:
            return jax.lax.cond(attacks, lambda: _shaped(attacking(), like), benign)

        if not federation.attacker.idle:
            return trained()
        rests = self._roster.malicious[client_id] & ~attacks
        return jax.lax.cond(rests, lambda: _shaped(resting(), like), trained)

    def _training_of(self, attacks: Array | bool) -> tuple[dict[str, Any], Any]:
        """hyper and epochs of a client that attacks or does not; of one that surely does, the config's own numbers."""
        federation, attacker = self._federation, self._federation.attacker

        def chosen(mine: Any, benign: Any) -> Any:
            return benign if mine is None else mine if attacks is True else jnp.where(attacks, mine, benign)

        benign = federation.hyper_at(self._state.round)
        hyper = {name: chosen(attacker.hyper.get(name), value) for name, value in benign.items()}
        return hyper, chosen(attacker.epochs, federation.epochs)

    def _plainly(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """hyper of an attacking client, which may train with SGD where benign ones take Adam."""
        return {name: hyper[name] for name in hyper if name != "beta2" or not self._federation.attacker.plain}

    def _hooks(self, own: State, client_id: Array, attacks: Array, num_batches: Array) -> Hooks:
        """What the attack does within local steps, for clients that attack."""
        attack, attacker = self._federation.attack, self._federation.attacker
        hooks = Hooks(sized=lambda num_batches: self._hooks(own, client_id, attacks, num_batches))
        ctx = self.context(own, client_id, num_batches)
        if attack.gradients is not None:
            bend = attack.gradients

            def gradients(plain: Any, params: Params, stats: Any, batch: Batch, step: Array, key: PRNGKey) -> Any:
                def bent() -> Any:
                    grads, new_stats, metrics = bend(ctx, own, params, stats, batch, client_id, step, key)
                    return grads, new_stats, _named(metrics, jax.eval_shape(plain)[2])

                return jax.lax.cond(attacks, bent, plain)

            hooks = hooks._replace(gradients=gradients)
        if attacker.milestones:

            def rate(step: Array) -> Array:
                epoch = step // jnp.maximum(num_batches, 1)
                return jnp.where(attacks, fallen(epoch, attacker.milestones, attacker.gamma), 1.0)

            hooks = hooks._replace(rate=rate)
        if attack.mask_gradients is not None:
            mask = attack.mask_gradients

            def mask_gradients(grads: Params, params: Params, step: Array) -> Params:
                return trees.where(attacks, mask(ctx, own, grads, params, client_id, step), grads)

            hooks = hooks._replace(mask_gradients=mask_gradients)
        if attack.after_step is not None:
            project = attack.after_step

            def after_step(params: Params, step: Array) -> Params:
                return trees.where(attacks, project(ctx, own, params, client_id, step), params)

            hooks = hooks._replace(after_step=after_step)
        return hooks

    def _benign(self, client_id: Array) -> Variables:
        """What the benign rule trains on a client's clean data."""
        state, key = self._state, purpose_key(self._key, "benign", self._state.round, client_id)
        if state.is_narrow():
            here = state.drawn == client_id
            row = trees.take_rows(state.rule.clients, jnp.argmax(here))
            client_state = jax.tree.map(lambda x: jnp.where(here.any(), x, _nothing(x)), row)
        else:
            client_state = trees.take_rows(state.rule.clients, client_id)
        data = self.clean_data(client_id)
        return train_client(self._federation.rule, self.rule_context(), client_state, data, key).variables

    def _defend(self, upload: Upload) -> tuple[Params, Verdict]:
        """What the server would make of an upload; its draws are the attacker's own."""
        federation, state = self._federation, self._state
        aggregator = federation.aggregator_for(state)
        key = purpose_key(self._key, "defend", state.round)
        params, verdict, _ = aggregator.aggregate(upload, state.aggregator, key)
        return params, verdict


def _nothing(x: Array) -> Array:
    """What stands where there is no number: NaN, or as it is where the dtype has none."""
    return jnp.full_like(x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x


def fallen(epoch: Array, milestones: Sequence[int], gamma: float) -> Array:
    """Factor on the learning rate in a local epoch: gamma for each milestone that is reached, float32 scalar."""
    return jnp.float32(gamma) ** (epoch >= jnp.asarray(milestones)).sum()


def _named(metrics: Any, like: Any) -> dict[str, Array]:
    """Metrics cut to the names of `like`; a missing one counts 0."""
    return {
        name: jnp.asarray(metrics[name], shape.dtype) if name in metrics else jnp.zeros(shape.shape, shape.dtype)
        for name, shape in like.items()
    }


def _shaped(trained: Trained, like: Trained) -> Trained:
    """What an attacking client trained, with the metrics and extras that the benign rule has."""
    extras = {name: trained.extras[name] for name in like.extras}
    return trained._replace(metrics=_named(trained.metrics, like.metrics), extras=extras)
