"""Crop, flip and normalisation against NumPy, exactly; the draw's distribution and its dependence on the key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc.data import augment


def by_numpy(images, augmentation, padding):
    """Pad, crop, mirror, image by image."""
    out = []
    for image, row, column, flip in zip(np.asarray(images), *map(np.asarray, augmentation), strict=True):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        crop = padded[row : row + image.shape[0], column : column + image.shape[1]]
        out.append(crop[:, ::-1] if flip else crop)
    return np.stack(out)


def all_places(padding):
    """Every row, column and flip once."""
    grid = np.array(np.meshgrid(range(2 * padding + 1), range(2 * padding + 1), (0, 1), indexing="ij")).reshape(3, -1)
    rows, columns, flips = (jnp.asarray(axis, jnp.int32) for axis in grid)
    return augment.Augmentation(rows, columns, flips == 1)


@pytest.mark.parametrize(("shape", "padding"), [((32, 32, 3), 4), ((9, 7, 1), 2), ((6, 11, 4), 0), ((5, 5, 2), 6)])
def test_crop_and_flip_is_exact_in_every_place(shape, padding):
    places = all_places(padding)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (places.rows.size, *shape), dtype=np.uint8)
    images[0], images[-1] = 255, 255
    cropped = jax.jit(augment.crop_and_flip, static_argnums=2)(jnp.asarray(images), places, padding)
    assert cropped.dtype == jnp.uint8
    np.testing.assert_array_equal(cropped, by_numpy(images, places, padding))


def test_crop_and_flip_keeps_floats_exact():
    images = np.random.default_rng(1).standard_normal((162, 8, 8, 3)).astype(np.float32) * 1e3
    cropped = augment.crop_and_flip(jnp.asarray(images), all_places(4), 4)
    assert cropped.dtype == jnp.float32
    np.testing.assert_array_equal(cropped, by_numpy(images, all_places(4), 4))


def test_gather_takes_the_asked_images():
    images = np.random.default_rng(2).integers(0, 256, (50, 12, 12, 3), dtype=np.uint8)
    ids = jnp.array([3, 49, 0, 3, 17], jnp.int32)
    drawn = augment.draw(jax.random.split(jax.random.key(0), 5), 2, True)
    np.testing.assert_array_equal(augment.gather(jnp.asarray(images), ids, None, 2), images[np.asarray(ids)])
    batch = augment.gather(jnp.asarray(images), ids, drawn, 2)
    np.testing.assert_array_equal(batch, by_numpy(images[np.asarray(ids)], drawn, 2))


def test_draw_is_uniform():
    rows, columns, flips = augment.draw(jax.random.split(jax.random.key(0), 40_000), 4, True)
    assert rows.dtype == columns.dtype == jnp.int32
    assert flips.dtype == bool
    joint = np.zeros((9, 9, 2))
    np.add.at(joint, (np.asarray(rows), np.asarray(columns), np.asarray(flips, int)), 1)
    expected = 40_000 / joint.size
    chi_square = float(((joint - expected) ** 2 / expected).sum())
    assert chi_square < 222, "161 degrees of freedom: above 222 once in a thousand"


def test_draw_without_crop_or_flip():
    keys = jax.random.split(jax.random.key(3), 200)
    rows, columns, flips = augment.draw(keys, 0, False)
    assert not rows.any()
    assert not columns.any()
    assert not flips.any()
    assert 60 < int(augment.draw(keys, 0, True).flips.sum()) < 140
    assert not augment.draw(keys, 4, False).flips.any()


def test_draw_of_an_image_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(4), 16)
    together, apart = augment.draw(keys, 4, True), augment.draw(keys[5:6], 4, True)
    for whole, single in zip(together, apart, strict=True):
        np.testing.assert_array_equal(whole[5:6], single)


def test_maps_over_clients():
    images = jnp.asarray(np.random.default_rng(5).integers(0, 256, (40, 10, 10, 3), dtype=np.uint8))
    ids = jax.random.randint(jax.random.key(0), (3, 8), 0, 40)
    keys = jax.random.split(jax.random.key(1), (3, 8))

    def batch(ids, keys):
        return augment.gather(images, ids, augment.draw(keys, 3, True), 3)

    stacked = jax.vmap(batch)(ids, keys)
    for client in range(3):
        np.testing.assert_array_equal(stacked[client], batch(ids[client], keys[client]))


def test_normalise():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)
    expected = (pixels.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    for values in (jnp.asarray(pixels), jnp.asarray(pixels, jnp.float32)):
        out = jax.jit(augment.normalise)(values, mean, std)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-6)
    assert augment.normalise(jnp.zeros((2, 4, 4, 1), jnp.uint8), [0.5], [0.5]).shape == (2, 4, 4, 1)
