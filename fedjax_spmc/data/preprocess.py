"""Grey images of any size -> 32x32 RGB, as the reference's transforms do it: Pillow's bilinear filter on uint8."""

import numpy as np

SIZE = 32


def resize_grey(images: np.ndarray) -> np.ndarray:
    """Resizes grey images to 32x32.

    Args:
        images: [n, h, w] uint8.

    Returns:
        [n, 32, 32] uint8, rounded by Pillow (a float filter gives other values).
    """
    from PIL import Image  # a cached or built-in data set needs no Pillow

    if images.shape[1:] == (SIZE, SIZE):
        return images
    resized = np.empty((len(images), SIZE, SIZE), np.uint8)
    for row, image in zip(resized, images, strict=True):
        row[:] = np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    return resized


def to_rgb(images: np.ndarray) -> np.ndarray:
    """Replicates grey images [n, h, w] to [n, h, w, 3]; images that have channels come back as they are."""
    return np.repeat(images[..., None], 3, axis=-1) if images.ndim == 3 else images
