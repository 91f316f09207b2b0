"""The networks of Neurotoxin's and FLIP's codes beside torch; batch statistics of incomplete batches."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_spmc import local_rules, models
from fedjax_spmc.aggregators.deepsight import output_layer
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.local_rules import names as rule_names
from fedjax_spmc.losses import cross_entropy
from fedjax_spmc.models import resnet
from fedjax_spmc.models.cnn_dropout import CNNDropout
from fedjax_spmc.models.layers import as_model
from fedjax_spmc.models.resnet9 import largest
from fedjax_spmc.types import Batch, Context, Model

KEY = jax.random.key(0)
# Sides that leave every pool an odd map, so that it drops a row, and the last one more than one place.
TORCH_SIDES = {"emnist_cnn": 11, "mnist_net": 18, "resnet9": 18}


def shapes_of(model: Model) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves(jax.eval_shape(model.init, KEY).params)
    return {".".join(path): leaf.shape for path, leaf in zip(model.param_order, leaves, strict=True)}


def size_of(model: Model) -> int:
    return sum(int(np.prod(shape)) for shape in shapes_of(model).values())


def torch_network(name, side):
    """The same network as torch writes it."""
    from fedjax_spmc.parity.torch_reference import flip, model

    if name == "resnet9":
        return model.ResNet9(10)
    return {"emnist_cnn": model.EmnistCNN, "mnist_net": flip.MnistNet}[name](side).eval()


@pytest.mark.parametrize("name", TORCH_SIDES)
def test_beside_torch(name):
    """Logits and one gradient of every tensor, from torch's own weights."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    side = TORCH_SIDES[name]
    network = torch_network(name, side)
    model = models.make(name, num_classes=10, image_shape=(side, side, 1))
    if name != "resnet9":
        assert [one for one, _ in network.named_parameters()] == [".".join(path) for path in model.param_order]
    params = models.from_torch(model, np.concatenate([one.detach().numpy().ravel() for one in network.parameters()]))
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((3, side, side, 1)).astype(np.float32), rng.integers(0, 10, 3)
    images[0, :, :4] = -0.4  # background: equal values in many windows, of which the first has the gradient

    @jax.jit
    def ours(params, images):
        def loss(params):
            logits, _ = model.apply(params, {}, images, False)
            return cross_entropy(logits, jnp.asarray(labels), jnp.ones(3, bool)), logits

        return jax.grad(loss, has_aux=True)(params)

    grads, logits = ours(params, jnp.asarray(images))
    expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    torch.nn.functional.cross_entropy(expected, torch.from_numpy(labels)).backward()
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-6)
    for path, leaf, tensor in zip(model.param_order, jax.tree.leaves(grads), network.parameters(), strict=True):
        np.testing.assert_allclose(leaf, tensor.grad.numpy(), rtol=0, atol=2e-6, err_msg=".".join(path))


def test_sizes_names_and_what_does_not_fit():
    assert size_of(models.make("emnist_cnn")) == 1_199_882
    assert size_of(models.make("mnist_net")) == 431_080
    assert size_of(models.make("resnet9")) == size_of(models.make("resnet9", fit="pad")) == 6_594_112
    assert list(shapes_of(models.make("resnet9"))) == [
        *(f"n.{name}.conv.weight" for name in ("prep", "layer1", "res1.res1", "res1.res2", "layer2", "layer3")),
        *("n.res3.res1.conv.weight", "n.res3.res2.conv.weight", "n.linear.weight"),
    ]
    thin = models.make("resnet18_thin")
    assert (size_of(thin), len(thin.param_order)) == (2_797_610, 62)
    for name, side, words in (
        ("emnist_cnn", 5, "emnist_cnn needs images of at least 6x6, not 5x5"),
        ("mnist_net", 15, "mnist_net needs images of at least 16x16, not 15x15"),
        ("resnet9", 7, "resnet9 needs images of at least 8x8, not 7x7"),
    ):
        with pytest.raises(ConfigError, match=words):
            models.make(name, image_shape=(side, side, 1))
    with pytest.raises(ConfigError, match=r"at most 32x32 with model\.options\.fit = 'pad', not 33x32"):
        models.make("resnet9", fit="pad", image_shape=(33, 32, 1))


