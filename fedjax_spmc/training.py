"""One client's local training as a loop over steps, and the same mapped over all clients of a round."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_spmc import lanes
from fedjax_spmc.keys import purpose_key
from fedjax_spmc.types import Array, ClientData, Context, LocalRule, Params, PRNGKey, State, Variables


class Hooks(NamedTuple):
    """Where an attack reaches into one client's training; the defaults do nothing.

    Attributes:
        mask_gradients: (grads, params, step) -> grads, before the optimiser's step.
        after_step: (params, step) -> params, after it.
        gradients: (plain, params, stats, batch, step, key) -> (grads, stats, metrics) in place of the rule's own, which
            `plain()` gives; None = the rule's.
        rate: step -> factor on the learning rate; None = 1.
        sized: num_batches -> the same hooks for epochs of so many steps; None = they do not ask for epochs.
    """

    mask_gradients: Callable[[Params, Params, Array], Params] = lambda grads, params, step: grads
    after_step: Callable[[Params, Array], Params] = lambda params, step: params
    gradients: Callable[..., tuple[Params, Any, dict[str, Array]]] | None = None
    rate: Callable[[Array], Array] | None = None
    sized: Callable[[Array], "Hooks"] | None = None

    def renumbered(self, num_batches: Array, told: Callable[[Array], Array]) -> "Hooks":
        """The hooks for a loop with steps of its own.

        Args:
            num_batches: steps in an epoch, as the hooks count them.
            told: the loop's step -> the step that the hooks are told.
        """
        hooks = self if self.sized is None else self.sized(num_batches)
        gradients, rate = hooks.gradients, hooks.rate
        return Hooks(
            lambda grads, params, step: hooks.mask_gradients(grads, params, told(step)),
            lambda params, step: hooks.after_step(params, told(step)),
            None if gradients is None else lambda *given: gradients(*given[:-2], told(given[-2]), given[-1]),
            None if rate is None else lambda step: rate(told(step)),
        )


class Trained(NamedTuple):
    """What one client's training leaves: variables, its rule state, steps taken (int32), summed metrics, extras."""

    variables: Variables
    client_state: State
    steps: Array
    metrics: dict[str, Array]
    extras: dict[str, Any]


TAKES: dict[str, tuple[str, ...]] = {"sgd": (), "adam": ("beta2",)}
"""Local optimiser -> the numbers that it has a use for besides learning_rate, momentum and weight_decay."""


def optimizer(hyper: Any) -> optax.GradientTransformation:
    """SGD or Adam as torch does it; weight decay is added to the gradient first, giving d.

    SGD: v = momentum v + d, w = w - learning_rate v. Where `hyper` has a beta2: Adam (Kingma and Ba, "Adam: A Method
    for Stochastic Optimization", ICLR 2015) with beta1 = momentum and epsilon = 1e-8 outside of the root.

    Args:
        hyper: see `types.Context`.
    """
    decay = optax.add_decayed_weights(hyper["weight_decay"])
    if "beta2" in hyper:
        return optax.chain(decay, optax.adam(hyper["learning_rate"], b1=hyper["momentum"], b2=hyper["beta2"]))
    momentum = hyper["momentum"]
    idle = isinstance(momentum, int | float) and momentum == 0  # then v is d and need not be kept
    return optax.chain(decay, optax.sgd(hyper["learning_rate"], momentum=None if idle else momentum))


def clipped(grads: Params, hyper: Any) -> Params:
    """Gradients scaled by min(1, clip_norm / (norm + 1e-6)), norm over all tensors; as they are without a clip_norm.

    Source: `torch.nn.utils.clip_grad_norm_`, the 1e-6 included. Weight decay is added later and counts for nothing.

    Args:
        grads: pytree.
        hyper: see `types.Context`.
    """
    if "clip_norm" not in hyper:
        return grads
    norm = jnp.sqrt(sum((jnp.sum(jnp.square(x)) for x in jax.tree.leaves(grads)), jnp.float32(0)))
    scale = jnp.minimum(hyper["clip_norm"] / (norm + 1e-6), 1.0)
    return jax.tree.map(lambda x: (scale * x).astype(x.dtype), grads)


def sgd(
    rule: LocalRule,
    ctx: Context,
    variables: Variables,
    client_state: State,
    data: ClientData,
    key: PRNGKey,
    hooks: Hooks,
) -> tuple[Variables, State, Array, dict[str, Array]]:
    """The default of `LocalRule.train`: `ctx.epochs` passes of SGD on `rule.gradients`, with a fresh optimiser.

    `ctx.hyper` may make it Adam, and may hold a norm to which gradients are clipped: those that the optimiser gets,
    behind the attack's mask.

    Returns:
        variables, client_state, steps taken (int32), and the sums over steps of the rule's metrics.
    """
    variables, steps, sums, _ = steps_of_sgd(rule, ctx, variables, client_state, data, key, hooks)
    return variables, client_state, steps, sums


