"""Grad-CAM and the test images of a run."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import models
from fedjax_spmc.report import examples, gradcam, images, read
from fedjax_spmc.types import Variables

SHAPE = (32, 32, 3)


@pytest.mark.slow
def test_heat_is_the_gradient_weighted_sum_of_the_last_map():
    model = models.make("simple_cnn", num_classes=10, image_shape=SHAPE)
    variables = model.init(jax.random.key(0))
    batch = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    predictions, heat = gradcam.grad_cam(model, variables, batch)
    logits, _ = model.apply(variables.params, variables.stats, batch, False, jax.random.key(0))
    np.testing.assert_array_equal(predictions, jnp.argmax(logits, axis=-1))
    assert heat is not None
    assert heat.shape == (3, 5, 5)
    assert (heat >= 0).all()

    # By hand: the map feeds fc1 as 16 * 5 * 5 features, channel first; finite differences of the chosen logit.
    from flax import linen as nn

    from fedjax_spmc.models.layers import ConvolutionPool

    def chosen(shift):
        kept = []

        def catch(next_function, arguments, keywords, context):
            made = next_function(*arguments, **keywords)
            if isinstance(context.module, ConvolutionPool) and context.module.name == "conv2":
                kept.append(made)
                return made + shift
            return made

        with nn.intercept_methods(catch):
            made, _ = model.apply(variables.params, variables.stats, batch[:1], False, jax.random.key(0))
        return made[0, predictions[0]], kept[0]

    slope, activation = jax.grad(chosen, has_aux=True)(jnp.zeros((16, 5, 5, 1)))
    expected = np.maximum((slope.mean(axis=(1, 2), keepdims=True) * activation).sum(axis=0), 0)[..., 0]
    np.testing.assert_allclose(heat[0], expected, atol=1e-6)


def test_a_network_without_convolutions_has_no_heat():
    model = models.make("mlp", num_classes=4, image_shape=SHAPE)
    predictions, heat = gradcam.grad_cam(model, model.init(jax.random.key(0)), jnp.zeros((2, *SHAPE)))
    assert predictions.shape == (2,)
    assert heat is None


def test_heat_where_the_last_map_is_that_of_dropout():
    """Dropout hands on a map whose batch is its last axis, as the layers before it have it."""
    model = models.make("emnist_cnn", num_classes=4, image_shape=(8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(0))
    _, heat = gradcam.grad_cam(model, variables, jax.random.normal(jax.random.key(1), (3, 8, 8, 1)))
    assert heat is not None
    assert heat.shape == (3, 2, 2)


@pytest.mark.slow
def test_residual_nets_have_heat():
    model = models.make("resnet10", num_classes=4, image_shape=SHAPE, width=4)
    variables: Variables = jax.jit(model.init)(jax.random.key(0))
    _, heat = gradcam.grad_cam(model, variables, jax.random.normal(jax.random.key(1), (2, *SHAPE)))
    assert heat is not None
    assert heat.shape == (2, 4, 4)


def test_first_image_of_each_class_but_the_target():
    assert list(images.first_of_each_class(np.array([3, 1, 3, 2, 0, 1]), target=2)) == [4, 1, 0]


@pytest.mark.usefixtures("small_cache")
def test_clean_and_triggered_images_are_shown_or_it_says_why_not(finished_run, tmp_path):
    (run,) = read.read([finished_run]).runs
    drawer = images.RunImages()
    shown = drawer.test_images(run)
    assert isinstance(shown, images.TestImages)
    assert len(shown.clean) == len(shown.triggered) == images.NUM_IMAGES
    assert {one.kind for one in shown.clean} <= {"right", "wrong"}
    assert all(one.image != other.image for one, other in zip(shown.clean, shown.triggered, strict=True))
    assert "no convolution" in shown.note
    assert isinstance(drawer.partition(run), images.Picture)

    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    with np.load(copy / "model.npz") as stored:
        weights = dict(stored)
    weights["cls.bias"] = weights["cls.bias"] + 1e6 * (np.arange(10) == 2)  # a model that predicts the target alone
    np.savez(copy / "model.npz", **weights)  # pyright: ignore[reportArgumentType]
    (collapsed,) = read.read([copy]).runs
    found = drawer.test_images(collapsed)
    assert isinstance(found, images.TestImages)
    assert [images.class_of(one) for one in found.triggered] == ["2"] * images.NUM_IMAGES
    assert {one.kind for one in found.triggered} == {"anyway"}
    assert "no doing of the trigger" in found.triggered[0].prediction
    own = found._replace(
        triggered=[one._replace(kind="hit") for one in found.triggered]
    )  # no clean ones to compare with
    assert {one.kind for one in examples.without_credit(own).triggered} == {"anyway"}
    assert examples.without_credit(own).note.startswith(examples.AT_CHANCE)
    (copy / "model.npz").write_bytes(b"PK damaged")
    (damaged,) = read.read([copy]).runs
    assert "is damaged" in str(images.RunImages().test_images(damaged))
    (copy / "model.npz").unlink()
    assert "No model was kept" in str(images.RunImages().test_images(damaged))
    environment = json.loads((copy / "environment.json").read_text())
    environment["data"]["fingerprint"] = "another"
    (copy / "environment.json").write_text(json.dumps(environment))
    (other,) = read.read([copy]).runs
    (copy / "model.npz").write_bytes((finished_run / "model.npz").read_bytes())
    assert "a run on other data" in str(images.RunImages().test_images(other))
    (copy / "partition.npz").unlink()
    assert "no partition.npz" in str(images.RunImages().partition(other))
