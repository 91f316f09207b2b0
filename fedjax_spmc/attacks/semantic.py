"""Semantic backdoor: pictures of one class, without any trigger, are to be taken for another.

What Neurotoxin's code calls the base case. The attackers take their pictures from the *test* set; the benign test still
holds them, with their true labels, so that a backdoor costs accuracy. Poisoned pictures beside whole clean batches, as
the code trains: `attack.name=(semantic,mixed_batches)` with `attack.poison_fraction=1`; with a mask
`(semantic,mixed_batches,neurotoxin)`.

Source: Zhang, Panda, Song, Yang, Mahoney, Gonzalez, Ramchandran, Mittal, "Neurotoxin: Durable Backdoors in Federated
    Learning", ICML 2022, its published code; semantic backdoors are those of Bagdasaryan et al., "How To Backdoor
    Federated Learning", AISTATS 2020.
Knows: test pictures of one class.
Controls: its own training data.
Cost: none to speak of.
Deviations: the code tests on the pictures that it trains on (`disjoint=False`); here the pictures of the class are
    parted in two halves, drawn by the seed, one to train on and one to test. The code draws its pictures among those of
    the whole test set; `data.limit_test` limits them here. It uses class 5, on EMNIST 7, and the target 9. It goes
    through all draws once in an internal epoch; here every batch takes some anew, each at most once.
"""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks._own_examples import ExampleState, Held, draw, example_attack, require_classes
from fedjax_spmc.attacks._poisoning import PerBatch, refuse_fraction
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import FRACTION, TRACED, Range
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Attack, AttackContext, Examples, PRNGKey

AT_ONCE = 64
"""Pictures drawn at a time: the code's batch."""


@attacks.register("semantic")
def semantic(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.5,
    target_label: Annotated[int, Range(0, 10**6)] = 9,
    source_class: Annotated[int, Range(0, 10**6)] = 5,
    draws: Annotated[int, Range(1, 10**6)] = 512,
    disjoint: bool = True,
    augment: bool = False,
    poison_per_batch: PerBatch | None = None,
) -> Attack:
    """Backdoor without a trigger: in each batch of an attacker some rows are pictures of a class with a wrong label.

    Of data with texts, and a class for each, they are texts.

    ASR is the share of the class's test pictures, of those that the test is left, that are taken for the target.

    Args:
        poison_fraction: share of the rows of each batch that are such pictures.
        target_label: the label that the attacker wants.
        source_class: the class of the pictures.
        draws: how many pictures are drawn for training, once for the run and for all attackers, 64 at a time without
            replacement; with more than there are, some stand there more than once. The code's 512 is 500 in whole
            batches.
        disjoint: whether the test is on other pictures than those trained on. False tests on the `draws` themselves, as
            often as each was drawn (the code).
        augment: whether pictures that are trained on are cropped and mirrored as others are (the code: no).
        poison_per_batch: in place of the fraction, exactly so many rows of each batch, its first ones; all of a batch
            that has fewer.

    Raises:
        ConfigError: the source class is the target, is no class of the data set, or has too few test pictures; a
            fraction is given beside a number for each batch.
    """
    refuse_fraction(semantic, poison_per_batch, poison_fraction)
    if source_class == target_label:
        raise ConfigError(
            f"attack.options.source_class = {source_class} is not allowed: it must be another class than "
            f"attack.target_label = {target_label}."
        )

    def hold(dataset: Any, load: Any) -> Held:
        del load
        require_classes("semantic", dataset)
        path, classes = f"attack.options.source_class = {source_class}", dataset.info.num_classes
        if source_class >= classes:
            raise ConfigError(f"{path} is not allowed: it must be a class of {dataset.info.name}, 0 to {classes - 1}.")
        chosen = dataset.test_labels == source_class
        if chosen.sum() < 2:
            raise ConfigError(
                f"{path} is not allowed: it must be a class with at least two test pictures, and {dataset.info.name} "
                f"has {chosen.sum()} of it here."
            )
        pictures, labels = dataset.test_inputs[chosen], dataset.test_labels[chosen]
        return Held(pictures, pictures, labels, np.int32(target_label))

    def test(held: Held) -> Examples:
        # Any pictures of the class, as many as the test has: `shown` puts those in their place that are drawn for it.
        count = len(held.labels)
        rows = np.arange(count - count // 2 if disjoint else draws) % count
        return Examples(held.test[rows], held.labels[rows])

    def init(ctx: AttackContext, key: PRNGKey) -> ExampleState:
        count = len(ctx.held.labels)
        order = jax.random.permutation(jax.random.fold_in(key, 0), count).astype(jnp.int32)
        half = count // 2 if disjoint else count
        train = draw(jax.random.fold_in(key, 1), order[:half], draws, AT_ONCE)
        tested = order[half:] if disjoint else train
        return ExampleState(jnp.float32(poison_fraction), jnp.int32(ctx.held.target), train, tested)

    return example_attack(hold, test, init, augment, poison_per_batch)
