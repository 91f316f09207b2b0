"""The global model on the test images, clean and triggered: counts by class, which `metrics` turns into percentages."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_spmc.data import augment
from fedjax_spmc.data.pipeline import Images
from fedjax_spmc.types import Array, Attack, AttackState, Model, Variables

TEST_BATCH = 500


class Counts(NamedTuple):
    """Test images counted by true class, all [classes] int32.

    Attributes:
        total: images.
        correct: classified correctly.
        hits: classified as the attacker wants once the trigger is on them.
        targeted: images whose true class is the attacker's target.
    """

    total: Array
    correct: Array
    hits: Array
    targeted: Array


def make_evaluate(model: Model, attack: Attack, mean: Any, std: Any) -> Callable[..., Counts]:
    """The jitted evaluation: (variables, test: Images, attack_state) -> Counts.

    Args:
        model, attack: of the federation.
        mean, std: [C], of pixel values in [0, 1].
    """

    def evaluate(variables: Variables, test: Images, attack_state: AttackState) -> Counts:
        num_images = test.labels.shape[0]
        batch = min(TEST_BATCH, num_images)
        starts = jnp.arange(0, num_images, batch, dtype=jnp.int32)

        def predict(images: Array) -> Array:
            logits, _ = model.apply(variables.params, variables.stats, images, False, jax.random.key(0))
            return jnp.argmax(logits, axis=-1)

        def count_batch(start: Array) -> Counts:
            rows = start + jnp.arange(batch, dtype=jnp.int32)
            counted = rows < num_images
            rows = jnp.minimum(rows, num_images - 1)
            labels = test.labels[rows]
            images = augment.normalise(test.images[rows], mean, std)

            def by_class(mask: Array) -> Array:
                return jnp.zeros(model.num_classes, jnp.int32).at[labels].add((mask & counted).astype(jnp.int32))

            correct = by_class(predict(images) == labels)
            hits = targeted = jnp.zeros(model.num_classes, jnp.int32)
            if attack.backdoor is not None:
                stamped, wanted = attack.backdoor(attack_state, images, labels)
                hits, targeted = by_class(predict(stamped) == wanted), by_class(labels == wanted)
            return Counts(by_class(jnp.ones(batch, bool)), correct, hits, targeted)

        return jax.tree.map(lambda x: x.sum(axis=0), jax.lax.map(count_batch, starts))

    return jax.jit(evaluate)
