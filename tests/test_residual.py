"""The residual networks: their convolutions against the library's, whole nets against torch, batch statistics."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import models, trees
from fedjax_spmc.experiment import build
from fedjax_spmc.models import convolution, resnet, winograd
from fedjax_spmc.models.convolution import convolution_1x1, convolution_3x3
from fedjax_spmc.types import Variables


def plain(images, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), ((padding, padding),) * 2, dimension_numbers=("NHWC", "OIHW", "NHWC")
    )


def with_gradients(function):
    """(images, kernel, cotangent) -> outputs and both gradients."""

    @jax.jit
    def run(images, kernel, cotangent):
        outputs, pull_back = jax.vjp(function, images, kernel)
        return outputs, *pull_back(cotangent)

    return run


def assert_as_the_library(shape, outputs, stride):
    """Outputs and both gradients of `convolution_3x3`."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(outputs, shape[3], 3, 3)), jnp.float32)
    sides = [-(-side // stride) for side in shape[1:3]]
    cotangent = jnp.asarray(rng.normal(size=(shape[0], *sides, outputs)), jnp.float32)
    ours = with_gradients(lambda x, w: convolution_3x3(x, w, stride))(images, kernel, cotangent)
    theirs = with_gradients(lambda x, w: plain(x, w, stride, 1))(images, kernel, cotangent)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * float(jnp.abs(other).max()) + 1e-5)


# The first shape is cut into blocks of images in the gradients; the last two have odd sides.
@pytest.mark.parametrize("shape", [(8, 32, 32, 3), (3, 7, 5, 4), (2, 9, 4, 2)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_and_both_gradients(shape, stride):
    assert_as_the_library(shape, 5, stride)


@pytest.mark.parametrize("values", [winograd.BLOCK_NUMBERS, 2**10])
def test_wide_convolution_and_both_gradients(values, monkeypatch):
    """Winograd's form, as one block and image by image; here it is taken for few channels too."""
    monkeypatch.setattr(convolution.forms, "WINOGRAD_CHANNELS", 4)
    monkeypatch.setattr(winograd, "BLOCK_NUMBERS", values)
    assert_as_the_library((3, 8, 6, 16), 12, 1)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere the library's convolution is taken")
def test_who_takes_winograds_form():
    def operations(height, channels, outputs, stride):
        images, kernel = jnp.zeros((2, height, 4, channels)), jnp.zeros((outputs, channels, 3, 3))
        return str(jax.make_jaxpr(lambda x, w: convolution_3x3(x, w, stride))(images, kernel))

    assert "conv_general_dilated" not in operations(4, 64, 128, 1)
    for other in ((5, 64, 128, 1), (4, 64, 128, 2), (4, 32, 128, 1), (4, 64, 32, 1)):
        assert "conv_general_dilated" in operations(*other)


def test_pointwise_convolution():
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.normal(size=(2, 5, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 3, 1, 1)), jnp.float32)
    for stride in (1, 2):
        ours, theirs = convolution_1x1(images, kernel, stride), plain(images, kernel, stride, 0)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_for_every_client(stride):
    """Under vmap no convolution over grouped kernels remains, and the values are those of one client after another."""
    rng = np.random.default_rng(2)
    images = jnp.asarray(rng.normal(size=(3, 2, 6, 6, 2)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(3, 4, 2, 3, 3)), jnp.float32)

    def loss(images, kernel):
        return jnp.square(convolution_3x3(images, kernel, stride)).sum()

    gradients = jax.vmap(jax.grad(loss, argnums=(0, 1)))
    together = jax.jit(gradients)(images, kernels)
    for k in range(3):
        alone = jax.jit(jax.grad(loss, argnums=(0, 1)))(images[k], kernels[k])
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_allclose(one[k], other, rtol=1e-5, atol=1e-4)
    text = str(jax.make_jaxpr(gradients)(images, kernels))
    assert "conv_general_dilated" in text
    assert "feature_group_count=3" not in text
    assert "batch_group_count=3" not in text


def test_sizes():
    for name, size, tensors in (("resnet10", 4_903_242, 38), ("resnet18", 11_173_962, 62)):
        model = models.make(name)
        leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)).params)
        assert (sum(leaf.size for leaf in leaves), len(leaves)) == (size, tensors)
    assert not jax.eval_shape(models.make("resnet10", norm="none").init, jax.random.key(0)).stats


@pytest.fixture(scope="module")
def narrow():
    """A network of width 4, its variables and its train and eval passes under jit."""
    model = models.make("resnet10", width=4)
    variables = jax.jit(model.init)(jax.random.key(3))
    train = jax.jit(lambda v, images: model.apply(v.params, v.stats, images, True, None))
    evaluate = jax.jit(lambda v, images: model.apply(v.params, v.stats, images, False, None)[0])
    return model, variables, train, evaluate


