"""Pictures and arrays of a user's own: `data.name=folder` and `data.name=npz`, of any size, grey or in colour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fedjax_spmc import data, experiment, models, registry
from fedjax_spmc.errors import ConfigError, DataError, UserError
from tests import small

RNG = np.random.default_rng(0)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Two classes of grey pictures of 20x24, a dark and a bright one."""
    for part, count in (("train", 12), ("test", 4)):
        for name, level in (("bright", 200), ("dark", 30)):
            for i in range(count):
                save(
                    tmp_path / "mine" / part / name / f"{i:02}.png",
                    (level + RNG.integers(0, 20, (20, 24))).astype(np.uint8),
                )
    (tmp_path / "mine" / "train" / "dark" / "notes.txt").write_text("no picture")
    return tmp_path / "mine"


def test_a_folder_of_pictures(pictures):
    loaded = data.load("folder", path=str(pictures), val_fraction=0.25)
    assert (loaded.info.input_shape, loaded.info.num_classes) == ((20, 24, 1), 2)
    assert loaded.info.note == "classes 0 = bright, 1 = dark"
    assert (len(loaded.train_labels), len(loaded.val_labels), len(loaded.test_labels)) == (18, 6, 8)
    assert set(loaded.val_labels) == {0, 1}  # no class is the tail
    assert all(
        (image.mean() > 100) == (label == 0)
        for image, label in zip(loaded.train_inputs, loaded.train_labels, strict=True)
    )
    everything = np.concatenate([loaded.train_inputs, loaded.val_inputs]) / 255
    assert loaded.info.mean == (pytest.approx(everything.mean(), abs=1e-4),)
    assert loaded.info.std == (pytest.approx(everything.std(), abs=1e-4),)
    assert data.load("folder", path=str(pictures), val_fraction=0.25).fingerprint == loaded.fingerprint


def test_colours_sizes_and_bits(pictures):
    save(pictures / "train" / "dark" / "colour.png", np.zeros((20, 24, 3), np.uint8))
    deep = np.full((20, 24), 257 * 7, np.uint16)
    save(pictures / "train" / "dark" / "deep.png", deep)
    loaded = data.load("folder", path=str(pictures))
    assert loaded.info.input_shape == (20, 24, 3)
    assert sorted({int(image.max()) for image in loaded.train_inputs if image.std() == 0} | {0, 7}) == [0, 7]
    save(pictures / "train" / "dark" / "large.png", np.zeros((21, 24), np.uint8))
    with pytest.raises(DataError, match=r"is 20x24 and .*large.png is 21x24: all pictures must have one size"):
        data.load("folder", path=str(pictures))
    assert data.load("folder", path=str(pictures), size=(16, 18)).info.input_shape == (16, 18, 3)


def test_what_is_wrong_with_a_folder(pictures, tmp_path):
    def refused(*words, kind=DataError, **options):
        with pytest.raises(kind) as error:
            data.load("folder", **options)
        assert "\n" not in str(error.value)
        for word in words:
            assert word in str(error.value)

    refused("needs data.options.path")
    refused("is no folder", "PATH/train/CLASS/*.png", path=str(tmp_path / "nothing"))
    refused("has no folder train", path=str(tmp_path))
    refused("data.options.size = (3,)", kind=ConfigError, path=str(pictures), size=(3,))
    refused("data.options.crop = 12", "must be below 10", kind=ConfigError, path=str(pictures), crop=12)
    (pictures / "train" / "dark" / "broken.png").write_bytes(b"\x89PNG no")
    refused("broken.png is no picture that can be read", path=str(pictures))
    (pictures / "train" / "dark" / "broken.png").unlink()
    save(pictures / "test" / "other" / "0.png", np.zeros((20, 24), np.uint8))
    refused("classes without training pictures (other)", path=str(pictures))


def arrays(**changes):
    made = {
        "train_inputs": RNG.integers(0, 256, (40, 18, 17, 3), np.uint8),
        "train_labels": np.arange(40) % 4,
        "test_inputs": RNG.integers(0, 256, (12, 18, 17, 3), np.uint8),
        "test_labels": np.arange(12) % 4,
    }
    return {name: value for name, value in (made | changes).items() if value is not None}


