"""The data sets that are read in the layout of tensorflow-datasets; one line of a table each.

Normalisation, crop and flip are those of the SPMC reference, which uses MNIST's statistics for Fashion-MNIST and USPS
too, and, for grey images that keep their size, those of Neurotoxin's code for EMNIST.
"""

from collections.abc import Callable
from pathlib import Path

from fedjax_spmc.data import tfds_source
from fedjax_spmc.data.dataset import IMAGE_SHAPE, DatasetInfo, Source
from fedjax_spmc.data.tfds_source import Spec
from fedjax_spmc.registry import datasets

MNIST_MEAN, MNIST_STD = (0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
CIFAR100_MEAN = (0.5070751592, 0.4865488733, 0.4409178434)
CIFAR100_STD = (0.2673342859, 0.2564384629, 0.2761504713)


def _grey(name: str, num_classes: int = 10) -> DatasetInfo:
    return DatasetInfo(name, num_classes, IMAGE_SHAPE, MNIST_MEAN, MNIST_STD, crop_padding=4, flip=False)


SPECS = (
    Spec(_grey("mnist"), "MNIST", (28, 28)),
    Spec(_grey("fashion_mnist"), "Fashion-MNIST", (28, 28)),
    Spec(_grey("usps"), "USPS", (16, 16), has_builder=False),
    Spec(DatasetInfo("cifar10", 10, IMAGE_SHAPE, CIFAR10_MEAN, CIFAR10_STD, 4, True), "CIFAR-10", (32, 32, 3)),
    Spec(DatasetInfo("cifar100", 100, IMAGE_SHAPE, CIFAR100_MEAN, CIFAR100_STD, 4, True), "CIFAR-100", (32, 32, 3)),
    Spec(
        _grey("emnist_byclass_part", 62),
        "A part of EMNIST byclass",
        (28, 28),
        has_builder=False,
        has_own_order=True,
        note="EMNIST byclass: 9,000 training and 2,000 test images, both of its test file",
    ),
    Spec(_grey("ardis"), "ARDIS", (28, 28), has_builder=False, has_own_order=True),
    Spec(
        DatasetInfo("southwest", 10, IMAGE_SHAPE, CIFAR10_MEAN, CIFAR10_STD, 4, True),
        "Planes of Southwest Airlines",
        (32, 32, 3),
        has_builder=False,
        has_own_order=True,
    ),
)
KEEPS_ITS_SIZE = ("emnist_byclass_part",)
"""Grey data sets that are not resized unless they are told to be."""


def native(spec: Spec) -> Spec:
    """A grey data set as it is stored: one channel, and crops with two black pixels on each side."""
    info = spec.info
    assert info.mean is not None
    assert info.std is not None
    shape = (*spec.stored_shape, 1)
    return spec._replace(info=info._replace(input_shape=shape, mean=info.mean[:1], std=info.std[:1], crop_padding=2))


def _factory(spec: Spec) -> Callable[..., Source]:
    def coloured(
        data_dir: str | Path | None = None, cache_dir: str | Path | None = None, order: str = "original"
    ) -> Source:
        return tfds_source.source(spec, data_dir, cache_dir, order)

    def grey(
        data_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        order: str = "original",
        resize: bool = spec.info.name not in KEEPS_ITS_SIZE,
    ) -> Source:
        return tfds_source.source(spec if resize else native(spec), data_dir, cache_dir, order)

    is_grey = len(spec.stored_shape) == 2
    chosen = grey if is_grey else coloured
    chosen.__doc__ = f"{spec.title}, {spec.info.num_classes} classes, in the layout of TFDS."
    if is_grey:
        chosen.__doc__ += " `resize`: to 32x32 with three equal channels; False leaves them as stored, with one."
    return chosen


for _spec in SPECS:
    datasets.register(_spec.info.name)(_factory(_spec))