def images_of(seed, size=6):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(size, 32, 32, 3)), jnp.float32)


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1)], ids=["resnet10"])
def test_against_torch(narrow, blocks):
    """Names, forward passes in both modes and batch statistics, over two batches."""
    torch = pytest.importorskip("torch")
    from fedjax_spmc.parity.torch_reference.model import ResNet

    model, variables, train, evaluate = narrow
    net = ResNet(blocks, 4)
    named = models.to_torch_dict(variables)
    theirs = {name: value for name, value in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert sorted(named) == sorted(theirs)
    assert [name for name, _ in net.named_parameters()] == [".".join(path) for path in model.param_order]
    net.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in named.items()}, strict=False)
    for seed in (0, 1):
        images = images_of(seed)
        logits, stats = train(variables, images)
        variables = Variables(variables.params, stats)
        outputs = net.train()(torch.from_numpy(np.array(images.transpose(0, 3, 1, 2))))
        np.testing.assert_allclose(logits, outputs.detach().numpy(), atol=2e-5)
    for name, value in models.to_torch_dict(variables).items():
        np.testing.assert_allclose(value, net.state_dict()[name].numpy(), atol=1e-5, err_msg=name)
    images = images_of(2)
    with torch.no_grad():
        outputs = net.eval()(torch.from_numpy(np.array(images.transpose(0, 3, 1, 2))))
    np.testing.assert_allclose(evaluate(variables, images), outputs.numpy(), atol=2e-5)


def test_batch_statistics_by_hand(narrow):
    """The first normalisation sees the stem's outputs: biased variance to normalise, unbiased to remember."""
    _, variables, train, _ = narrow
    images = images_of(4)
    stem = np.asarray(plain(images, variables.params["conv1"]["weight"], 1, 1), np.float64).reshape(-1, 4)
    _, stats = train(variables, images)
    np.testing.assert_allclose(stats["bn1"]["running_mean"], 0.1 * stem.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stats["bn1"]["running_var"], 0.9 + 0.1 * stem.var(axis=0, ddof=1), atol=1e-6)
    chex.assert_trees_all_equal_structs(stats, variables.stats)


def test_gradient_of_batch_normalisation():
    """The gradient written out is the derived one, also far from mean 0."""
    rng = np.random.default_rng(7)
    images, cotangent = jnp.asarray(rng.normal(5.0, 2.0, size=(2, 3, 4, 5, 6)), jnp.float32)
    scale, shift = jnp.asarray(rng.normal(size=(2, 6)), jnp.float32)

    def derived(images, scale, shift):
        mean, variance = images.mean(axis=(0, 1, 2), keepdims=True), images.var(axis=(0, 1, 2), keepdims=True)
        return (images - mean) / jnp.sqrt(variance + resnet.EPS) * scale[None, None, None] + shift[None, None, None]

    def ours(images, scale, shift):
        variables = {"params": {"weight": scale, "bias": shift}}
        return resnet.Normalisation("batch").apply(variables, images, True, mutable=["batch_stats"])[0]

    outputs, pull_back = jax.vjp(ours, images, scale, shift)
    expected, pull_back_derived = jax.vjp(derived, images, scale, shift)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    for one, other in zip(pull_back(cotangent), pull_back_derived(cotangent), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_other_norms_treat_every_image_alone(norm):
    model = models.make("resnet10", width=2, norm=norm)
    variables = jax.jit(model.init)(jax.random.key(0))
    assert variables.stats == {}
    run = jax.jit(lambda images: model.apply(variables.params, {}, images, True, None)[0])
    images = images_of(5, 4)
    whole = run(images)
    changed = run(images.at[1:].set(images_of(6, 3)))
    np.testing.assert_allclose(whole[0], changed[0], atol=1e-5)
    assert not np.allclose(whole[1], changed[1], atol=1e-3)
    assert ("conv1", "bias") in model.param_order or norm == "group"


def test_group_norm_against_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    images = rng.normal(2.0, 3.0, size=(2, 4, 4, 48)).astype(np.float32)  # gcd(32, 48) = 16 groups of 3
    scale, shift = rng.normal(size=(2, 48)).astype(np.float32)
    ours = resnet.Normalisation("group").apply({"params": {"weight": scale, "bias": shift}}, jnp.asarray(images), True)
    theirs = torch.nn.functional.group_norm(
        torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), 16, torch.from_numpy(scale), torch.from_numpy(shift)
    )
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=2e-5)


@pytest.mark.slow
def test_a_round_averages_batch_statistics_with_the_verdict():
    """Two clients at once; a teacher is what the mean leaves without the client's own share, so both give the own."""
    from fedjax_spmc import config as configs
    from fedjax_spmc.rounds import make_round
    from tests import small

    config = small.config(
        presets="spmc",
        aggregator__name="mean",
        model__name="resnet10",
        model__options__width=2,
        federation__num_clients=2,
        federation__clients_per_round=2,
        federation__client_batch=2,
        data__options__num_train=80,
        attack__name="none",
    )
    config = configs.resolve(config)
    experiment = build(config)
    play = make_round(experiment.federation, experiment.arrays, experiment.sizes)
    state, report = play(experiment.state, experiment.key)
    new, teachers, weights = state.variables.stats, state.rule.clients.stats, report.verdict.weights
    share = [float(weight) for weight in weights]
    own = [
        jax.tree.map(lambda mean, rest, k=k: (mean - (1 - share[k]) * rest[k]) / share[k], new, teachers)
        for k in range(2)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    assert share[0] != share[1]
    chex.assert_trees_all_close(trees.weighted_mean(stacked, weights), new, atol=1e-5)
    apart = jax.tree.map(lambda leaf: float(jnp.abs(leaf[0] - leaf[1]).max()), stacked)
    assert min(jax.tree.leaves(apart)) > 1e-4