def steps_of_sgd(
    rule: LocalRule,
    ctx: Context,
    variables: Variables,
    client_state: State,
    data: ClientData,
    key: PRNGKey,
    hooks: Hooks,
    keep_last: bool = False,
) -> tuple[Variables, Array, dict[str, Array], Params]:
    """The loop of `sgd`.

    Returns:
        variables, steps taken (int32), the sums over steps of the rule's metrics, and, with `keep_last`, the gradient
        of the last step as the optimiser got it (zeros without a step); else ().
    """
    body, start = step_of_sgd(rule, ctx, variables, client_state, data, key, hooks, keep_last)
    steps = (ctx.epochs * data.num_batches).astype(jnp.int32)
    params, stats, _, sums, last = lanes.loop(steps, body, start)
    return Variables(params, stats), steps, sums, last


Carry = tuple[Params, Any, Any, dict[str, Array], Params]
"""Between two steps: params, stats, the optimiser's state, the sums of metrics, the last gradient where it is kept."""


def step_of_sgd(
    rule: LocalRule,
    ctx: Context,
    variables: Variables,
    client_state: State,
    data: ClientData,
    key: PRNGKey,
    hooks: Hooks,
    keep_last: bool = False,
    moving: Any = None,
) -> tuple[Callable[[Array, Carry], Carry], Carry]:
    """What the loop of `sgd` repeats, for loops that end by themselves.

    Args:
        rule, ctx, variables, client_state, data, key, hooks: see `types.LocalRule.train`.
        keep_last: whether the last gradient is kept.
        moving: bools like the parameters, known when the program is made: the others stay as they are, but for what
            `hooks.after_step` does. None = all move.

    Returns:
        (step, carry) -> carry, and the carry before the first step, with a fresh optimiser.
    """
    update = optimizer(ctx.hyper)

    def gradients(params: Params, stats: Any, step: Array) -> tuple[Params, Any, dict[str, Array]]:
        step_key = purpose_key(key, "step", step)
        batch = data.gather(step, purpose_key(key, "poison", step))

        def plain() -> tuple[Params, Any, dict[str, Array]]:
            return rule.gradients(ctx, params, stats, batch, client_state, step_key)

        if hooks.gradients is None:
            return plain()
        return hooks.gradients(plain, params, stats, batch, step, step_key)

    def body(step: Array, carry: Carry) -> Carry:
        params, stats, moments, sums, _ = carry
        grads, stats, metrics = gradients(params, stats, step)
        grads = clipped(hooks.mask_gradients(grads, params, step), ctx.hyper)
        updates, moments = update.update(grads, moments, params)
        if hooks.rate is not None:
            factor = hooks.rate(step)
            updates = jax.tree.map(lambda x: factor * x, updates)
        if moving is not None:
            updates = jax.tree.map(lambda moves, x: x if moves else jnp.zeros_like(x), moving, updates)
        params = hooks.after_step(optax.apply_updates(params, updates), step)
        return params, stats, moments, jax.tree.map(jnp.add, sums, metrics), grads if keep_last else ()

    shapes = jax.eval_shape(gradients, variables.params, variables.stats, jnp.int32(0))[2]
    sums = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    last = jax.tree.map(jnp.zeros_like, variables.params) if keep_last else ()
    return body, (variables.params, variables.stats, update.init(variables.params), sums, last)


def train_client(
    rule: LocalRule, ctx: Context, client_state: State, data: ClientData, key: PRNGKey, hooks: Hooks = Hooks()
) -> Trained:
    """One client's part of a round: prepare, local steps, finish. Starts from the variables in `ctx`."""
    prepare_key, train_key, finish_key = (purpose_key(key, purpose) for purpose in ("prepare", "train", "finish"))
    client_state = rule.prepare(ctx, client_state, data, prepare_key)
    train = sgd if rule.train is None else rule.train
    variables, client_state, steps, metrics = train(rule, ctx, ctx.variables, client_state, data, train_key, hooks)
    extras = rule.finish(ctx, variables, client_state, data, finish_key)
    return Trained(variables, client_state, steps, metrics, extras)


def map_clients(train_one: Callable[..., Any], stacked: Any, client_batch: int, work: Array | None = None) -> Any:
    """Applies `train_one` to every row of `stacked`, `client_batch` rows at a time under `vmap`.

    All rows at once suit a GPU; on a CPU one at a time is fastest, and clients of unequal size waste nothing. How much
    `work` each row is does not matter here; `devices.map_clients_over` shares the rows out by it.
    """
    del work
    num_clients = jax.tree.leaves(stacked)[0].shape[0]
    if client_batch == 1:  # a client that is alone too: under `vmap` it would take both sides of every condition
        return jax.lax.map(train_one, stacked)
    if client_batch >= num_clients:
        return jax.vmap(train_one)(stacked)
    return jax.lax.map(train_one, stacked, batch_size=client_batch)


def auto_client_batch(clients_per_round: int) -> int:
    """How many clients to vmap when the config leaves it open: all on an accelerator, one at a time on a CPU."""
    return 1 if jax.default_backend() == "cpu" else clients_per_round
