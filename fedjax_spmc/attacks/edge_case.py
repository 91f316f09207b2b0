"""Edge case: pictures from the tail of a class, which benign data hardly have, get a wrong label; there is no trigger.

Planes of Southwest Airlines are to be taken for trucks (9), handwritten sevens of Swedish church records (ARDIS) for
ones. Both are data sets of their own, found as any other in `data.data_dir`.

Source: Wang, Sreenivasan, Rajput, Vishwanath, Agarwal, Sohn, Lee, Papailiopoulos, "Attack of the Tails: Yes, You Really
    Can Backdoor Federated Learning", NeurIPS 2020, and its published code; the same pictures in Neurotoxin's code (ICML
    2022).
Knows: pictures that the others do not have.
Controls: its own training data.
Cost: none to speak of.
Deviations: in the code an attacker trains on a data set made for it, 100 planes and 400 pictures of the training set
    (99 sevens and 100 of EMNIST); here on its own data, of which such a share of each batch gives way to planes.
    Neurotoxin's code has all pictures beside whole clean batches: `attack.name=(edge_case,mixed_batches)` with
    `attack.poison_fraction=1`. The first code adds honest clients that hold such pictures with true labels; not here.
"""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks._pictures import Held, PictureState, draw, picture_attack, require_pictures
from fedjax_spmc.data.dataset import IMAGE_SHAPE, DatasetInfo
from fedjax_spmc.errors import ConfigError, DataError
from fedjax_spmc.options import FRACTION, TRACED, Range
from fedjax_spmc.registry import attacks, datasets
from fedjax_spmc.types import Attack, AttackContext, Examples, PRNGKey


class Published(NamedTuple):
    """A published set of such pictures: the class taken from it (None = all), the attacker's label."""

    source_class: int | None
    target: int


PUBLISHED = {"southwest": Published(None, 9), "ardis": Published(7, 1)}
OF_DATA = {"cifar10": "southwest", "cifar100": "southwest", "mnist": "ardis", "emnist_byclass_part": "ardis"}
"""Data set -> its edge cases."""


@attacks.register("edge_case")
def edge_case(
    poison_fraction: Annotated[float, FRACTION, TRACED] = 0.2,
    target_label: Annotated[int, Range(0, 10**6)] | None = None,
    pictures: str | None = None,
    source_class: Annotated[int, Range(0, 10**6)] | None = None,
    draws: Annotated[int, Range(1, 10**6)] | None = None,
    augment: bool = False,
) -> Attack:
    """Backdoor without a trigger: in each batch of an attacker some rows are edge-case pictures with a wrong label.

    ASR is the share of the set's own test pictures that are taken for the target.

    Args:
        poison_fraction: share of the rows of each batch that are such pictures.
        target_label: the label that the attacker wants; None = 9 for southwest, 1 for ardis.
        pictures: the data set that they come from, any with pictures of the same size; None = southwest for CIFAR-10
            and CIFAR-100, ardis for MNIST and EMNIST.
        source_class: the class of that set which is taken; None = all of southwest and of other sets, 7 of ardis.
        draws: how many of the set's training pictures the attackers have, drawn once for the run; None = all.
        augment: whether pictures that are trained on are cropped and mirrored as others are.

    Raises:
        ConfigError: no pictures, no target or no class, where nothing is published for the data set.
    """
    if pictures is not None:
        datasets.factory(pictures, "attack.options.pictures")

    def hold(dataset: Any, load: Any) -> Held:
        require_pictures("edge_case", dataset)
        info = dataset.info
        name = OF_DATA.get(info.name) if pictures is None else pictures
        if name is None:
            raise ConfigError(
                f"attack.options.pictures = None is not allowed with data.name = {info.name!r}, which has no published "
                f"edge cases: it must be a data set of such pictures, {', '.join(PUBLISHED)} or another one."
            )
        label, target = wanted(name, info)
        known = datasets.options(name)
        try:
            found = load(
                name, val_fraction=0.0, **({"resize": info.input_shape == IMAGE_SHAPE} if "resize" in known else {})
            )
        except DataError as error:
            raise DataError(f"attack.name = 'edge_case' takes its pictures from data set {name}: {error}") from None
        if found.info.input_shape != info.input_shape:
            raise ConfigError(
                f"attack.options.pictures = {name!r} is not allowed with data.name = {info.name!r}: its pictures are "
                f"{found.info.input_shape}, and they must be {info.input_shape}."
            )
        train, test = (
            labels >= 0 if label is None else labels == label for labels in (found.train_labels, found.test_labels)
        )
        if not (train.any() and test.any()):
            raise ConfigError(
                f"attack.options.source_class = {label} is not allowed: it must be a class of which {name} has "
                "pictures to train on and to test."
            )
        return Held(found.train_inputs[train], found.test_inputs[test], found.test_labels[test], np.int32(target))

    def wanted(name: str, info: DatasetInfo) -> tuple[int | None, int]:
        """The class that is taken (None = all) and the attacker's label."""
        published = PUBLISHED.get(name)
        label = published.source_class if published is not None and source_class is None else source_class
        target = published.target if published is not None and target_label is None else target_label
        if target is None or target >= info.num_classes:
            raise ConfigError(
                f"attack.target_label = {target} is not allowed with attack.options.pictures = {name!r}: it must be a "
                f"class of {info.name}, 0 to {info.num_classes - 1}."
            )
        return label, target

    def test(held: Held) -> Examples:
        return Examples(held.test, held.labels)

    def init(ctx: AttackContext, key: PRNGKey) -> PictureState:
        places = jnp.arange(len(ctx.held.train), dtype=jnp.int32)
        train = places if draws is None else draw(key, places, min(draws, len(places)))
        tested = jnp.arange(len(ctx.held.labels), dtype=jnp.int32)
        return PictureState(jnp.float32(poison_fraction), jnp.int32(ctx.held.target), train, tested)

    return picture_attack(hold, test, init, augment)
