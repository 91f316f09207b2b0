"""The networks against a plain statement and recorded torch results; their parameters in torch's layout."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_spmc import models
from fedjax_spmc.models import layers
from fedjax_spmc.models.forms import product_block
from fedjax_spmc.models.picking import max_of_first
from fedjax_spmc.models.pooled import convolution_pool, images_gradient, largest_and_index
from fedjax_spmc.models.product import product
from fedjax_spmc.types import Variables

LINEAR = ("fc1", "fc2", "l1", "l2", "cls")


@pytest.fixture(scope="module")
def cnn():
    model = models.make("simple_cnn")
    # Compiled as a whole: op by op every small operation is compiled on its own.
    return model._replace(init=jax.jit(model.init), apply=jax.jit(model.apply, static_argnums=3))


@pytest.fixture(scope="module")
def params(cnn):
    return cnn.init(jax.random.key(0)).params


@pytest.fixture(scope="module")
def golden(shared):
    with np.load(shared / "golden" / "spmc_local_runs.npz") as file:
        recorded = {name: file[name] for name in file.files}
    recorded["images"] = recorded["images"].astype(np.float32).transpose(0, 1, 3, 4, 2)
    return recorded


def pooled(images, kernel, bias):
    """Convolution, ReLU, max-pool as XLA states them: [B, H, W, C]."""
    out = jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "OIHW", "NHWC"))
    out = jax.nn.relu(out + bias[None, None, None])
    return jax.lax.reduce_window(out, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@jax.jit
def plain_cnn(params, images):
    x = pooled(images, params["conv1"]["weight"], params["conv1"]["bias"])
    x = pooled(x, params["conv2"]["weight"], params["conv2"]["bias"])
    x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    for name in LINEAR:
        x = x @ params[name]["weight"].T + params[name]["bias"][None]
        x = jax.nn.relu(x) if name in ("fc1", "fc2", "l1") else x
    return x


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


def batch(seed, size, shape=(32, 32, 3)):
    rng = np.random.default_rng(seed)
    images = jnp.asarray(rng.standard_normal((size, *shape)), jnp.float32)
    return images, jnp.asarray(rng.integers(0, 10, size), jnp.int32)


def largest_difference(left, right):
    left, right = jax.device_get((left, right))
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), left, right)))


def test_size_and_order(cnn, params):
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 92_626
    expected = [(name, kind) for name in ("conv1", "conv2", *LINEAR) for kind in ("weight", "bias")]
    assert list(cnn.param_order) == expected
    assert cnn.init(jax.random.key(0)).stats == {}
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    assert shapes[::2] == [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (84, 84), (256, 84), (10, 256)]
    assert shapes[1::2] == [(6,), (16,), (120,), (84,), (84,), (256,), (10,)]


def test_trees_share_one_structure(cnn, params):
    images, labels = batch(0, 3)
    gradient = jax.jit(jax.grad(lambda p: cross_entropy(cnn.apply(p, {}, images, True, None)[0], labels)))(params)
    read = models.from_torch(cnn, models.to_torch(params))
    jitted = jax.jit(cnn.init)(jax.random.key(0)).params
    for tree in (gradient, read, jitted, jax.tree.map(jnp.zeros_like, params)):
        assert jax.tree.structure(tree) == jax.tree.structure(params)
        assert [leaf.shape for leaf in jax.tree.leaves(tree)] == [leaf.shape for leaf in jax.tree.leaves(params)]


def test_recorded_forward_and_gradient(cnn, golden):
    params = models.from_torch(cnn, golden["initial"].astype(np.float32))
    images, labels = jnp.asarray(golden["images"][0]), jnp.asarray(golden["labels"][0], jnp.int32)

    def loss(params):
        logits, _ = cnn.apply(params, {}, images, True, None)
        return cross_entropy(logits, labels), logits

    (value, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, golden["initial_logits_batch0"], rtol=0, atol=2e-7)
    np.testing.assert_allclose(value, golden["initial_loss_batch0"], rtol=0, atol=5e-7)
    flat = models.to_torch(gradient)
    np.testing.assert_allclose(flat, golden["initial_gradient_batch0"], rtol=0, atol=1e-7)


def test_recorded_local_run(cnn, golden):
    optimiser = optax.chain(optax.add_decayed_weights(1e-5), optax.sgd(0.01, momentum=0.9))

    @jax.jit
    def step(params, state, images, labels):
        gradient = jax.grad(lambda p: cross_entropy(cnn.apply(p, {}, images, True, None)[0], labels))(params)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params = models.from_torch(cnn, golden["initial"].astype(np.float32))
    state = optimiser.init(params)
    for images, labels in zip(golden["images"], golden["labels"], strict=True):
        params, state = step(params, state, jnp.asarray(images), jnp.asarray(labels, jnp.int32))
    np.testing.assert_allclose(models.to_torch(params), golden["fedavg_final"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_agrees_with_the_plain_network(cnn, params, size):
    images, labels = batch(size, size)

    def value_and_gradients(network):
        return jax.jit(jax.value_and_grad(lambda p, x: cross_entropy(network(p, x), labels), (0, 1)))(params, images)

    ours = value_and_gradients(lambda p, x: cnn.apply(p, {}, x, True, None)[0])
    plain = value_and_gradients(plain_cnn)
    logits = jax.jit(lambda p, x: cnn.apply(p, {}, x, False, None)[0])(params, images)
    assert logits.shape == (size, 10)
    assert largest_difference(logits, plain_cnn(params, images)) < 5e-7
    assert largest_difference(ours, plain) < 5e-7


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("shape", "kernel", "features"), [((13, 10, 2), 5, 6), ((8, 11, 4), 1, 6), ((9, 8, 32), 3, 32)]
)
def test_convolution_of_any_size(shape, kernel, features, backend, monkeypatch):
    """Row by row as on a CPU, of wide layers the plain outputs, and in one product as elsewhere."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((40, *shape)), jnp.float32)
    weight = jnp.asarray(rng.standard_normal((features, shape[2], kernel, kernel)), jnp.float32)
    bias = jnp.asarray(rng.standard_normal(features), jnp.float32)

    def fast(images, weight):
        return convolution_pool(layers.batch_last(images), weight, bias).transpose(3, 1, 2, 0)

    def plain(images, weight):
        return pooled(images, weight, bias)

    def with_gradients(function):
        value, pull = jax.vjp(function, images, weight)
        return value, pull(cotangent)

    shape = jax.eval_shape(plain, images, weight).shape
    cotangent = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    (value, gradients), (expected, others) = (jax.jit(with_gradients, static_argnums=0)(f) for f in (fast, plain))
    assert value.shape == expected.shape
    scale = max(1.0, features / 6)
    assert largest_difference(value, expected) < 1e-5 * scale
    assert largest_difference(gradients, others) < 5e-5 * scale


