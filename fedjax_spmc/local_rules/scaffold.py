"""SCAFFOLD: local training corrected by control variates, the gap between the clients' and the server's mean gradient.

Source: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
    Learning", ICML 2020, Algorithm 1, options I and II; all control variates start at 0.
Assumes: a client comes back, so that its control variate has a use.
Cost: one gradient a step; a control variate is kept of every client, N D numbers; option I costs one more pass over
    the client's data.
Deviations: the paper's local solver is plain SGD. With momentum m the gradient of local step j of K enters x - y with
    the factor 1 + m + ... + m^(K - j), so option II divides by learning rate times the sum of these factors in place of
    learning rate times K; without momentum they are the same. Weight decay counts as part of the gradient there. With
    Adam (local.optimizer) there is no such formula, and it is refused.
    The server's variate, c + |S| / N times the mean change over the clients S of the round, is kept as the mean over
    all N clients' variates, which is the same number as long as it starts so, but for rounding; where clients are too
    many to keep them on the device it is the paper's sum. A client whose model is not finite keeps its variate.
    The server's step size is server.learning_rate with server.optimizer=sgd, around `mean` with weights="uniform".
"""

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.local_rules.sgd import sgd
from fedjax_spmc.options import refuse_unused
from fedjax_spmc.registry import local_rules
from fedjax_spmc.training import Hooks, steps_of_sgd
from fedjax_spmc.types import (
    Array,
    Batch,
    ClientData,
    Context,
    LocalRule,
    Params,
    PRNGKey,
    RuleState,
    State,
    Stats,
    Upload,
    Variables,
    Verdict,
)

WARM_UP = 2
"""Rounds that the SPMC code trains without control variates."""


@local_rules.register("scaffold")
def scaffold(
    variant: Literal["paper", "reference"] = "paper", control: Literal["difference", "gradient"] = "difference"
) -> LocalRule:
    """SGD on gradient - c_k + c with the client's control variate c_k and the server's c.

    Reference:
        * Rounds 0 and 1 are plain SGD and leave the control variates alone.
        * The correction c_k - c is clipped to [-1, 1], entry by entry.
        * After training c_k grows by (the corrected gradient of the very last batch) / (batches in an epoch times
          learning rate) - c: neither of the paper's options.
        * The server's variate stays 0.

    Args:
        variant: "paper" or "reference", which has no use for `control` and refuses it.
        control: how c_k is renewed: "difference" takes the mean gradient of the local steps from the way that the model
            went (option II), "gradient" the gradient of all the client's batches at the broadcast model (option I).

    Raises:
        ConfigError: `control` with the reference.
    """
    if variant == "reference":
        refuse_unused(scaffold, "variant = 'reference'", {"control": control}, section="local")
    plain = sgd()

    def init(variables: Variables, num_clients: int) -> RuleState:
        zeros = jax.tree.map(jnp.zeros_like, variables.params)
        return RuleState(server=zeros, clients=trees.broadcast(zeros, num_clients))

    def gradients(
        ctx: Context, params: Params, stats: Stats, batch: Batch, client_state: State, key: PRNGKey
    ) -> tuple[Params, Stats, dict[str, Array]]:
        grads, new_stats, metrics = plain.gradients(ctx, params, stats, batch, (), key)
        correction = jax.tree.map(jnp.subtract, client_state, ctx.shared)
        if variant == "reference":
            warm = (ctx.round >= WARM_UP).astype(jnp.float32)
            correction = jax.tree.map(lambda x: warm * jnp.clip(x, -1.0, 1.0), correction)
        return jax.tree.map(jnp.subtract, grads, correction), new_stats, metrics

    def train(
        rule: LocalRule,
        ctx: Context,
        variables: Variables,
        client_state: State,
        data: ClientData,
        key: PRNGKey,
        hooks: Hooks,
    ) -> tuple[Variables, State, Array, dict[str, Array]]:
        new, steps, metrics, _ = steps_of_sgd(rule, ctx, variables, client_state, data, key, hooks)
        if control == "gradient":
            renewed = mean_gradient(plain, ctx, variables, data, key)
        else:
            length = ctx.hyper["learning_rate"] * gradient_share(steps, ctx.hyper["momentum"])
            renewed = jax.tree.map(
                lambda own, c, x, y: own - c + (x - y) / length, client_state, ctx.shared, variables.params, new.params
            )
        sound = (steps > 0) & trees.all_finite((renewed, new))
        return new, trees.where(sound, renewed, client_state), steps, metrics

    def after_round(
        rule_state: RuleState, upload: Upload, trained_params: Params, new_variables: Variables, verdict: Verdict
    ) -> RuleState:
        del upload, trained_params, new_variables, verdict
        return rule_state._replace(server=jax.tree.map(lambda x: x.mean(axis=0), rule_state.clients))

    def running(server: State, before: State, after: State, num_clients: int) -> State:
        return jax.tree.map(lambda c, old, new: c + (new - old).sum(axis=0) / num_clients, server, before, after)

    if variant == "reference":
        return LocalRule(gradients=gradients, init=init, train=train_as_the_code, needs_sgd=True)
    return LocalRule(
        gradients=gradients, init=init, train=train, after_round=after_round, needs_sgd=True, running=running
    )


def gradient_share(steps: Array, momentum: float | Array) -> Array:
    """Sum of the factors with which the gradients of all steps enter x - y, in units of the learning rate.

    Args:
        steps: K, int32 scalar; at least one step is assumed.
        momentum: m.

    Returns:
        Sum over j = 1..K of (1 + m + ... + m^(K - j)) = (K - m (1 - m^K) / (1 - m)) / (1 - m); K where m = 0.
    """
    count = jnp.maximum(steps, 1).astype(jnp.float32)
    return (count - momentum * (1 - momentum**count) / (1 - momentum)) / (1 - momentum)


def mean_gradient(rule: LocalRule, ctx: Context, variables: Variables, data: ClientData, key: PRNGKey) -> Params:
    """Mean of a rule's gradients at fixed variables over one epoch of batches."""

    def add(step: Array, total: Params) -> Params:
        batch = data.gather(step, purpose_key(key, "poison", step))
        step_key = purpose_key(key, "step", step)
        grads, _, _ = rule.gradients(ctx, variables.params, variables.stats, batch, (), step_key)
        return jax.tree.map(jnp.add, total, grads)

    zeros = jax.tree.map(jnp.zeros_like, variables.params)
    total = jax.lax.fori_loop(0, data.num_batches, add, zeros)
    return jax.tree.map(lambda x: x / jnp.maximum(data.num_batches, 1), total)


def train_as_the_code(
    rule: LocalRule,
    ctx: Context,
    variables: Variables,
    client_state: State,
    data: ClientData,
    key: PRNGKey,
    hooks: Hooks,
) -> tuple[Variables, State, Array, dict[str, Array]]:
    """SGD that remembers the last gradient, and the SPMC code's renewal of the control variate from it."""
    new, steps, metrics, last = steps_of_sgd(rule, ctx, variables, client_state, data, key, hooks, keep_last=True)
    length = ctx.hyper["learning_rate"] * jnp.maximum(data.num_batches, 1)
    renewed = jax.tree.map(lambda own, d, c: own + d / length - c, client_state, last, ctx.shared)
    sound = (steps > 0) & (ctx.round >= WARM_UP) & trees.all_finite((renewed, new.params))
    return new, trees.where(sound, renewed, client_state), steps, metrics
