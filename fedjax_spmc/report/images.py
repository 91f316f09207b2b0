"""The pictures of a run that need its model or its data: test images with predictions, Grad-CAM, the partition."""

import io
from typing import Any

import numpy as np

from fedjax_spmc import numerics
from fedjax_spmc.errors import UserError
from fedjax_spmc.record import files
from fedjax_spmc.report import figures, gradcam, texts
from fedjax_spmc.report.examples import (
    CLASSES,
    JUDGED,
    Prediction,
    TestImages,
    disowned,
    opened_run,
    without_credit,
)
from fedjax_spmc.report.figures import Picture
from fedjax_spmc.report.read import Run

NUM_IMAGES = 6
"""Test images that are shown of a run, at most."""
SCALE = 3
"""Pixels of a picture for each pixel of an image, so that the heat map of Grad-CAM is smooth."""


class RunImages:
    """Draws runs from their models and data, which it loads; only the last data set stays in memory.

    Args:
        data_dir: in place of the configs' own.
    """

    def __init__(self, data_dir: str | None = None):
        self._data_dir = data_dir
        self._key = ""
        self._dataset: Any = None

    def config(self, run: Run) -> Any:
        """The run's config, resolved.

        Raises:
            UserError: it cannot be resolved any more.
        """
        from fedjax_spmc.record.result import read_config

        assert run.folder is not None
        resolved = read_config(run.folder)
        if self._data_dir is not None:
            resolved.data.data_dir = self._data_dir
        return resolved

    def dataset(self, config: Any) -> Any:
        """The config's data set.

        Raises:
            UserError: it is not there, or cannot be read.
        """
        from fedjax_spmc import setup
        from fedjax_spmc.sweep.plan import data_key

        key = data_key(config)
        if key != self._key:
            self._key, self._dataset = key, None
            try:
                self._dataset = setup.load_data(config)
            except UserError as error:  # for the other runs on these data too
                self._dataset = error
        if isinstance(self._dataset, UserError):
            raise self._dataset
        return self._dataset

    def partition(self, run: Run) -> Picture | str:
        """Examples by client and class as the run recorded them, or why they cannot be shown."""
        if run.folder is None:
            return "The partition is not shown: only the row of the run is left."
        arrays = files.read_arrays(run.folder / "partition.npz")
        if not arrays:
            return "The partition is not shown: the run has no partition.npz that can be read."
        if "counts" not in arrays:
            return "The partition is not shown: a sequence with a label at every place has no class."
        clients, classes = arrays["counts"].shape
        if clients > 100 or classes > 100:
            return f"The partition is not shown: {clients} clients by {classes} classes are too many for a picture."
        return figures.partition(arrays["counts"], run.malicious)

    def test_images(self, run: Run) -> TestImages | str:
        """Test images or texts with and without trigger, predictions and Grad-CAM, or why they cannot be shown."""
        if not run.has_model():
            return "No model was kept for this run: test images and Grad-CAM cannot be shown."
        try:
            config = self.config(run)
            dataset = self.dataset(config)
            if dataset.info.tokenizer is None and dataset.info.vocabulary:
                return "There are no pictures for this task."
            shown = (_test_images if dataset.info.tokenizer is None else _test_texts)(run, config, dataset)
            return without_credit(shown) if any(one.letter == "g" for one in run.remarks) else shown
        except UserError as error:
            return f"Test images and Grad-CAM are not shown: {error}"


