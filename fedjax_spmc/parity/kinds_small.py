"""Partition, trigger, poisoned data, label flips, preprocessing and metrics against their golden files."""

import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from fedjax_spmc import data, metrics
from fedjax_spmc.attacks import triggers
from fedjax_spmc.attacks._poisoning import poison_batch
from fedjax_spmc.attacks.label_flip import transitions
from fedjax_spmc.data import augment, partition, preprocess
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, failed, kind, skipped
from fedjax_spmc.registry import datasets
from fedjax_spmc.types import Array, Batch

EXACT = 0.0


def channels_last(images: np.ndarray) -> np.ndarray:
    """N x C x H x W of any float as N x H x W x C float32."""
    return np.moveaxis(np.asarray(images, np.float32), -3, -1)


def poisoned(
    images: Array, labels: Array, chosen: np.ndarray, target: int, trigger: triggers.Trigger
) -> tuple[Array, Array]:
    """Images and labels as the attack leaves them."""
    count = len(labels)
    batch = Batch(images, labels, jnp.arange(count, dtype=jnp.int32), jnp.ones(count, bool))
    made = poison_batch(batch, jnp.asarray(chosen), target, trigger)
    return made.inputs, made.labels


@kind(r"spmc_partition_.*")
def partitions(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The Dirichlet partition with the reference's own draws, and the generator's position behind it."""
    comparison = Comparison("partition", EXACT)
    labels = np.asarray(arrays["labels"], np.int64)
    rng = np.random.RandomState(int(arrays["numpy_seed"]))
    num_train, validation = partition.split_validation(len(labels), 1 - float(arrays["train_fraction"]), rng)
    parts = partition.dirichlet(labels[:num_train], int(arrays["n_clients"]), float(arrays["beta"]), rng)
    comparison.add("client_sizes", [len(part) for part in parts], arrays["client_sizes"])
    comparison.add("client_indices", np.concatenate(parts), arrays["client_indices_concatenated"])
    comparison.add("validation_indices", validation, arrays["validation_indices"])
    comparison.add("uniform_after", rng.random_sample(len(arrays["uniform_after"])), arrays["uniform_after"])
    yield comparison.outcome(source)


@kind(r"spmc_trigger.*")
def trigger(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Stamping and relabelling, given the reference's draws."""
    images = channels_last(arrays["images"])
    positions = [tuple(int(i) for i in one) for one in arrays["trigger_position_channel_row_column"]]
    values = np.asarray(arrays["trigger_value"], np.float32)
    pattern = triggers.from_positions(positions, list(values), "normalized", images.shape[1:])
    comparison = Comparison("trigger", EXACT)
    for tag in sorted({name.split("__")[0] for name in arrays if "__" in name}):
        stamped, labels = poisoned(
            jnp.asarray(images),
            jnp.asarray(arrays["labels"], jnp.int32),
            # Compared in NumPy: the draws are float64, which a float32 comparison could round across the rate.
            np.asarray(arrays[f"{tag}__uniform"] < arrays[f"{tag}__rate"]),
            int(arrays["target_label"]),
            pattern,
        )
        comparison.add(f"{tag} images", stamped, channels_last(arrays[f"{tag}__images"]))
        comparison.add(f"{tag} labels", labels, arrays[f"{tag}__labels"])
    yield comparison.outcome(source)


@kind(r"spmc_backdoor_dataset.*")
def backdoor_dataset(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The whole poisoning stage: poisoned copy, triggered test set, who uses the copy, batches per epoch.

    The reference's augmentation is a horizontal roll by -2..2 that the file does not record: for each image the nearest
    of the five is taken, and it must then agree exactly.
    """
    comparison = Comparison("backdoor data set", EXACT)
    raw, target = channels_last(arrays["raw_images"]), int(arrays["target_label"])
    preset = triggers.PRESETS["spmc_code"]
    pattern = triggers.from_positions(preset.positions, preset.value, preset.space, raw.shape[1:])
    mask = np.asarray(arrays["poisoned_mask"], bool)
    labels = jnp.asarray(arrays["raw_labels"], jnp.int32)
    theirs = channels_last(arrays["malicious_images"])
    rolled = [
        poisoned(jnp.asarray(np.roll(raw, shift, axis=2)), labels, mask, target, pattern) for shift in range(-2, 3)
    ]
    ours = np.stack([np.asarray(images) for images, _ in rolled])
    nearest = np.abs(ours - theirs[None]).max(axis=(2, 3, 4)).argmin(axis=0)
    comparison.add("malicious_images", ours[nearest, np.arange(len(raw))], theirs)
    comparison.add("malicious_labels", rolled[0][1], arrays["malicious_labels"])
    tests = channels_last(arrays["raw_test_images"])
    comparison.add(
        "backdoor_test_images",
        triggers.stamp(jnp.asarray(tests), pattern),
        channels_last(arrays["backdoor_test_images"]),
    )
    comparison.add("backdoor_test_labels", np.full(len(tests), target), arrays["backdoor_test_labels"])
    comparison.add(
        "client_uses_poisoned_copy", ~np.asarray(arrays["client_is_benign"]), arrays["client_uses_poisoned_copy"]
    )
    sizes = np.asarray(arrays["client_sizes"])
    comparison.add("batches_per_epoch", sizes // int(arrays["batch_size"]), arrays["batches_per_epoch"])
    comparison.add("number of indices", sizes.sum(), len(arrays["client_indices_concatenated"]))
    yield comparison.outcome(source)


@kind(r"spmc_label_flip_matrices.*")
def label_flips(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """With what probability each label becomes which; the rate in a name is written without its point: 03 is 0.3."""
    comparison = Comparison("label flip", 1e-12)
    for name, theirs in arrays.items():
        found = re.fullmatch(r"(PairFlip|SymFlip)_classes(\d+)_rate(\d)(\d*)", name)
        if found is None:
            yield failed(f"label flip {name}", source, "it must be PairFlip or SymFlip, _classes and _rate")
            continue
        flip = {"PairFlip": "pairs", "SymFlip": "symmetric"}[found[1]]
        comparison.add(name, transitions(flip, int(found[2]), float(f"{found[3]}.{found[4]}")), theirs)
    yield comparison.outcome(source)


@kind(r"spmc_preprocess.*")
def preprocessing(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Resizing (exact) and normalisation of the test transforms."""
    resized = Comparison("resize to 32x32", EXACT)
    for name in ("gray28", "gray16"):
        resized.add(name, preprocess.resize_grey(arrays[name]), arrays[f"{name}_resized_uint8"])
    yield resized.outcome(source)
    normalised = Comparison("normalisation")
    for name, pixels in (
        ("mnist", arrays["gray28"]), ("fashion_mnist", arrays["gray28"]), ("usps", arrays["gray16"]),
        ("cifar10", arrays["rgb32"]), ("cifar100", arrays["rgb32"]),
    ):  # fmt: skip
        images = preprocess.to_rgb(preprocess.resize_grey(pixels)) if pixels.ndim == 3 else pixels
        info: data.DatasetInfo = datasets.make(name).info
        mean, std = jnp.array(info.mean, jnp.float32), jnp.array(info.std, jnp.float32)
        theirs = channels_last(arrays[f"{name.replace('_', '')}_test"])
        normalised.add(name, augment.normalise(jnp.asarray(images), mean, std), theirs)
    yield normalised.outcome(source)
    if any(name.startswith("svhn") for name in arrays):
        yield skipped("normalisation of svhn", source, "no such data set here")


@kind(r"spmc_metrics.*")
def reported_metrics(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The papers' report over runs: series and means of the last five rounds."""
    comparison = Comparison("metrics", 1e-9)
    report = metrics.paper_report(arrays["accuracy_per_round"], arrays["attack_success_rate_per_round"])
    for name, value in report.items():
        comparison.add(name, value, arrays[f"reported_{name}"])
    yield comparison.outcome(source)
