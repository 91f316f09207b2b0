"""The two losses of local training: cross entropy with labels and with a teacher's soft labels."""

import jax
import jax.numpy as jnp
import optax

from fedjax_spmc.types import Array


def asked(labels: Array, valid: Array) -> Array:
    """Where a label is asked: bool, shaped like `labels` ([B] or [B, T]); `valid` is [B] bool."""
    return (labels >= 0) & valid.reshape(valid.shape + (1,) * (labels.ndim - valid.ndim))


def _mean(each: Array, counted: Array) -> Array:
    return jnp.sum(jnp.where(counted, each, 0.0)) / jnp.maximum(counted.sum(), 1)


def cross_entropy(logits: Array, labels: Array, valid: Array) -> Array:
    """Mean over the asked labels of valid rows of -log softmax(logits)[label].

    Args:
        logits: [B, classes] or [B, T, vocabulary] float32.
        labels: [B] or [B, T] int32; -1 = not asked.
        valid: [B] bool.
    """
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return _mean(each, asked(labels, valid))


def soft_cross_entropy(logits: Array, teacher_logits: Array, counted: Array) -> Array:
    """Mean over what counts of -sum_c softmax(teacher)_c log softmax(logits)_c; the teacher gets no gradient.

    Args:
        logits, teacher_logits: [B, classes] or [B, T, vocabulary] float32.
        counted: [B] or [B, T] bool, see `asked`.
    """
    targets = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits))
    return _mean(optax.softmax_cross_entropy(logits, targets), counted)
