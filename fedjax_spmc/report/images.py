"""What only model and data can show: test images with the model's answers, Grad-CAM, the partition."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc.errors import DataError, UserError
from fedjax_spmc.report import figures, gradcam
from fedjax_spmc.report.figures import Picture
from fedjax_spmc.report.read import Run

SHOWN = 6
"""Test images in a strip."""
SCALE = 3
"""Each pixel of a data set becomes so many pixels of a picture, for the smooth heat of Grad-CAM."""
CLASSES: Mapping[str, Sequence[str]] = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "fashion_mnist": (
        "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
    ),
}  # fmt: skip
"""Names of the classes; other data sets show the numbers."""


class Answer(NamedTuple):
    """A test image in a strip: the picture, its heat (None without Grad-CAM), words and whether it is hit."""

    image: str
    heat: str | None
    truth: str
    answer: str
    kind: str


class Strip(NamedTuple):
    """Clean and triggered test images of one run, with the answers of its global model."""

    clean: list[Answer]
    triggered: list[Answer]
    note: str


class Looker:
    """Loads the data of one run after another; only the last data set stays in memory.

    Args:
        data_dir: in place of the configs' own.
    """

    def __init__(self, data_dir: str | None = None):
        self._data_dir = data_dir
        self._key = ""
        self._held: Any = None

    def config(self, run: Run) -> Any:
        """The run's config, resolved.

        Raises:
            UserError: it cannot be resolved any more.
        """
        from fedjax_spmc import config as configs

        assert run.folder is not None
        resolved = configs.resolve(json.loads((run.folder / "config.json").read_text()))
        if self._data_dir is not None:
            resolved.data.data_dir = self._data_dir
        return resolved

    def data(self, config: Any) -> Any:
        """The config's data set.

        Raises:
            UserError: it is not there, or cannot be read.
        """
        from fedjax_spmc import setup
        from fedjax_spmc.sweep.plan import data_key

        key = data_key(config)
        if key != self._key:
            self._key, self._held = key, None
            try:
                self._held = setup.load_data(config)
            except UserError as error:
                self._held = error
        if isinstance(self._held, UserError):
            raise self._held
        return self._held

    def checked(self, run: Run) -> tuple[Any, Any]:
        """The run's config and data set.

        Raises:
            UserError: either is not to be had, or the data are not those of the run.
        """
        config = self.config(run)
        dataset = self.data(config)
        facts = run.environment.get("data")
        wanted = facts.get("fingerprint") if isinstance(facts, dict) else None
        if wanted is not None and wanted != dataset.fingerprint:
            raise DataError("the data here are not those of the run (their fingerprints differ).")
        return config, dataset

    def partition(self, run: Run) -> Picture | str:
        """Images by client and class, or why they cannot be shown."""
        from fedjax_spmc import setup

        if run.folder is None:
            return "The partition is not shown: only the row of the run is left."
        try:
            config, dataset = self.checked(run)
            parts = setup.divide(config, dataset)
        except UserError as error:
            try:
                kept = (run.folder / "partition.png").read_bytes()
            except OSError:
                return f"The partition is not shown: {error}"
            caption = "training images by client and class (the run's own picture)"
            return Picture(figures.png(kept, caption, "light"), caption)
        classes = dataset.info.num_classes
        if len(parts) > 100 or classes > 100:
            return f"The partition is not shown: {len(parts)} clients by {classes} classes are too many for a picture."
        counts = np.stack([np.bincount(dataset.train_labels[part], minlength=classes) for part in parts])
        return figures.partition(counts, run.malicious)

    def strip(self, run: Run) -> Strip | str:
        """Test images with and without trigger, the answers and Grad-CAM, or why they cannot be shown."""
        if not run.has_model():
            return "No model was kept for this run: test images and Grad-CAM cannot be shown."
        try:
            return _strip(run, *self.checked(run))
        except UserError as error:
            return f"Test images and Grad-CAM are not shown: {error}"


def _strip(run: Run, config: Any, dataset: Any) -> Strip:
    import jax
    import jax.numpy as jnp

    from fedjax_spmc import setup
    from fedjax_spmc.data import augment
    from fedjax_spmc.keys import purpose_key
    from fedjax_spmc.record.folder import RunFolder
    from fedjax_spmc.types import AttackContext

    assert run.folder is not None
    info = dataset.info
    model = setup.model_of(config, info.num_classes, info.image_shape)
    variables = RunFolder(run.folder, config, read_only=True).read_model(model)
    mean, std = jnp.array(info.mean, jnp.float32), jnp.array(info.std, jnp.float32)
    key = jax.random.key(config.seed)
    attack = setup.attack_of(config, setup.array_settings(config))
    context = AttackContext(setup.roster(config, key), info.image_shape, info.num_classes, mean, std)
    state = attack.init(context, purpose_key(key, "attack"))

    target = config.attack.target_label if attack.backdoor is not None else -1
    chosen = pick(dataset.test_labels, target)
    labels = np.asarray(dataset.test_labels)[chosen]
    images = augment.normalise(jnp.asarray(dataset.test_images[chosen]), mean, std)
    words: list[str] = list(CLASSES.get(info.name) or map(str, range(info.num_classes)))

    def row(batch: Any, wanted: np.ndarray | None) -> list[Answer]:
        with jax.default_matmul_precision(config.precision):
            answers, heat = gradcam.heat(model, variables, batch)
        pixels = np.clip(np.asarray(batch) * np.asarray(std) + np.asarray(mean), 0, 1)
        made = []
        for i, (truth, answer) in enumerate(zip(labels, answers, strict=True)):
            hit = wanted is not None and answer == wanted[i]
            kind = "hit" if hit else "right" if answer == truth else "wrong"
            said = {"hit": "the attacker's class", "right": "right", "wrong": "wrong"}[kind]
            name = f"test image of {words[truth]}{', with trigger' if wanted is not None else ''}"
            shown = figures.png(to_png(pixels[i]), f"{name}, taken for {words[answer]}", "pixels")
            warm = (
                None
                if heat is None
                else figures.png(to_png(overlay(pixels[i], heat[i])), f"Grad-CAM: {name}", "pixels")
            )
            made.append(Answer(shown, warm, words[int(truth)], f"{words[answer]} ({said})", kind))
        return made

    clean = row(images, None)
    if attack.backdoor is None:
        return Strip(clean, [], "There was no attack with a trigger.")
    stamped, wanted = attack.backdoor(state, images, jnp.asarray(labels))
    note = f"The attacker's class is {words[target]}."
    if clean and clean[0].heat is None:
        note += " The network has no convolution, so that there is no Grad-CAM."
    return Strip(clean, row(stamped, np.asarray(wanted)), note)


def pick(labels: np.ndarray, target: int) -> np.ndarray:
    """Indices of the first test image of each class but the target, at most `SHOWN`."""
    labels = np.asarray(labels)
    firsts = [int(np.argmax(labels == label)) for label in np.unique(labels) if label != target]
    return np.array(firsts[:SHOWN], int)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """[SCALE H, SCALE W, 3] in [0, 1]: a grey image [H, W, C] under its heat [h, w], smoothed, scaled to its top."""
    from matplotlib import colormaps
    from PIL import Image

    size = (image.shape[1] * SCALE, image.shape[0] * SCALE)
    top = float(heat.max())
    scaled = Image.fromarray(np.uint8(255 * heat / top) if top > 0 else np.zeros(heat.shape, np.uint8))
    warmth = np.asarray(scaled.resize(size, Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    grey = np.asarray(Image.fromarray(np.uint8(255 * image.mean(axis=2))).resize(size), np.float32)[..., None] / 255
    return 0.55 * grey + 0.45 * colormaps["inferno"](warmth[..., 0])[..., :3] * (0.3 + 0.7 * warmth) + 0.1 * warmth


def to_png(image: np.ndarray) -> bytes:
    """A PNG of an image [H, W, 1 or 3] in [0, 1]."""
    from PIL import Image

    values = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(buffer, format="PNG")
    return buffer.getvalue()
