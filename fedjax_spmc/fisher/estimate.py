"""The diagonal of the empirical Fisher information over a client's data, in the three ways that FDCR is run with.

Source: FDCR (NeurIPS 2024), Eq. 5; a public reproduction's estimate; the authors' optimiser. Labels are the true ones,
weight decay and momentum take no part.
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.fisher import sample_squares
from fedjax_spmc.keys import purpose_key, root_key
from fedjax_spmc.losses import asked, cross_entropy
from fedjax_spmc.models.on_batch import train_logits
from fedjax_spmc.types import Array, Batch, ClientData, Model, Params, PRNGKey, Variables

Kind = Literal["per_sample", "batch", "authors"]
KINDS: tuple[str, ...] = get_args(Kind)
UNROLLED = 4
"""Samples in one step of the loop over single samples."""


def estimate(
    kind: str,
    model: Model,
    variables: Variables,
    data: ClientData,
    chunk: int | None = None,
    drop_last: bool = True,
    key: PRNGKey | None = None,
) -> Params:
    """The Fisher's diagonal at `variables` over one pass of a client's batches.

    With B samples in a batch, n in all, g_i the gradient of -log p(y_i | x_i):

    * "per_sample" (the paper's Eq. 5): mean over all samples of g_i^2; the model in eval mode.
    * "batch" (the reproduction): weighted by B, the mean over batches of the squared gradient of the batch's mean loss;
      eval mode.
    * "authors": the square of the mean over batches, unweighted, of the gradient of
      -(1 / B) sum_i sum_c q(c) log p(c | x_i), where q holds the shares of the labels in the batch. Their code indexes
      the log-probabilities with the whole label vector, which pairs every image with every label of its batch; train
      mode. It is no Fisher information, and is rebuilt as it is.

    A sequence with a label at every place is one sample, and -log p(y_i | x_i) the mean over its asked places; the mean
    loss of a "batch" is over all asked places of the batch, as in training, and "authors" pairs every asked place with
    every asked label of the batch.

    Cost: memory O(D) beside the data's own: nothing is stacked over batches. One gradient a batch;
        "per_sample" takes about one and a half for the networks of `sample_squares`, one a sample for others.

    Args:
        kind: see above.
        model: the network.
        variables: where the gradients are taken, the client's model after training.
        data: the client's batches 0..num_batches-1; rows that are not `valid`, or ask nothing, count for nothing.
        chunk: samples vmapped at a time ("per_sample" only), whose gradients are held at once, D numbers each. None =
            one backward pass that squares within the layers, where all layers are known to `sample_squares`; else 1 on
            a CPU, a whole batch on an accelerator.
        drop_last: leave out batches with rows that are not valid, as the authors' loader does.
        key: of random draws while a batch is made; None = a fixed one.

    Returns:
        A pytree like `variables.params`; zeros where there is no batch.

    Raises:
        ConfigError: an unknown kind, or a chunk below 1.
    """
    if kind not in KINDS:
        raise ConfigError(f"fisher kind = {kind!r} is unknown: it must be one of {', '.join(KINDS)}.")
    if chunk is not None and chunk < 1:
        raise ConfigError(f"fisher chunk = {chunk!r} is not allowed: it must be a whole number of at least 1 or None.")
    base = root_key(0) if key is None else key
    one_pass = kind == "per_sample" and chunk is None and sample_squares.supports(model, variables)

    def add(step: Array, so_far: tuple[Params, Array]) -> tuple[Params, Array]:
        total, weight = so_far
        step_key = purpose_key(base, "step", step)
        batch = Batch(*data.gather(step, purpose_key(base, "poison", step)))
        if drop_last:
            batch = batch._replace(valid=batch.valid & batch.valid.all())
        # A batch that asks nothing has a loss of 0, and so adds zeros.
        answers = asked(batch.labels, batch.valid)
        count = answers.any(axis=tuple(range(1, answers.ndim))).sum(dtype=jnp.int32)
        if kind == "per_sample" and one_pass:
            squares = sample_squares.sum_of_squared_gradients(model, variables, batch, step_key)
            return jax.tree.map(jnp.add, total, squares), weight + count
        if kind == "per_sample":
            return add_sample_squares(total, model, variables, batch, chunk, step_key), weight + count
        if kind == "batch":
            grads = batch_gradient(model, variables, batch, step_key)
            return jax.tree.map(lambda t, g: t + count * g * g, total, grads), weight + count
        grads = marginal_gradient(model, variables, batch, step_key)
        return jax.tree.map(jnp.add, total, grads), weight + (count > 0)

    zeros = jax.tree.map(jnp.zeros_like, variables.params)
    total, weight = jax.lax.fori_loop(0, data.num_batches, add, (zeros, jnp.int32(0)))
    mean = jax.tree.map(lambda x: x / jnp.maximum(weight, 1), total)
    return jax.tree.map(jnp.square, mean) if kind == "authors" else mean


def batch_gradient(model: Model, variables: Variables, batch: Batch, key: PRNGKey) -> Params:
    """Gradient of the mean cross entropy of a batch's valid rows, in eval mode."""

    def loss(params: Params) -> Array:
        logits, _ = model.apply(params, variables.stats, batch.inputs, False, key)
        return cross_entropy(logits, batch.labels, batch.valid)

    return jax.grad(loss)(variables.params)


def add_sample_squares(
    total: Params, model: Model, variables: Variables, batch: Batch, chunk: int | None, key: PRNGKey
) -> Params:
    """`total` plus the squared gradients of a batch's valid rows, row by row.

    On a CPU gradients of single samples under `vmap` fall to slow matrix products (3 times the time); one after another
    they do not, and `UNROLLED` in one step of the loop are added to the total in one pass.
    """
    batch_size = batch.labels.shape[0]
    if chunk is None:
        chunk = 1 if jax.default_backend() == "cpu" else batch_size
    chunk = min(chunk, batch_size)
    missing = -batch_size % chunk

    def pieces(x: Array) -> Array:
        filled = jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)]) if missing else x
        return filled.reshape(-1, chunk, *x.shape[1:])

    def squares(example: Array, label: Array, valid: Array) -> Params:
        single = Batch(example[None], label[None], jnp.zeros(1, jnp.int32), valid[None])
        return jax.tree.map(jnp.square, batch_gradient(model, variables, single, key))

    def add(total: Params, piece: tuple[Array, Array, Array]) -> tuple[Params, None]:
        if chunk == 1:
            example, label, valid = (x[0] for x in piece)
            return jax.tree.map(jnp.add, total, squares(example, label, valid)), None
        return jax.tree.map(lambda t, s: t + s.sum(axis=0), total, jax.vmap(squares)(*piece)), None

    rows = (pieces(batch.inputs), pieces(batch.labels), pieces(batch.valid))
    total, _ = jax.lax.scan(add, total, rows, unroll=UNROLLED if chunk == 1 else 1)
    return total


def marginal_gradient(model: Model, variables: Variables, batch: Batch, key: PRNGKey) -> Params:
    """Gradient of the authors' objective: every asked place of valid rows against all their labels, in train mode."""

    def loss(params: Params) -> Array:
        logits, _ = train_logits(model, params, variables.stats, batch.inputs, batch.valid, key)
        counted, classes = asked(batch.labels, batch.valid).ravel(), logits.shape[-1]
        logits, labels = logits.reshape(-1, classes), jnp.maximum(batch.labels, 0).ravel()
        valid = counted.astype(logits.dtype)
        count = jnp.maximum(valid.sum(), 1)
        shares = jnp.sum(valid[:, None] * jax.nn.one_hot(labels, classes, dtype=logits.dtype), axis=0)
        log_probabilities = jnp.sum(valid[:, None] * jax.nn.log_softmax(logits), axis=0)
        return -jnp.sum(shares * log_probabilities) / count**2

    return jax.grad(loss)(variables.params)
