"""The two losses of local training: cross entropy with labels and with a teacher's soft labels."""

import jax
import jax.numpy as jnp
import optax

from fedjax_spmc.types import Array


def _mean(per_sample: Array, valid: Array) -> Array:
    return jnp.sum(jnp.where(valid, per_sample, 0.0)) / jnp.maximum(valid.sum(), 1)


def cross_entropy(logits: Array, labels: Array, valid: Array) -> Array:
    """Mean over the valid samples of -log softmax(logits)[label].

    Args:
        logits: [B, classes] float32.
        labels: [B] int32.
        valid: [B] bool.
    """
    return _mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels), valid)


def soft_cross_entropy(logits: Array, teacher_logits: Array, valid: Array) -> Array:
    """Mean over the valid samples of -sum_c softmax(teacher)_c log softmax(logits)_c; the teacher gets no gradient."""
    targets = jax.nn.softmax(jax.lax.stop_gradient(teacher_logits))
    return _mean(optax.softmax_cross_entropy(logits, targets), valid)
