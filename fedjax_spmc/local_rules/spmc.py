"""SPMC, client half: take from the gradient what opposes distillation from the coalition of all the others.

Each client holds a teacher, the coalition of all the others in the last round: T_k = (g - alpha_k w_k) / (1 - alpha_k).
The gradient of the task loss loses its component against the gradient of the distillation loss from the teacher.

Source: "SPMC: Self-Purifying Federated Backdoor Defense via Margin Contribution", ICML 2025; `AlignedGradient` of its
    code.
Assumes: the coalition of all the others is cleaner than the client.
Cost: one forward pass more (the teacher's) and one backward pass more a step; a teacher is kept of every client, N D
    numbers.
Deviations: the paper prints G_d - lambda (G_d . G_g) / |G_g| G_g; the code divides by the squared norm, a true
    projection, and does so for each tensor on its own. Both are options. In round 0 teacher and student are equal, so
    that the guidance of the first batch is rounding noise whose direction the code uses; `floor` counts such guidance
    as none.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.losses import asked, cross_entropy, soft_cross_entropy
from fedjax_spmc.models.on_batch import train_logits
from fedjax_spmc.options import NON_NEGATIVE, TRACED
from fedjax_spmc.registry import local_rules
from fedjax_spmc.types import (
    Array,
    Batch,
    Context,
    LocalRule,
    Model,
    Params,
    PRNGKey,
    RuleState,
    State,
    Stats,
    Upload,
    Variables,
    Verdict,
)

MAX_WEIGHT = 1 - 1e-3
"""A client that holds more than this share of the model keeps its old teacher: 1 - alpha would nearly cancel."""


def purify(
    task_grads: Params,
    guide_grads: Params,
    strength: float | Array = 1.0,
    scope: str = "tensor",
    norm: str = "squared",
    floor: float | Array = 0.0,
) -> Params:
    """Takes from the task gradient what opposes the guidance, as the options of `spmc` say.

    Args:
        task_grads, guide_grads: pytrees of one structure, a and b.
        strength, scope, norm, floor: see `spmc`.

    Returns:
        Gradients like `task_grads`. Guidance of length 0 leaves them as they are.
    """
    task, structure = jax.tree.flatten(task_grads)
    guide = jax.tree.leaves(guide_grads)
    groups = [[i] for i in range(len(task))] if scope == "tensor" else [list(range(len(task)))]
    purified = list(task)
    for group in groups:
        # The guidance is scaled to a largest entry of 1 first: squares of tiny float32 numbers vanish.
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(guide[i])) for i in group]))
        scale = jnp.where(largest > 0, largest, 1.0)
        scaled = {i: guide[i] / scale for i in group}
        dot = sum((jnp.sum(task[i] * scaled[i]) for i in group), jnp.float32(0))
        square = sum((jnp.sum(scaled[i] * scaled[i]) for i in group), jnp.float32(0))
        task_square = sum((jnp.sum(task[i] * task[i]) for i in group), jnp.float32(0))
        length = scale * jnp.sqrt(square)
        guided = (largest > 0) & (dot < 0) & (length >= floor * jnp.sqrt(task_square))
        coefficient = dot / jnp.where(square > 0, square, 1.0)
        if norm == "printed":
            coefficient = coefficient * length
        coefficient = jnp.where(guided, strength * coefficient, 0.0)
        for i in group:
            purified[i] = task[i] - (coefficient * scaled[i]).astype(task[i].dtype)
    return jax.tree.unflatten(structure, purified)


def task_and_guidance(
    model: Model, params: Params, stats: Stats, batch: Batch, teacher: Variables, key: PRNGKey
) -> tuple[Params, Params, Stats, tuple[Array, Array]]:
    """Gradients of the cross entropy and of the distillation loss, from one forward pass of the student.

    The teacher runs in train mode (on batch statistics), as in the code; its own statistics are not updated. Where the
    networks have dropout, teacher and student draw apart, as they do in torch.

    Returns:
        task gradients, guidance gradients, the student's new batch statistics, (task loss, guidance loss).
    """
    teacher_key, student_key = jax.random.split(key)
    inputs, valid = batch.inputs, batch.valid
    teacher_logits, _ = train_logits(model, teacher.params, teacher.stats, inputs, valid, teacher_key)

    def forward(params: Params) -> tuple[Array, Stats]:
        return train_logits(model, params, stats, inputs, valid, student_key)

    logits, pull_back, new_stats = jax.vjp(forward, params, has_aux=True)
    task_loss, task_cotangent = jax.value_and_grad(cross_entropy)(logits, batch.labels, batch.valid)
    guide_loss, guide_cotangent = jax.value_and_grad(soft_cross_entropy)(
        logits, teacher_logits, asked(batch.labels, batch.valid)
    )
    (task,) = pull_back(task_cotangent)
    (guide,) = pull_back(guide_cotangent)
    return task, guide, new_stats, (task_loss, guide_loss)


@local_rules.register("spmc")
def spmc(
    strength: Annotated[float, NON_NEGATIVE, TRACED] = 1.0,
    scope: Literal["tensor", "model"] = "tensor",
    norm: Literal["squared", "printed"] = "squared",
    floor: Annotated[float, NON_NEGATIVE, TRACED] = 1e-2,
    teacher_weights: Literal["verdict", "uniform"] = "verdict",
    align: Literal["all", "benign"] = "all",
) -> LocalRule:
    """SGD on a - strength <a, b> / |b|^2 b where <a, b> < 0, a the task gradient and b the guidance; elsewhere on a.

    Args:
        strength: the paper's lambda.
        scope: "tensor" takes each tensor on its own (the code), "model" all of them as one vector.
        norm: "squared" divides by |b|^2, a true projection (the code), "printed" by |b| (as the paper prints it).
        floor: guidance shorter than `floor` times the task gradient, in the unit of `scope`, counts as none; the code's
            value is 0.
        teacher_weights: "verdict" leaves the client out of the weighted mean that the server took (the code), "uniform"
            out of the plain mean of all uploads.
        align: "all" clients purify, the malicious ones too (the code; the paper does not say), or only "benign" ones.
    """

    def init(variables: Variables, num_clients: int) -> RuleState:
        return RuleState(clients=trees.broadcast(variables, num_clients))

    def gradients(
        ctx: Context, params: Params, stats: Stats, batch: Batch, client_state: State, key: PRNGKey
    ) -> tuple[Params, Stats, dict[str, Array]]:
        task, guide, new_stats, losses = task_and_guidance(ctx.model, params, stats, batch, client_state, key)
        grads = purify(task, guide, strength, scope, norm, floor)
        if align == "benign":
            grads = trees.where(jnp.asarray(ctx.obeys), grads, task)
        return grads, new_stats, {"loss": losses[0]}

    def after_round(
        rule_state: RuleState, upload: Upload, trained_params: Params, new_variables: Variables, verdict: Verdict
    ) -> RuleState:
        own = Variables(trained_params, upload.client_stats)
        present = upload.participating & trees.finite_rows(own.params) & trees.finite_rows(own.stats)
        if teacher_weights == "verdict":
            share, center = verdict.weights, new_variables
        else:
            share = present / jnp.maximum(present.sum(), 1)
            center = trees.weighted_mean(trees.zero_rows(present, own), share)
        renewed = present & (share <= MAX_WEIGHT) & (verdict.weights.sum() > 0)
        rest = jnp.where(renewed, 1 - share, 1.0)

        def leave_out(global_leaf: Array, client_leaf: Array) -> Array:
            return (global_leaf[None] - trees.column(share, client_leaf) * client_leaf) / trees.column(
                rest, client_leaf
            )

        teachers = jax.tree.map(leave_out, center, own)
        old = trees.take_rows(rule_state.clients, upload.client_ids)
        teachers = trees.where_rows(renewed, teachers, old)
        return rule_state._replace(clients=trees.put_rows(rule_state.clients, upload.client_ids, teachers))

    return LocalRule(
        gradients=gradients,
        init=init,
        after_round=after_round,
        needs_linear=teacher_weights == "verdict",
        drawn_only=True,
    )