def test_the_parts_of_a_wide_pooled_convolution_agree():
    """What a rule of its own gets of it: the maxima with their places, the first on a tie, and the gradient."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((32, 7, 8, 3)), jnp.float32)
    weight = jnp.asarray(rng.standard_normal((32, 32, 3, 3)), jnp.float32)
    no_bias = jnp.full(32, 100.0)  # nothing is cut off at zero
    value, pull = jax.vjp(lambda images: convolution_pool(images, weight, no_bias), images)
    largest, index = largest_and_index(images, weight)
    np.testing.assert_allclose(largest + 100, value, rtol=1e-6)
    ours = images_gradient(images, weight, index, jnp.cos(value))
    np.testing.assert_allclose(ours, pull(jnp.cos(value))[0], rtol=1e-5, atol=1e-5)
    assert set(np.unique(index)) == {0, 1, 2, 3}
    assert not largest_and_index(images, 0 * weight)[1].any()


@pytest.mark.parametrize("shape", [(300, 1024), (257, 1031)])
def test_a_large_weight_meets_few_columns_block_by_block(shape):
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    inputs, cotangent = (jnp.asarray(rng.standard_normal((side, 3)), jnp.float32) for side in shape[::-1])
    assert (product_block(*shape, 3) < shape[1]) == (shape[1] % 2 == 0)  # 1031 is a prime
    ours = jax.vjp(product, weight, inputs)[1](cotangent)
    chex.assert_trees_all_close(ours, (cotangent @ inputs.T, weight.T @ cotangent), rtol=1e-4, atol=1e-4)


def test_ties_go_to_the_first():
    values = jnp.array([[1.0, 2.0, 0.0, 3.0], [1.0, 5.0, 0.0, 3.0], [1.0, 5.0, 4.0, 3.0], [0.0, 5.0, 4.0, 7.0]])
    largest, pull = jax.vjp(max_of_first, values)
    np.testing.assert_array_equal(largest, [1.0, 5.0, 4.0, 7.0])
    expected = np.zeros((4, 4), np.float32)
    expected[[0, 1, 2, 3], [0, 1, 2, 3]] = [1.0, 2.0, 3.0, 4.0]
    np.testing.assert_array_equal(pull(jnp.array([1.0, 2.0, 3.0, 4.0]))[0], expected)


def test_tied_windows_send_their_gradient_to_the_upper_left():
    # A 1x1 kernel of one on a constant image: all four entries of every window tie, in exact arithmetic too.
    images = jnp.ones((1, 4, 4, 2))
    gradient = jax.jit(jax.grad(lambda x: convolution_pool(x, jnp.ones((1, 1, 1, 1)), jnp.zeros(1)).sum()))(images)
    expected = np.zeros((1, 4, 4, 2), np.float32)
    expected[0, ::2, ::2] = 1
    np.testing.assert_array_equal(gradient, expected)


def test_two_pullbacks_at_once_equal_two_calls(cnn, params):
    images, _ = batch(3, 8)
    logits, pull = jax.vjp(lambda p: cnn.apply(p, {}, images, True, None)[0], params)
    cotangents = jnp.stack([logits, jnp.ones_like(logits)]) / 8
    both, single = jax.jit(jax.vmap(pull))(cotangents), jax.jit(pull)
    for i in (0, 1):
        assert largest_difference(jax.tree.map(lambda leaf, i=i: leaf[i], both), single(cotangents[i])) < 1e-6


def test_gradients_per_sample_add_up(cnn, params):
    images, labels = batch(4, 6)

    def loss(params, image, label):
        return cross_entropy(cnn.apply(params, {}, image[None], True, None)[0], label[None])

    each = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, images, labels)
    whole = jax.jit(jax.grad(lambda p: cross_entropy(plain_cnn(p, images), labels)))(params)
    assert largest_difference(jax.tree.map(lambda leaf: leaf.mean(0), each), whole) < 2e-7


def test_clients_do_not_touch_each_other(cnn):
    stacked = jax.vmap(lambda key: cnn.init(key).params)(jax.random.split(jax.random.key(0), 3))
    images, labels = batch(5, 3 * 8)
    images, labels = images.reshape(3, 8, 32, 32, 3), labels.reshape(3, 8)

    def gradient(params, images, labels):
        return jax.grad(lambda p: cross_entropy(cnn.apply(p, {}, images, True, None)[0], labels))(params)

    mapped, alone = jax.jit(jax.vmap(gradient)), jax.jit(gradient)
    together = mapped(stacked, images, labels)
    for client in range(3):
        own = jax.tree.map(lambda leaf, client=client: leaf[client], (stacked, images, labels))
        assert largest_difference(jax.tree.map(lambda leaf, c=client: leaf[c], together), alone(*own)) < 5e-7
    others = mapped(stacked, images.at[1:].multiply(-3.0), labels.at[1:].set(0))
    for before, after in zip(jax.tree.leaves(together), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(before[0], after[0])


def test_float64(cnn, params):
    images, labels = batch(6, 4)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        image = jnp.asarray(np.asarray(images), jnp.float64)
        gradient = jax.jit(jax.grad(lambda p: cross_entropy(cnn.apply(p, {}, image, True, None)[0], labels)))(wide)
        expected = jax.jit(jax.grad(lambda p: cross_entropy(plain_cnn(p, image), labels)))(wide)
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(gradient))
        assert largest_difference(gradient, expected) < 1e-13


def test_initialisation_is_torchs(cnn):
    keys = jax.random.split(jax.random.key(1), 20)
    stacked = jax.device_get(jax.vmap(lambda key: cnn.init(key).params)(keys))
    for name in ("conv1", "conv2", *LINEAR):
        bound = 1 / np.sqrt(np.prod(stacked[name]["weight"].shape[2:]))
        for leaf in stacked[name].values():
            values = np.asarray(leaf).ravel()
            assert np.abs(values).max() <= bound
            assert np.abs(values).max() > 0.9 * bound
            assert abs(values.mean()) < 5 * bound / np.sqrt(3 * values.size)
            assert abs(values.std() * np.sqrt(3) / bound - 1) < 4 / np.sqrt(values.size)
    assert largest_difference(cnn.init(keys[0]).params, cnn.init(keys[1]).params) > 0


def test_flat_vector_round_trip(cnn, params):
    flat = models.to_torch(params)
    assert flat.shape == (92_626,)
    assert largest_difference(models.from_torch(cnn, np.asarray(flat)), params) == 0
    np.testing.assert_array_equal(flat[:450].reshape(6, 3, 5, 5), params["conv1"]["weight"])
    np.testing.assert_array_equal(flat[-10:], params["cls"]["bias"])
    for wrong in (np.zeros(92_625), np.zeros((1, 92_626))):
        with pytest.raises(ValueError, match="92626 parameters"):
            models.from_torch(cnn, wrong)


def test_named_arrays_round_trip(cnn, params):
    named = models.to_torch_dict(Variables(params, {}))
    assert list(named) == [".".join(path) for path in cnn.param_order]
    assert named["conv2.weight"].shape == (16, 6, 5, 5)
    read = models.from_torch_dict(cnn, dict(reversed(named.items())))
    assert jax.tree.structure(read) == jax.tree.structure(Variables(params, {}))
    assert largest_difference(read.params, params) == 0
    with pytest.raises(ValueError, match=r"'fc1\.bias' is missing"):
        models.from_torch_dict(cnn, {name: value for name, value in named.items() if name != "fc1.bias"})
    with pytest.raises(ValueError, match=r"'bn1\.weight' is unknown"):
        models.from_torch_dict(cnn, {**named, "bn1.weight": np.zeros(6)})
    with pytest.raises(ValueError, match=r"'cls\.weight' has the shape \(100, 256\)"):
        models.from_torch_dict(cnn, {**named, "cls.weight": np.zeros((100, 256), np.float32)})


def test_names_are_those_of_torch(cnn, params):
    torch = pytest.importorskip("torch")
    from torch.nn import functional

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = torch.nn.Conv2d(3, 6, 5), torch.nn.Conv2d(6, 16, 5)
            self.fc1, self.fc2 = torch.nn.Linear(400, 120), torch.nn.Linear(120, 84)
            self.l1, self.l2, self.cls = torch.nn.Linear(84, 84), torch.nn.Linear(84, 256), torch.nn.Linear(256, 10)

        def forward(self, x):
            x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
            x = functional.max_pool2d(functional.relu(self.conv2(x)), 2).flatten(1)
            x = functional.relu(self.l1(functional.relu(self.fc2(functional.relu(self.fc1(x))))))
            return self.cls(self.l2(x))

    network = Network()
    named = models.to_torch_dict(Variables(params, {}))
    network.load_state_dict({name: torch.tensor(value) for name, value in named.items()})
    images, _ = batch(7, 5)
    with torch.no_grad():
        expected = network(torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(cnn.apply(params, {}, images, False, None)[0], expected, rtol=0, atol=5e-7)


def test_other_classes_and_images():
    model = models.make("simple_cnn", num_classes=100, image_shape=(28, 28, 1))
    params = jax.jit(model.init)(jax.random.key(0)).params
    assert params["cls"]["weight"].shape == (100, 256)
    assert params["fc1"]["weight"].shape == (120, 16 * 4 * 4)
    assert (model.num_classes, model.input.shape) == (100, (28, 28, 1))
    images, _ = batch(8, 3, (28, 28, 1))
    logits, stats = jax.jit(model.apply, static_argnums=3)(params, {}, images, True, None)
    assert logits.shape == (3, 100)
    assert stats == {}
    assert largest_difference(logits, plain_cnn(params, images)) < 5e-7
    with pytest.raises(ValueError, match="at least 16x16"):
        models.make("simple_cnn", image_shape=(12, 32, 3))


def test_mlp():
    model = models.make("mlp", hidden=(16, 8), image_shape=(6, 5, 2))
    params = model.init(jax.random.key(0)).params
    assert [".".join(path) for path in model.param_order][::2] == ["fc1.weight", "fc2.weight", "cls.weight"]
    images, _ = batch(9, 4, (6, 5, 2))
    x = images.transpose(0, 3, 1, 2).reshape(4, -1)
    for name in ("fc1", "fc2", "cls"):
        x = x @ params[name]["weight"].T + params[name]["bias"][None]
        x = jax.nn.relu(x) if name != "cls" else x
    assert largest_difference(model.apply(params, {}, images, True, None)[0], x) < 1e-6
    assert models.to_torch(params).shape == (60 * 16 + 16 + 16 * 8 + 8 + 80 + 10,)
    assert models.make("mlp", hidden=()).param_order == (("cls", "weight"), ("cls", "bias"))
    for wrong in ((0,), (2.5,), ("a",), (True,)):
        with pytest.raises(ValueError, match="whole numbers above 0"):
            models.make("mlp", hidden=wrong)


def test_registry_lists_the_models():
    assert {"mlp", "simple_cnn"} <= set(models.names())
    assert models.describe("mlp")["hidden"]["default"] == (128, 64)
    assert models.describe("simple_cnn") == {}


def test_batch_statistics_travel_by_name():
    from flax import linen as nn

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            x = layers.Linear(4, name="fc")(layers.batch_last(images).reshape(-1, images.shape[0]))
            mean = self.variable("batch_stats", "running_mean", jnp.zeros, (4,))
            count = self.variable("batch_stats", "count", jnp.zeros, ())
            if train:
                mean.value = x.mean(1)
                count.value = count.value + 1
            return layers.Linear(3, name="cls")(x - mean.value[:, None]).T

    model = layers.as_model(Normed(), 3, (4, 4, 1))
    variables = model.init(jax.random.key(0))
    images, _ = batch(10, 6, (4, 4, 1))
    _, stats = model.apply(variables.params, variables.stats, images, True, None)
    assert jax.tree.structure(stats) == jax.tree.structure(variables.stats)
    assert float(stats["count"]) == 1
    _, kept = model.apply(variables.params, stats, images, False, None)
    assert largest_difference(kept, stats) == 0
    named = models.to_torch_dict(Variables(variables.params, stats))
    assert list(named) == ["fc.weight", "fc.bias", "cls.weight", "cls.bias", "running_mean", "count"]
    read = models.from_torch_dict(model, named)
    assert largest_difference(read, Variables(variables.params, stats)) == 0
