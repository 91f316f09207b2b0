"""A made-up data set that is learnt in seconds: each class is a coloured pattern of 4x4 tiles, under noise."""

from typing import Annotated

import numpy as np

from fedjax_spmc.data.dataset import IMAGE_SHAPE, DatasetInfo, Source, Splits, built_in
from fedjax_spmc.options import Range
from fedjax_spmc.registry import datasets

HALF = (0.5, 0.5, 0.5)
CONTRAST, NOISE = 50.0, 40.0  # grey levels, standard deviations


def generate(num_train: int, num_test: int, num_classes: int, seed: int) -> Splits:
    """Images [n, 32, 32, 3] uint8 and labels [n] int32, classes equally frequent up to one; a pure function."""
    rng = np.random.default_rng(seed)
    tiles = rng.normal(size=(num_classes, 4, 4, 3)).astype(np.float32)
    patterns = 127.5 + CONTRAST * tiles.repeat(8, axis=1).repeat(8, axis=2)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.permutation(np.arange(count, dtype=np.int32) % num_classes)
        noise = rng.standard_normal((count, *IMAGE_SHAPE), np.float32)
        return np.clip(np.rint(patterns[labels] + NOISE * noise), 0, 255).astype(np.uint8), labels

    train, test = draw(num_train), draw(num_test)
    return Splits(*train, *test)


@datasets.register("synthetic")
def synthetic(
    data_dir: object = None,
    cache_dir: object = None,
    order: str = "original",
    num_train: Annotated[int, Range(1, 10**6)] = 1000,
    num_test: Annotated[int, Range(1, 10**6)] = 200,
    num_classes: Annotated[int, Range(2, 1000)] = 10,
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0,
) -> Source:
    """Patterns under noise; both orders are the same."""
    del data_dir, cache_dir, order
    info = DatasetInfo("synthetic", num_classes, IMAGE_SHAPE, HALF, HALF, crop_padding=0, flip=False)
    return built_in(info, lambda: generate(num_train, num_test, num_classes, seed), "generated from its seed")
