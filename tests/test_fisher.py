"""The three estimates of the Fisher's diagonal against their definitions, sample by sample."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import fisher, local_rules, models
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.pipeline import Pipeline, client_data, in_order
from fedjax_spmc.data.task import task_of
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.fisher import sample_squares
from fedjax_spmc.training import train_client
from fedjax_spmc.types import Context, Examples, Model, Variables

MLP = models.make("mlp", hidden=(7,), num_classes=4, image_shape=(4, 4, 3))
START = MLP.init(jax.random.key(0))
COUNT, BATCH = 21, 8
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(COUNT, 4, 4, 3)), jnp.float32)
LABELS = jnp.asarray(RNG.integers(0, 4, COUNT), jnp.int32)
KEY = jax.random.key(0)


@functools.cache
def sample_gradient(model):
    """(variables, image, label) -> the gradient of one sample, compiled once for all samples."""

    def loss(params, stats, image, label):
        logits, _ = model.apply(params, stats, image[None], False, KEY)
        return -jax.nn.log_softmax(logits)[0, label]

    return jax.jit(lambda variables, image, label: jax.grad(loss)(variables.params, variables.stats, image, label))


def sample_gradients(model=MLP, variables=START, images=IMAGES, labels=LABELS):
    """[n, D] gradients of -log p(label | image)."""

    gradient = sample_gradient(model)
    grads = [gradient(variables, image, label) for image, label in zip(images, labels, strict=True)]
    return np.stack([models.to_torch(one) for one in grads]).astype(np.float64)


def batches(drop_last):
    ends = list(range(BATCH, COUNT + 1, BATCH))
    return [np.arange(end - BATCH, end) for end in ends] + ([] if drop_last else [np.arange(ends[-1], COUNT)])


def expected(kind, drop_last):
    grads, rows = sample_gradients(), batches(drop_last)
    if kind == "per_sample":
        return (grads[np.concatenate(rows)] ** 2).mean(axis=0)
    if kind == "batch":
        return sum(len(b) * grads[b].mean(axis=0) ** 2 for b in rows) / sum(map(len, rows))
    means = []
    for b in rows:  # every image with every label of its batch
        pairs = [sample_gradients(images=IMAGES[b], labels=jnp.full(len(b), LABELS[j])).mean(axis=0) for j in b]
        means.append(np.mean(pairs, axis=0))
    return np.mean(means, axis=0) ** 2


def flat(tree):
    return np.asarray(models.to_torch(tree), np.float64)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("kind", fisher.KINDS)
def test_an_estimate_is_its_definition(kind, drop_last):
    data = in_order(IMAGES, LABELS, BATCH)
    ours = jax.jit(lambda v: fisher.estimate(kind, MLP, v, data, drop_last=drop_last))(START)
    theirs = expected(kind, drop_last)
    np.testing.assert_allclose(flat(ours), theirs, atol=1e-5 * theirs.max(), rtol=0)
    assert theirs.max() > 0


@pytest.mark.parametrize("chunk", [1, 3, 8, 50])
def test_samples_one_by_one_or_together_give_the_same(chunk):
    data = in_order(IMAGES, LABELS, BATCH)
    ours = flat(fisher.estimate("per_sample", MLP, START, data, chunk=chunk))
    whole = flat(fisher.estimate("per_sample", MLP, START, data))
    np.testing.assert_allclose(ours, whole, atol=1e-5 * whole.max(), rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 128])
def test_squares_within_the_layers_of_a_convolutional_network(count):
    """With few images the convolutions are whole products, with many both go row by row."""
    model = models.make("simple_cnn", image_shape=(16, 16, 3))
    variables = model.init(jax.random.key(1))
    images, labels = jax.random.normal(KEY, (count, 16, 16, 3)), jnp.arange(count, dtype=jnp.int32) % 10
    assert sample_squares.supports(model, variables)
    ours = fisher.estimate("per_sample", model, variables, in_order(images, labels, count))
    theirs = (sample_gradients(model, variables, images, labels) ** 2).mean(axis=0)
    np.testing.assert_allclose(models.to_torch(ours), theirs, atol=1e-5 * theirs.max(), rtol=0)


def test_networks_with_other_layers_are_not_squared_within_them():
    model = models.make("resnet10")
    assert not sample_squares.supports(model, jax.eval_shape(model.init, KEY))


@pytest.mark.parametrize("kind", fisher.KINDS)
def test_no_batch_gives_zeros(kind):
    few = in_order(IMAGES[:5], LABELS[:5], BATCH)
    np.testing.assert_array_equal(flat(fisher.estimate(kind, MLP, START, few)), 0)
    assert flat(fisher.estimate(kind, MLP, START, few, drop_last=False)).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", fisher.KINDS)
def test_vmap_over_clients(kind):
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), START)

    def estimate(variables):
        return fisher.estimate(kind, MLP, variables, in_order(IMAGES, LABELS, BATCH))

    together = jax.vmap(estimate)(stacked)
    for i in range(2):
        alone = flat(estimate(jax.tree.map(lambda x, i=i: x[i], stacked)))
        np.testing.assert_allclose(
            flat(jax.tree.map(lambda x, i=i: x[i], together)), alone, atol=1e-5 * alone.max(), rtol=0
        )


@pytest.mark.parametrize(("kind", "train"), [("per_sample", False), ("batch", False), ("authors", True)])
def test_the_mode_of_the_network(kind, train):
    seen = []

    def apply(params, stats, images, train, key):
        seen.append(train)
        return images.reshape(len(images), -1)[:, :4] * params, stats

    model = Model(lambda key: Variables(jnp.ones(()), {}), apply, ((),), 4, (4, 4, 3))
    fisher.estimate(kind, model, Variables(jnp.ones(()), {}), in_order(IMAGES, LABELS, BATCH), chunk=2)
    assert seen
    assert set(seen) == {train}


def test_what_is_not_allowed():
    data = in_order(IMAGES, LABELS, BATCH)
    with pytest.raises(ConfigError, match=r"'supp' is unknown: it must be one of per_sample, batch, authors"):
        fisher.estimate("supp", MLP, START, data)
    with pytest.raises(ConfigError, match=r"chunk = 0 is not allowed"):
        fisher.estimate("per_sample", MLP, START, data, chunk=0)


@pytest.mark.slow
def test_the_local_rule_estimates_at_the_trained_model_on_an_epoch_of_its_own():
    """Shuffled and augmented anew: not the pass of any local epoch, and every sample once."""
    size, epochs = 20, 2
    train = Examples(jnp.asarray(RNG.integers(0, 255, (size, 4, 4, 3)), jnp.uint8), LABELS[:size])
    info = DatasetInfo("four", 4, (4, 4, 3), (0.5,) * 3, (0.25,) * 3, crop_padding=1, flip=True)
    pipeline = Pipeline(5, epochs + 1, task_of(info).prepare)
    live = jnp.zeros((), bool)
    data = client_data(pipeline, train, jnp.arange(size), jnp.int32(size), jnp.int32(0), live, jnp.int32(0), KEY)
    order = [
        np.concatenate([data.gather(jnp.int32(4 * epoch + i), KEY).sample_ids for i in range(4)]) for epoch in range(3)
    ]
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(order[epoch]), np.arange(size))
        assert not any(np.array_equal(order[epoch], order[other]) for other in range(epoch))
    rule = local_rules.make("fdcr", fisher_kind="batch")
    hyper = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    ctx = Context(MLP, START, START, hyper, epochs, jnp.int32(0))
    out = train_client(rule, ctx, (), data, KEY)
    later = data._replace(gather=lambda step, key: data.gather(8 + step, key))
    sent = flat(out.extras["fisher"])
    np.testing.assert_allclose(sent, flat(fisher.estimate("batch", MLP, out.variables, later)), rtol=1e-5)
    assert not np.allclose(sent, flat(fisher.estimate("batch", MLP, START, later)), rtol=1e-2)
    assert not np.allclose(sent, flat(fisher.estimate("batch", MLP, out.variables, data)), rtol=1e-2)