def test_arrays_of_a_file_with_clients(tmp_path):
    clients = np.array(["ann", "bob", "cid", "dee"])[np.arange(40) // 10]
    np.savez(tmp_path / "a.npz", **arrays(train_clients=clients))
    loaded = data.load("npz", path=str(tmp_path / "a.npz"), val_fraction=0.0)
    assert loaded.info.input_shape == (18, 17, 3)
    assert loaded.users == ("ann", "bob", "cid", "dee")
    assert loaded.owners is not None
    assert loaded.owners.tolist() == (np.arange(40) // 10).tolist()
    fields = {"data__name": "npz", "data__options": {"path": str(tmp_path / "a.npz")}, "data__val_fraction": 0.0}
    fields |= {"partition__name": "natural", "model__name": "simple_cnn", "attack__target_label": 1}
    made = small.config(rounds=1, presets="fedavg", local__batch_size=4, **fields)
    result = experiment.run(made)
    assert result.history[-1]["participating"] == [True] * 4
    assert len(result.history[-1]["per_class"]) == 4


def test_keras_names_and_grey(tmp_path):
    given = arrays(train_inputs=RNG.integers(0, 256, (40, 9, 8)), test_inputs=RNG.integers(0, 256, (12, 9, 8)))
    names = {"train_inputs": "x_train", "train_labels": "y_train", "test_inputs": "x_test", "test_labels": "y_test"}
    np.savez(
        tmp_path / "a.npz",
        **{names[name]: value[:, None] if "labels" in name else value for name, value in given.items()},
    )
    loaded = data.load("npz", path=str(tmp_path / "a.npz"), val_fraction=0.0)
    assert loaded.info.input_shape == (9, 8, 1)
    np.testing.assert_array_equal(loaded.train_inputs[..., 0], given["train_inputs"])
    np.testing.assert_array_equal(loaded.test_labels, given["test_labels"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels": None}, "has no train_labels (it has test_inputs, test_labels, train_inputs)"),
        ({"train_inputs": np.ones((40, 18, 17, 3)) / 2}, "train_inputs in .* is float64, 0.5 to 0.5: it must be"),
        ({"train_inputs": np.full((40, 18, 17, 3), 256)}, "is int64, 256 to 256"),
        ({"train_inputs": np.ones((40, 5), np.uint8)}, "it must be [n, H, W] or [n, H, W, C]"),
        ({"test_inputs": np.ones((12, 5, 5, 3), np.uint8)}, "both must be alike"),
        ({"test_labels": np.arange(3)}, "it must be 12 whole numbers"),
        ({"train_labels": np.arange(40) - 1}, "has labels -1 to 38"),
        ({"train_clients": np.arange(3)}, "train_clients in .* it must be 40 whole numbers or names"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_arrays(changes, words, tmp_path):
    import re

    np.savez(tmp_path / "a.npz", **arrays(**changes))
    with pytest.raises(DataError) as error:
        data.load("npz", path=str(tmp_path / "a.npz"))
    assert re.search(re.escape(words).replace(r"\.\*", ".*"), str(error.value)), str(error.value)


def test_what_is_no_npz_file(tmp_path):
    (tmp_path / "a.npz").write_text("text")
    with pytest.raises(DataError, match=r"a\.npz .*: it must be an \.npz file with train_inputs"):
        data.load("npz", path=str(tmp_path / "a.npz"))
    with pytest.raises(DataError, match="is no file"):
        data.load("npz", path=str(tmp_path / "b.npz"))


@pytest.mark.parametrize("shape", [(24, 40, 1), (33, 17, 3), (5, 5, 1), (1, 1, 3)])
def test_every_model_takes_a_size_or_says_what_it_needs(shape):
    """Shapes alone, forward and backward; nothing is compiled."""
    taken, said = 0, []
    for name in registry.models.names():
        if not registry.models.needs(name, "image_shape"):
            continue

        def both(key, name=name):
            model = models.make(name, num_classes=3, image_shape=shape)
            (params, stats), images = model.init(key), jnp.zeros((2, *shape))
            return jax.grad(lambda params: model.apply(params, stats, images, True, key)[0].sum())(params)

        try:
            jax.eval_shape(both, jax.random.key(0))
            taken += 1
        except UserError as error:
            said.append(str(error))
    assert all(f"not {shape[0]}x{shape[1]}" in sentence for sentence in said)
    assert taken >= (9 if min(shape) > 1 and shape[0] > 16 else 4)