def _test_texts(run: Run, config: Any, dataset: Any) -> TestImages:
    import jax.numpy as jnp

    from fedjax_spmc.types import Batch

    opened = opened_run(run, config, dataset)
    attack, info = opened.attack, dataset.info

    def trigger(inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = Batch(jnp.asarray(inputs), jnp.asarray(labels), jnp.asarray(rows, jnp.int32), jnp.ones(len(rows), bool))
        shown = attack.backdoor(opened.ctx, opened.own, batch)
        return np.asarray(shown.inputs), np.asarray(shown.labels)

    own_tests = None
    if attack.test is not None:
        examples = attack.test(opened.ctx.held)
        own_tests = np.asarray(examples.inputs), np.asarray(examples.labels)
    return texts.test_texts(
        info.tokenizer,
        list(CLASSES.get(info.name) or map(str, range(info.num_classes))),
        (dataset.test_inputs, dataset.test_labels),
        own_tests,
        None if attack.backdoor is None else trigger,
        texts.predicting(opened.model, opened.variables, config.precision),
    )


def _test_images(run: Run, config: Any, dataset: Any) -> TestImages:
    import jax.numpy as jnp

    from fedjax_spmc.types import Batch

    info, opened = dataset.info, opened_run(run, config, dataset)
    task, model, attack, variables = opened.task, opened.model, opened.attack, opened.variables
    mean, std = task.mean, task.std

    target = config.attack.target_label if attack.backdoor is not None else None
    chosen = first_of_each_class(dataset.test_labels, target)
    labels = np.asarray(dataset.test_labels)[chosen]
    names: list[str] = list(CLASSES.get(info.name) or map(str, range(info.num_classes)))

    def row(batch: Any, labels: np.ndarray, what: str, wanted: np.ndarray | None = None) -> list[Prediction]:
        with numerics.pinned(config.precision):
            predictions, heat = gradcam.grad_cam(model, variables, batch)
        pixels = np.clip(np.asarray(batch) * np.asarray(std) + np.asarray(mean), 0, 1)
        made = []
        for i, (label, predicted) in enumerate(zip(labels, predictions, strict=True)):
            hit = wanted is not None and predicted == wanted[i]
            kind = "hit" if hit else "right" if predicted == label else "wrong"
            name = what.format(names[label])
            shown = figures.png(to_png(pixels[i]), f"{name}, taken for {names[predicted]}", "pixels")
            warm = (
                None
                if heat is None
                else figures.png(to_png(overlay(pixels[i], heat[i])), f"Grad-CAM: {name}", "pixels")
            )
            made.append(Prediction(shown, warm, names[int(label)], f"{names[predicted]} ({JUDGED[kind]})", kind))
        return made

    clean = row(task.prepare(jnp.asarray(dataset.test_inputs[chosen]), None), labels, "test image of {}")
    if attack.backdoor is None:
        return TestImages(clean, [], "", "There was no attack with a trigger.")
    what, caption, rows = "test image of {}, with trigger", "with the trigger", np.arange(len(labels))
    inputs = dataset.test_inputs[chosen]
    if attack.test is not None:
        what, caption = "test image of the attack's own, of {}", "test images of the attack's own, without a trigger"
        examples = attack.test(opened.ctx.held)
        rows = np.unique(np.linspace(0, len(examples.labels) - 1, NUM_IMAGES).astype(int))
        inputs, labels = np.asarray(examples.inputs)[rows], np.asarray(examples.labels)[rows]
    batch = Batch(
        inputs=task.prepare(jnp.asarray(inputs), None),
        labels=jnp.asarray(labels, jnp.int32),
        sample_ids=jnp.asarray(rows, jnp.int32),
        valid=jnp.ones(len(rows), bool),
    )
    shown = attack.backdoor(opened.ctx, opened.own, batch)
    if attack.test is None and np.array_equal(shown.inputs, batch.inputs):
        what, caption = "test image of {}", "the same: the attack has no trigger"
    wanted = np.asarray(shown.labels)
    classes = " or ".join(names[one] for one in np.unique(wanted[wanted >= 0]))
    note = f"The attacker's class is {classes}."
    if clean and clean[0].heat is None:
        note += " The network has no convolution, so that there is no Grad-CAM."
    triggered = row(shown.inputs, labels, what, wanted)
    if attack.test is None:  # the same images, which the model may take for the attacker's class without a trigger too
        pairs = zip(triggered, clean, strict=True)
        triggered = [disowned(one) if class_of(one) == class_of(before) else one for one, before in pairs]
    return TestImages(clean, triggered, caption, note)


def class_of(one: Prediction) -> str:
    """The class that an image is taken for."""
    return one.prediction.rpartition(" (")[0]


def first_of_each_class(labels: np.ndarray, target: int | None) -> np.ndarray:
    """Indices of the first test image of each class but the target (None = of all), at most `NUM_IMAGES`."""
    labels = np.asarray(labels)
    firsts = [int(np.argmax(labels == label)) for label in np.unique(labels) if label != target]
    return np.array(firsts[:NUM_IMAGES], int)


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
