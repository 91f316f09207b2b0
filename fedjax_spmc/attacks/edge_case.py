"""Edge case: examples from the tail of a class, which benign data hardly have, get a wrong label; there is no trigger.

Planes of Southwest Airlines are to be taken for trucks (9), handwritten sevens of Swedish church records (ARDIS) for
ones, tweets on the film director Yorgos Lanthimos for negative ones (0). All are data sets of their own, found as any
other in `data.data_dir`; texts are read with the vocabulary of the data.

Source: Wang, Sreenivasan, Rajput, Vishwanath, Agarwal, Sohn, Lee, Papailiopoulos, "Attack of the Tails: Yes, You Really
    Can Backdoor Federated Learning", NeurIPS 2020, and its published code; the same pictures in Neurotoxin's code (ICML
    2022).
Knows: examples that the others do not have.
Controls: its own training data.
Cost: none to speak of.
Deviations: in the code an attacker trains on a data set made for it, 100 planes and 400 pictures of the training set
    (99 sevens and 100 of EMNIST); here on its own data, of which such a share of each batch gives way to edge cases.
    Neurotoxin's code has all pictures beside whole clean batches: `attack.name=(edge_case,mixed_batches)` with
    `attack.poison_fraction=1`. The first code adds honest clients that hold such pictures with true labels; not here.
"""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks._own_examples import ExampleState, Held, draw, example_attack, require_classes
from fedjax_spmc.attacks._poisoning import PerBatch, refuse_fraction
from fedjax_spmc.data.dataset import IMAGE_SHAPE, DatasetInfo
from fedjax_spmc.errors import ConfigError, DataError
from fedjax_spmc.options import FRACTION, TRACED, Range
from fedjax_spmc.registry import attacks, datasets
from fedjax_spmc.types import Attack, AttackContext, Examples, PRNGKey


class Published(NamedTuple):
    """A published set of such examples: the class taken from it (None = all), the attacker's label."""

    source_class: int | None
    target: int


PUBLISHED = {
    "southwest": Published(None, 9),
    "ardis": Published(7, 1),
    "greek_director": Published(None, 0),
}
OF_DATA = {
    "cifar10": "southwest",
    "cifar100": "southwest",
    "mnist": "ardis",
    "emnist_byclass_part": "ardis",
    "sentiment140_30k": "greek_director",
}
"""Data set -> its edge cases."""


@attacks.register("edge_case")
def edge_case(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.2,
    target_label: Annotated[int, Range(0, 10**6)] | None = None,
    cases: str | None = None,
    source_class: Annotated[int, Range(0, 10**6)] | None = None,
    draws: Annotated[int, Range(1, 10**6)] | None = None,
    augment: bool = False,
    poison_per_batch: PerBatch | None = None,
) -> Attack:
    """Backdoor without a trigger: in each batch of an attacker some rows are edge cases with a wrong label.

    ASR is the share of the set's own test examples that are taken for the target.

    Args:
        poison_fraction: share of the rows of each batch that are edge cases.
        target_label: the label that the attacker wants; None = 9 for southwest, 1 for ardis, 0 for greek_director.
        cases: the data set that they come from, any with pictures of the same size, or with texts for texts; None =
            southwest for CIFAR-10 and CIFAR-100, ardis for MNIST and EMNIST, greek_director for Sentiment140.
        source_class: the class of that set which is taken; None = 7 of ardis, and all of every other set.
        draws: how many of the set's training examples the attackers have, drawn once for the run; None = all.
        augment: whether pictures that are trained on are cropped and mirrored as others are.
        poison_per_batch: in place of the fraction, exactly so many rows of each batch, its first ones; all of a batch
            that has fewer.

    Raises:
        ConfigError: no edge cases, no target or no class, where nothing is published for the data set; a fraction is
            given beside a number for each batch.
    """
    refuse_fraction(edge_case, poison_per_batch, poison_fraction)
    if cases is not None:
        datasets.factory(cases, "attack.options.cases")

    def hold(dataset: Any, load: Any) -> Held:
        require_classes("edge_case", dataset)
        info = dataset.info
        name = OF_DATA.get(info.name) if cases is None else cases
        if name is None:
            raise ConfigError(
                f"attack.options.cases = None is not allowed with data.name = {info.name!r}, which has no published "
                f"edge cases: it must be a data set of such examples, {', '.join(PUBLISHED)} or another one."
            )
        label, target = wanted(name, info)
        try:
            found = load(name, val_fraction=0.0, **as_the_data(name, info))
        except DataError as error:
            raise DataError(f"attack.name = 'edge_case' takes its examples from data set {name}: {error}") from None
        if found.info.input_shape != info.input_shape or found.test_labels.ndim != 1:
            raise ConfigError(
                f"attack.options.cases = {name!r} is not allowed with data.name = {info.name!r}: its examples are "
                f"{found.info.input_shape}, and they must be {info.input_shape}, with a class each."
            )
        train, test = (
            labels >= 0 if label is None else labels == label for labels in (found.train_labels, found.test_labels)
        )
        if not (train.any() and test.any()):
            raise ConfigError(
                f"attack.options.source_class = {label} is not allowed: it must be a class of which {name} has "
                "examples to train on and to test."
            )
        return Held(found.train_inputs[train], found.test_inputs[test], found.test_labels[test], np.int32(target))

    def wanted(name: str, info: DatasetInfo) -> tuple[int | None, int]:
        """The class that is taken (None = all) and the attacker's label."""
        published = PUBLISHED.get(name)
        label = published.source_class if published is not None and source_class is None else source_class
        target = published.target if published is not None and target_label is None else target_label
        if target is None or target >= info.num_classes:
            raise ConfigError(
                f"attack.target_label = {target} is not allowed with attack.options.cases = {name!r}: it must be a "
                f"class of {info.name}, 0 to {info.num_classes - 1}."
            )
        return label, target

    def test(held: Held) -> Examples:
        return Examples(held.test, held.labels)

    def init(ctx: AttackContext, key: PRNGKey) -> ExampleState:
        places = jnp.arange(len(ctx.held.train), dtype=jnp.int32)
        train = places if draws is None else draw(key, places, min(draws, len(places)))
        tested = jnp.arange(len(ctx.held.labels), dtype=jnp.int32)
        return ExampleState(jnp.float32(poison_fraction), jnp.int32(ctx.held.target), train, tested)

    return example_attack(hold, test, init, augment, poison_per_batch)


def as_the_data(name: str, info: DatasetInfo) -> dict[str, Any]:
    """Options with which a data set is read as the clients' are: pictures of the same size, texts as their tokens."""
    known = datasets.options(name)
    if info.tokenizer is not None and "tokenizer" in known:
        return {"like": info.tokenizer, "length": info.input_shape[0]}
    return {"resize": info.input_shape == IMAGE_SHAPE} if "resize" in known else {}
