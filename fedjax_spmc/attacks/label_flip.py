"""Label flip: malicious clients train on their own examples with wrong labels; inputs stay as they are.

Source: Biggio, Nelson, Laskov, "Support Vector Machines Under Adversarial Label Noise", ACML 2011; from one class to
    another in federated learning: Tolpegin, Truex, Gursoy, Liu, "Data Poisoning Attacks Against Federated Learning
    Systems", ESORICS 2020; `reverse` is that of Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to
    Byzantine-Robust Federated Learning", USENIX Security 2020; `pairs` and `symmetric` are PairFlip and SymFlip of the
    SPMC code.
Knows: nothing of the others.
Controls: its own training data.
Cost: none to speak of.
Deviations: the SPMC code draws from an unseeded generator, and its classes are those that are present; here they are
    those of the data set. Its training loop fails with this attack.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks._poisoning import PerBatch, chosen_rows, refuse_fraction
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import FRACTION, TRACED, Range, refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, PRNGKey

SOURCE, TARGET = 5, 3
"""The classes where none are given: with CIFAR-10 dogs become cats, one of the pairs of Tolpegin et al."""


class FlipState(NamedTuple):
    """What the attack keeps.

    Attributes:
        choosing: key with which examples are chosen.
        drawing: key with which `symmetric` draws labels.
        fraction: float32 scalar, probability that an example of an attacking client is flipped.
    """

    choosing: PRNGKey
    drawing: PRNGKey
    fraction: Array


@attacks.register("label_flip")
def label_flip(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 1.0,
    flip: Literal["source", "all", "pairs", "reverse", "symmetric"] = "source",
    source_class: Annotated[int, Range(0, 10**6)] | None = None,
    target_label: Annotated[int, Range(0, 10**6)] | None = None,
    poison_per_batch: PerBatch | None = None,
) -> Attack:
    """Training with wrong labels: from one class to another, or all classes, with C classes counted from 0.

    Each example is flipped with probability `poison_fraction`, drawn once by its index. ASR is the share of clean test
    examples that get the label to which they would have been flipped; with `source` they are those of the source class,
    and with `symmetric`, which wants no label, there is no ASR. A label that is not asked stays so. In a list it flips
    the labels that the attacks before it left.

    Args:
        poison_fraction: probability that an example of a malicious client is flipped.
        flip: what becomes of a label: "source": the source class becomes the target and the others stay; "all": the
            target; "pairs": c becomes c + 1, and the last class 0; "reverse": c becomes C - 1 - c; "symmetric": any
            other one, all alike.
        source_class: of "source"; None = 5.
        target_label: of "source" and "all"; None = 3.
        poison_per_batch: in place of the fraction, exactly so many rows of each batch, the first of those whose label
            the flip changes; all where there are fewer.

    Raises:
        ConfigError: the source class is the target or is no class of the data, a class is given that the flip has no
            use for, or a fraction is given beside a number for each batch.
    """
    refuse_fraction(label_flip, poison_per_batch, poison_fraction)
    setting = f"attack.options.flip = {flip!r}"
    if flip != "source":
        refuse_unused(label_flip, setting, {"source_class": source_class}, "attack")
    if flip not in ("source", "all") and target_label is not None:
        raise ConfigError(
            f"attack.target_label = {target_label} is not allowed with {setting}, where it has no effect: it must be "
            "None."
        )
    source = SOURCE if source_class is None else source_class
    target = TARGET if target_label is None else target_label
    if flip == "source" and source == target:
        raise ConfigError(
            f"attack.options.source_class = {source} is not allowed: it must be another class than "
            f"attack.target_label = {target}."
        )

    def init(ctx: AttackContext, key: PRNGKey) -> FlipState:
        classes = ctx.task.num_classes
        for path, label, flips in (
            ("attack.options.source_class", source, ("source",)),
            ("attack.target_label", target, ("source", "all")),
        ):
            if flip in flips and label >= classes:
                raise ConfigError(
                    f"{path} = {label} is not allowed: it must be a class of the data, 0 to {classes - 1}."
                )
        return FlipState(jax.random.fold_in(key, 0), jax.random.fold_in(key, 1), jnp.float32(poison_fraction))

    def poison(ctx: AttackContext, own: FlipState, batch: Batch, client_id: Array, step: Array, key: PRNGKey) -> Batch:
        del client_id, step, key
        labels, places = batch.labels, batch.labels.shape[1:]
        draws = jnp.zeros(labels.shape)
        if flip == "symmetric":
            one = lambda i: jax.random.uniform(jax.random.fold_in(own.drawing, i), places)  # noqa: E731
            draws = jax.vmap(one)(batch.sample_ids)
        new = jnp.where(labels >= 0, flipped(flip, labels, draws, ctx.task.num_classes, source, target), labels)
        changes = (new != labels).reshape(len(labels), -1).any(axis=1)
        chosen = chosen_rows(batch, own.choosing, own.fraction, poison_per_batch, changes)
        return batch._replace(labels=jnp.where(chosen.reshape(-1, *[1] * len(places)), new, labels))

    def backdoor(ctx: AttackContext, own: FlipState, batch: Batch) -> Batch:
        del own
        labels = batch.labels
        wanted = flipped(flip, labels, jnp.zeros(labels.shape), ctx.task.num_classes, source, target)
        shown = (labels >= 0) if flip != "source" else labels == source
        return batch._replace(labels=jnp.where(shown, wanted, -1))

    return Attack(init=init, poison=poison, backdoor=None if flip == "symmetric" else backdoor)


def flipped(flip: str, labels: Array, draws: Array, classes: int, source: int = SOURCE, target: int = TARGET) -> Array:
    """What becomes of labels that are flipped; see `label_flip`.

    Args:
        flip: which flip.
        labels: int32, any shape; those that are not asked come out as anything.
        draws: float in [0, 1), of the same shape, which only "symmetric" looks at.
        classes: C.
        source, target: classes.
    """
    if flip == "source":
        new = jnp.where(labels == source, target, labels)
    elif flip == "all":
        new = jnp.full_like(labels, target)
    elif flip == "pairs":
        new = (labels + 1) % classes
    elif flip == "reverse":
        new = classes - 1 - labels
    else:
        further = jnp.minimum((draws * (classes - 1)).astype(labels.dtype), max(classes - 2, 0))
        new = (labels + 1 + further) % classes
    return new.astype(labels.dtype)


def transitions(flip: str, classes: int, rate: float) -> np.ndarray:
    """[C, C] float64: with what probability a label (row) becomes which (column), where a share `rate` is flipped."""
    labels = jnp.arange(classes, dtype=jnp.int32)
    each = max(classes - 1, 1)
    drawn = [flipped(flip, labels, jnp.full(classes, (i + 0.5) / each), classes) for i in range(each)]
    counts = np.eye(classes)[np.array(drawn)].mean(axis=0)
    return (1 - rate) * np.eye(classes) + rate * counts