@pytest.mark.slow
def test_both_fits_of_resnet9_are_one_network_at_32x32():
    """Padding adds nothing there; on smaller images it is the same as zeros around them."""
    pool = models.make("resnet9", num_classes=3, image_shape=(32, 32, 1))
    smaller = models.make("resnet9", num_classes=3, fit="pad", image_shape=(28, 27, 1))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(pool.init, KEY).params
    params = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), shapes)
    images = rng.standard_normal((1, 28, 27, 1)).astype(np.float32)
    around = np.pad(images, ((0, 0), (2, 2), (2, 3), (0, 0)))

    @jax.jit
    def logits(params, images, around):
        return smaller.apply(params, {}, images, False)[0], pool.apply(params, {}, around, False)[0]

    padded, pooled = logits(params, images, around)
    np.testing.assert_allclose(padded, pooled, rtol=1e-5)


def test_the_largest_of_a_map_and_its_first_place():
    values = jnp.asarray([[[[1.0, 2.0]], [[3.0, 2.0]], [[3.0, 0.0]]]])  # [1, 3, 1, 2]
    made, pull = jax.vjp(largest, values)
    np.testing.assert_array_equal(made, [[3.0, 2.0]])
    np.testing.assert_array_equal(pull(jnp.asarray([[5.0, 7.0]]))[0][0, :, 0], [[0.0, 7.0], [5.0, 0.0], [0.0, 0.0]])


def test_whole_channels_are_dropped():
    network = CNNDropout(0.25, 0.0, 10, whole_channels=True, last="fc2")
    images = jax.random.normal(KEY, (16, 8, 8, 1))
    variables = jax.jit(lambda key: network.init(key, images, False))(KEY)

    @functools.partial(jax.jit, static_argnums=1)
    def dropped(variables, train):
        made = network.apply(
            variables, images, train, rngs={"dropout": KEY},
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
        )  # fmt: skip
        return made[1]["intermediates"]["Dropout_0"]["__call__"][0]

    plain, kept = np.asarray(dropped(variables, False)), np.asarray(dropped(variables, True))
    alive = (plain != 0).any(axis=(1, 2))  # [64, 16]: a channel that is zero by itself says nothing
    zero = (kept == 0).all(axis=(1, 2))
    np.testing.assert_allclose(kept, np.where(zero[:, None, None], 0.0, plain / 0.75), rtol=1e-6)
    share = zero[alive].mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / alive.sum())
    assert 0 < zero[:, 0].mean() < 1


def test_without_a_bias_there_are_no_features_and_deepsight_says_so():
    model = models.make("resnet9", image_shape=(8, 8, 1))
    assert model.features is None
    assert models.make("mnist_net").features is not None
    stacked = jax.eval_shape(lambda key: jax.vmap(model.init)(jax.random.split(key, 2)).params, KEY)
    with pytest.raises(ConfigError, match="needs a network that ends in a linear layer with a bias"):
        output_layer(stacked)


# Batch statistics where rows are missing.

VALID = np.array([True, False, True, True, False])
TINY = as_model(resnet.ResNet((1,), 2, 3, "batch"), 3, (4, 4, 1))
START = jax.jit(TINY.init)


def padded_and_whole() -> tuple[Batch, Batch]:
    """A batch in which two rows are not valid, and the batch of the others."""
    images = jnp.asarray(np.random.default_rng(0).normal(1.0, 2.0, (5, 4, 4, 1)), jnp.float32)
    labels = jnp.where(VALID, jnp.array([0, 1, 2, 0, 1]), -1)
    whole = Batch(images[VALID], labels[VALID], jnp.arange(3), jnp.ones(3, bool))
    return Batch(images, labels, jnp.arange(5), jnp.asarray(VALID)), whole


@pytest.mark.parametrize("name", rule_names())
def test_rules_leave_missing_rows_out_of_batch_statistics(name):
    """Gradients and statistics are those of the batch without the missing rows."""
    rule, variables = local_rules.make(name), START(KEY)

    @jax.jit
    def step(batch):
        made = rule.init(variables, 1)
        state = jax.tree.map(lambda leaf: 0.5 * leaf[0], made.clients)
        ctx = Context(TINY, variables, variables, {}, 1, jnp.int32(3), shared=made.server)
        grads, stats, metrics = rule.gradients(ctx, variables.params, variables.stats, batch, state, KEY)
        return grads, stats, metrics["loss"]

    padded, whole = (step(batch) for batch in padded_and_whole())
    chex.assert_trees_all_close(padded, whole, atol=2e-6)


def test_a_batch_without_a_valid_row_is_finite_and_remembered_nowhere():
    variables, images = START(KEY), 1e3 * padded_and_whole()[0].inputs
    run = jax.jit(lambda images, valid: TINY.apply(variables.params, variables.stats, images, True, KEY, valid))
    logits, stats = run(images, jnp.zeros(5, bool))
    assert np.isfinite(logits).all()
    chex.assert_trees_all_equal(stats, variables.stats)
