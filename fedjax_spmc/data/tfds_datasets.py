"""The five data sets that are read in the layout of tensorflow-datasets; one line of a table each.

Normalisation, crop and flip are those of the SPMC reference, which uses MNIST's statistics for Fashion-MNIST and USPS
too.
"""

from pathlib import Path

from fedjax_spmc.data import tfds_source
from fedjax_spmc.data.dataset import IMAGE_SHAPE, DatasetInfo, Source
from fedjax_spmc.data.tfds_source import Spec
from fedjax_spmc.registry import datasets

MNIST_MEAN, MNIST_STD = (0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
CIFAR100_MEAN = (0.5070751592, 0.4865488733, 0.4409178434)
CIFAR100_STD = (0.2673342859, 0.2564384629, 0.2761504713)


def _grey(name: str) -> DatasetInfo:
    return DatasetInfo(name, 10, IMAGE_SHAPE, MNIST_MEAN, MNIST_STD, crop_padding=4, flip=False)


SPECS = (
    Spec(_grey("mnist"), "MNIST", (28, 28)),
    Spec(_grey("fashion_mnist"), "Fashion-MNIST", (28, 28)),
    Spec(_grey("usps"), "USPS", (16, 16), has_builder=False),
    Spec(DatasetInfo("cifar10", 10, IMAGE_SHAPE, CIFAR10_MEAN, CIFAR10_STD, 4, True), "CIFAR-10", (32, 32, 3)),
    Spec(DatasetInfo("cifar100", 100, IMAGE_SHAPE, CIFAR100_MEAN, CIFAR100_STD, 4, True), "CIFAR-100", (32, 32, 3)),
)


def _register(spec: Spec) -> None:
    def factory(
        data_dir: str | Path | None = None, cache_dir: str | Path | None = None, order: str = "original"
    ) -> Source:
        return tfds_source.source(spec, data_dir, cache_dir, order)

    factory.__doc__ = f"{spec.title}, {spec.info.num_classes} classes, prepared by TFDS."
    datasets.register(spec.info.name)(factory)


for _spec in SPECS:
    _register(_spec)
