"""1,797 handwritten digits of 8x8 pixels, which come with the package: real images without a download.

Source: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998,
    https://doi.org/10.24432/C50P49, licence CC BY 4.0; its test set, in the order in which scikit-learn carries it.
    `digits.npz` holds the counts 0..16 as they are.

Every sixth image (indices 5, 11, 17, ...) is a test image: 299 of them; the other 1,498 are for training.
"""

from pathlib import Path

import numpy as np

from fedjax_spmc import reading
from fedjax_spmc.data.dataset import IMAGE_SHAPE, DatasetInfo, Source, Splits, built_in
from fedjax_spmc.data.preprocess import resize_grey
from fedjax_spmc.registry import datasets

# Of value/255 over the 1,498 training images after resizing to 32x32.
MEAN, STD = (0.3057, 0.3057, 0.3057), (0.3236, 0.3236, 0.3236)

INFO = DatasetInfo("digits", 10, IMAGE_SHAPE, MEAN, STD, crop_padding=4, flip=False)


def read() -> Splits:
    """Values 0..16 become round(255 / 16 * value); resized like every grey data set. File order."""
    stored = reading.arrays(Path(__file__).with_suffix(".npz"))
    images = resize_grey(np.round(stored["pixels"] * (255 / 16)).astype(np.uint8))
    labels = stored["labels"].astype(np.int32)
    test = np.arange(len(labels)) % 6 == 5
    return Splits(images[~test], labels[~test], images[test], labels[test])


@datasets.register("digits")
def digits(data_dir: object = None, cache_dir: object = None, order: str = "original") -> Source:
    """The handwritten digits of UCI's repository, 8x8 pixels; both orders are the same."""
    del data_dir, cache_dir, order
    return built_in(INFO, read, "part of the package")
