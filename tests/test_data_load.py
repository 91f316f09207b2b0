"""`data.load`: limits, split, normalisation, the built-in data sets, and the reference's resizing."""

import numpy as np
import pytest

from fedjax_spmc import data
from fedjax_spmc.data import dataset, preprocess
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.registry import datasets

CIFAR100_MEAN = (0.5070751592, 0.4865488733, 0.4409178434)
CIFAR100_STD = (0.2673342859, 0.2564384629, 0.2761504713)
BUILT_IN = ("digits", "synthetic")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def check_contract(loaded: data.Dataset) -> None:
    """What every data set promises."""
    info = loaded.info
    for images, labels in ((loaded.train_inputs, loaded.train_labels), (loaded.val_inputs, loaded.val_labels),
                           (loaded.test_inputs, loaded.test_labels)):  # fmt: skip
        assert images.shape == (len(labels), *info.input_shape)
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
        assert labels.min() >= 0
        assert labels.max() < info.num_classes
    assert info.input_shape == (32, 32, 3)
    assert len(info.mean) == len(info.std) == 3
    assert len(loaded.fingerprint) == 64


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_data_sets_keep_the_contract(name):
    loaded = data.load(name)
    check_contract(loaded)
    assert loaded.info.name == name
    assert data.load(name).fingerprint == loaded.fingerprint
    assert data.load(name, order="stored").fingerprint == loaded.fingerprint


def test_names_and_describe():
    assert {"cifar10", "cifar100", "digits", "fashion_mnist", "mnist", "synthetic", "usps"} <= set(data.names())
    assert data.describe("synthetic")["num_classes"]["default"] == 10
    assert data.describe("cifar10") == {}


@pytest.mark.parametrize(
    ("name", "classes", "mean", "std", "padding", "flip"),
    [
        ("mnist", 10, 0.1307, 0.3081, 4, False),
        ("fashion_mnist", 10, 0.1307, 0.3081, 4, False),
        ("usps", 10, 0.1307, 0.3081, 4, False),
        ("cifar10", 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615), 4, True),
        ("cifar100", 100, CIFAR100_MEAN, CIFAR100_STD, 4, True),
        ("synthetic", 10, 0.5, 0.5, 0, False),
    ],
)  # fmt: skip
def test_normalisation_and_augmentation_are_those_of_the_reference(name, classes, mean, std, padding, flip):
    info = datasets.make(name).info
    assert (info.num_classes, info.crop_padding, info.flip) == (classes, padding, flip)
    np.testing.assert_array_equal(info.mean, np.broadcast_to(mean, 3))
    np.testing.assert_array_equal(info.std, np.broadcast_to(std, 3))


def test_digits(digits):
    assert len(digits.test_labels) == 299
    assert len(digits.train_labels) == int(0.9 * 1498)
    assert digits.train_inputs.max() == 255
    np.testing.assert_array_equal(digits.train_labels[:6], [0, 1, 2, 3, 4, 6])  # 0 1 2 3 4 (5) 6: every sixth tests
    assert digits.test_labels[0] == 5
    assert digits.train_inputs.max(axis=-1).sum() == digits.train_inputs.min(axis=-1).sum()
    pixels = np.concatenate([digits.train_inputs, digits.val_inputs]) / 255
    np.testing.assert_allclose([pixels.mean(), pixels.std()], [digits.info.mean[0], digits.info.std[0]], atol=5e-5)


def test_synthetic_can_be_learnt():
    loaded = data.load("synthetic", num_train=400, num_classes=7, seed=3)
    assert loaded.info.num_classes == 7
    counts = np.bincount(np.concatenate([loaded.train_labels, loaded.val_labels]))
    assert counts.max() - counts.min() <= 1
    train, test = (x.reshape(len(x), -1).astype(np.float64) for x in (loaded.train_inputs, loaded.test_inputs))
    centres = np.stack([train[loaded.train_labels == label].mean(axis=0) for label in range(7)])
    nearest = ((test[:, None] - centres[None]) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == loaded.test_labels).mean() > 0.99
    assert data.load("synthetic", num_train=400, num_classes=7, seed=4).fingerprint != loaded.fingerprint


