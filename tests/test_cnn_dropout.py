"""The network with dropout: torch's function and gradients, what dropout draws, and training with it in every rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import fisher, local_rules, models
from fedjax_spmc.config import make_config
from fedjax_spmc.experiment import build
from fedjax_spmc.fisher import sample_squares
from fedjax_spmc.fisher.estimate import batch_gradient
from fedjax_spmc.models import layers
from fedjax_spmc.parity.kinds_local import fixed_batches
from fedjax_spmc.rounds import make_round
from fedjax_spmc.training import train_client
from fedjax_spmc.types import Batch, Context, Variables

SMALL = (10, 10, 3)


def flat_of(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def small():
    model = models.make("cnn_dropout", image_shape=SMALL)
    return model._replace(init=jax.jit(model.init), apply=jax.jit(model.apply, static_argnums=3))


@pytest.fixture(scope="module")
def params(small):
    return small.init(jax.random.key(0)).params


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(1), (4, *SMALL))


def torch_network(torch, side, channels=3):
    nn = torch.nn
    features = 64 * ((side - 4) // 2) ** 2
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip


@pytest.mark.parametrize("side", [32, 9])
def test_eval_mode_is_torchs_with_its_gradients(side):
    torch = pytest.importorskip("torch")
    network = torch_network(torch, side).eval()
    model = models.make("cnn_dropout", image_shape=(side, side, 3))
    flat = np.concatenate([tensor.detach().numpy().ravel() for tensor in network.parameters()])
    params = models.from_torch(model, flat)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((5, side, side, 3)).astype(np.float32)
    labels = rng.integers(0, 10, 5)

    def loss(params, images):
        logits, _ = model.apply(params, {}, images, False)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -picked.mean(), logits

    (_, logits), (by_params, by_images) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, images)
    seen = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    expected = network(seen)
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(by_images.transpose(0, 3, 1, 2), seen.grad.numpy(), rtol=0, atol=1e-5)
    wanted = np.concatenate([tensor.grad.numpy().ravel() for tensor in network.parameters()])
    np.testing.assert_allclose(flat_of(by_params), wanted, rtol=0, atol=1e-5)


def test_size_and_order():
    model = models.make("cnn_dropout")
    shapes = jax.eval_shape(model.init, jax.random.key(0)).params
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)][::2] == [
        (32, 3, 3, 3), (64, 32, 3, 3), (128, 64 * 14 * 14), (10, 128),
    ]  # fmt: skip
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_626_442
    assert [".".join(path) for path in model.param_order][::2] == [
        f"{n}.weight" for n in ("conv1", "conv2", "fc1", "cls")
    ]
    with pytest.raises(ValueError, match="at least 6x6"):
        models.make("cnn_dropout", image_shape=(5, 32, 3))
    with pytest.raises(ValueError, match="dropout_1"):
        models.make("cnn_dropout", dropout_1=1.5)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_keep_rate_and_scaling(rate):
    """A network whose logits are the hidden units: each is 0 or the plain one divided by the share that is kept."""
    options = {"dropout_1": 0.0, "dropout_2": rate}
    model = models.make("cnn_dropout", num_classes=128, image_shape=SMALL, **options)
    apply = jax.jit(model.apply, static_argnums=3)
    params = jax.jit(model.init)(jax.random.key(0)).params
    params["fc1"]["bias"] = jnp.full(128, 5.0)  # no unit is cut off at zero
    params["cls"] = {"weight": jnp.eye(128), "bias": jnp.zeros(128)}
    images = jax.random.normal(jax.random.key(1), (50, *SMALL))
    plain, _ = apply(params, {}, images, False)
    dropped, _ = apply(params, {}, images, True, jax.random.key(2))
    kept = np.asarray(dropped) != 0
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / kept.size)
    np.testing.assert_allclose(np.asarray(dropped)[kept], np.asarray(plain)[kept] / (1 - rate), rtol=1e-4)


def test_draws_follow_the_key_and_only_in_training(small, params, images):
    def logits(train, key):
        return np.asarray(small.apply(params, {}, images, train, key)[0])

    one, two = jax.random.key(1), jax.random.key(2)
    np.testing.assert_array_equal(logits(True, one), logits(True, one))
    assert not np.allclose(logits(True, one), logits(True, two))
    np.testing.assert_array_equal(logits(False, one), logits(False, two))
    np.testing.assert_array_equal(logits(False, one), logits(False, None))
    assert not np.allclose(logits(False, one), logits(True, one))
    with pytest.raises(ValueError, match="needs a key"):
        small.apply(params, {}, images, True, None)


def test_without_dropout_training_is_eval_and_all_dropped_is_the_bias(images):
    none = models.make("cnn_dropout", dropout_1=0.0, dropout_2=0.0, image_shape=SMALL)
    everything = models.make("cnn_dropout", dropout_2=1.0, image_shape=SMALL)
    params = jax.jit(none.init)(jax.random.key(0)).params

    @jax.jit
    def logits(params, images, key):
        plain, whole = (none.apply(params, {}, images, train, key)[0] for train in (False, True))
        return plain, whole, everything.apply(params, {}, images, True, key)[0]

    plain, whole, dropped = logits(params, images, jax.random.key(0))
    np.testing.assert_allclose(whole, plain, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(dropped, np.broadcast_to(params["cls"]["bias"], (4, 10)))


def test_convolution_is_xlas():
    rng = np.random.default_rng(0)
    images, kernel = rng.standard_normal((2, 3, 7, 6)), rng.standard_normal((4, 3, 3, 3))
    ours = layers.convolution(jnp.asarray(images.transpose(1, 2, 3, 0)), jnp.asarray(kernel), jnp.arange(4.0))
    expected = jax.lax.conv_general_dilated(jnp.asarray(images), jnp.asarray(kernel), (1, 1), "VALID")
    expected = expected + jnp.arange(4.0)[None, :, None, None]
    np.testing.assert_allclose(ours.transpose(3, 0, 1, 2), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", local_rules.names())
def test_every_local_rule_trains_it(name, small):
    rule = local_rules.make(name)
    variables = small.init(jax.random.key(0))
    state = rule.init(variables, 2)
    hyper = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.0}
    ctx = Context(small, variables, variables, hyper, 1, jnp.int32(0), shared=state.server)
    images = jax.random.normal(jax.random.key(0), (2, 4, *SMALL))
    labels = jax.random.randint(jax.random.key(1), (2, 4), 0, 10, jnp.int32)
    own = jax.tree.map(lambda x: x[0], state.clients)

    @jax.jit
    def run(key):
        return train_client(rule, ctx, own, fixed_batches(images, labels, 0), key)

    one, two = run(jax.random.key(0)), run(jax.random.key(1))
    assert np.isfinite(flat_of(one.variables.params)).all()
    assert np.isfinite(flat_of(one.extras)).all() if one.extras else True
    assert not np.allclose(flat_of(one.variables.params), flat_of(variables.params))
    assert not np.allclose(flat_of(one.variables.params), flat_of(two.variables.params)), "the key must reach dropout"


@pytest.mark.slow
@pytest.mark.parametrize("kind", fisher.KINDS)
def test_every_fisher_takes_it(kind, small, params):
    images, labels = jax.random.normal(jax.random.key(0), (1, 3, *SMALL)), jnp.array([[1, 2, 3]], jnp.int32)
    variables = Variables(params, {})
    assert not sample_squares.supports(small, variables)  # a convolution without pool: sample by sample
    data = fixed_batches(images, labels, 0)
    found = fisher.estimate(kind, small, variables, data, key=jax.random.key(0))
    assert np.isfinite(flat_of(found)).all()
    assert flat_of(found).max() > 0
    if kind == "per_sample":
        single = [
            batch_gradient(small, variables, Batch(x, y, y, jnp.ones(1, bool)), jax.random.key(0))
            for x, y in zip(jnp.split(images[0], 3), jnp.split(labels[0], 3), strict=True)
        ]
        expected = sum(np.square(flat_of(one)) for one in single) / 3
        np.testing.assert_allclose(flat_of(found), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_a_round_trains_it_and_the_seed_decides():
    config = make_config("fedavg", data__name="digits", model__name="cnn_dropout")
    for path, value in {
        "data.limit_train": 160,
        "local.epochs": 2,
        "local.batch_size": 8,
        "local.learning_rate": 0.05,
        "local.momentum": 0.0,
        "federation.num_clients": 4,
        "federation.clients_per_round": 4,
        "partition.name": "iid",
        "attack.name": "none",
    }.items():
        configs.set_field(config, path, value)
    config = configs.resolve(config)
    assert dict(config.model.options) == {"dropout_1": 0.25, "dropout_2": 0.5}
    experiment = build(config)
    play = make_round(experiment.federation, experiment.arrays, experiment.sizes)
    state, report = play(experiment.state, experiment.key)
    again, _ = play(experiment.state, experiment.key)
    np.testing.assert_array_equal(flat_of(state.variables.params), flat_of(again.variables.params))
    assert int(report.steps.sum()) > 0
    losses = [float(report.metrics["loss"])]
    for _ in range(3):
        state, report = play(state, experiment.key)
        losses.append(float(report.metrics["loss"]))
    assert losses[-1] < 0.95 * losses[0], losses