def test_limits_apply_before_the_split(digits):
    small = data.load("digits", limit_train=100, limit_test=30, val_fraction=0.25)
    assert [len(x) for x in (small.train_labels, small.val_labels, small.test_labels)] == [75, 25, 30]
    np.testing.assert_array_equal(np.concatenate([small.train_inputs, small.val_inputs]), digits.train_inputs[:100])
    np.testing.assert_array_equal(small.test_inputs, digits.test_inputs[:30])
    assert small.fingerprint != digits.fingerprint
    assert data.load("digits", limit_train=10**9, limit_test=10**9).fingerprint == digits.fingerprint
    assert len(data.load("digits", val_fraction=0).val_labels) == 0


def test_the_fingerprint_sees_order_and_content(digits):
    arrays = digits[1:7]
    assert dataset.fingerprint_of(*arrays) == digits.fingerprint
    assert dataset.fingerprint_of(arrays[0][::-1], *arrays[1:]) != digits.fingerprint
    changed = arrays[0].copy()
    changed[5, 6, 7, 0] ^= 1
    assert dataset.fingerprint_of(changed, *arrays[1:]) != digits.fingerprint


@pytest.mark.parametrize(("val_fraction", "kept"), [(0.1, 9), (0.9, 1), (0.7, 3), (0.3, 7), (0.2, 8), (0.0, 10)])
def test_no_example_is_lost_to_rounding(val_fraction, kept):
    assert dataset.num_train(10, val_fraction) == kept


def test_the_default_split_is_the_references_for_every_size():
    assert all(dataset.num_train(n, 0.1) == int(0.9 * n) for n in range(0, 70_001, 7))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "cifar11"}, ["cifar11", "did you mean cifar10 or cifar100?", "fedjax-spmc list data"]),
        ({"order": "sorted"}, ["data.order = 'sorted'", "original, stored"]),
        ({"limit_train": 0}, ["data.limit_train = 0"]),
        ({"limit_test": -1}, ["data.limit_test = -1"]),
        ({"limit_train": 2.5}, ["data.limit_train = 2.5"]),
        ({"val_fraction": 1.0}, ["data.val_fraction = 1.0", "[0, 1)"]),
        ({"limit_train": 1}, ["data.val_fraction = 0.1", "data.limit_train at least 2"]),
        ({"num_classes": 3}, ["num_classes is no option of data set digits"]),
        ({"name": "synthetic", "num_classes": 1}, ["num_classes = 1", "[2, 1000]"]),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(ConfigError) as caught:
        data.load(**{"name": "digits", **arguments})
    assert all(word in str(caught.value) for word in named), str(caught.value)


def test_resizing_and_normalisation_are_those_of_the_reference(shared):
    golden = np.load(shared / "golden" / "spmc_preprocess.npz")
    for size in ("gray28", "gray16"):
        np.testing.assert_array_equal(preprocess.resize_grey(golden[size]), golden[f"{size}_resized_uint8"])
    for images, name, key in [
        ("gray28", "mnist", "mnist_test"),
        ("gray28", "fashion_mnist", "fashionmnist_test"),
        ("gray16", "usps", "usps_test"),
        ("rgb32", "cifar10", "cifar10_test"),
        ("rgb32", "cifar100", "cifar100_test"),
    ]:
        info, raw = datasets.make(name).info, golden[images]
        pixels = preprocess.to_rgb(preprocess.resize_grey(raw) if raw.ndim == 3 else raw)
        normalised = (pixels.astype(np.float32) / 255 - np.float32(info.mean)) / np.float32(info.std)
        np.testing.assert_allclose(normalised.transpose(0, 3, 1, 2), golden[key], rtol=0, atol=1e-6)
