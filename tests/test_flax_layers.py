"""Flax's own layers in faster forms: the library's numbers and gradients, and what is left to the library is named."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.linen import max_pool as imported_before  # a name of its own, bound before anything is watched

from fedjax_spmc import config as configs
from fedjax_spmc import registry
from fedjax_spmc.experiment import build
from fedjax_spmc.models import flax_layers, forms, threefry
from fedjax_spmc.models.forms import Work
from fedjax_spmc.models.layers import as_model
from fedjax_spmc.rounds import make_round
from tests import small
from tests.conftest import ROOT

CASES = [
    ({"features": 3, "kernel_size": (3, 3)}, (7, 8, 2), "rows"),
    ({"features": 3, "kernel_size": (5, 2), "padding": ((0, 2), (1, 0))}, (9, 11, 2), "rows"),
    ({"features": 3, "kernel_size": (5, 2), "padding": "VALID", "strides": (2, 3)}, (9, 11, 2), "patches"),
    (
        {"features": 2, "kernel_size": (3, 3), "padding": ((2, 0), (1, 3)), "kernel_dilation": (2, 1)},
        (8, 7, 3),
        "patches",
    ),
    ({"features": 4, "kernel_size": (1, 1), "strides": 2, "use_bias": False}, (5, 6, 3), "patches"),
    ({"features": 3, "kernel_size": (3, 3), "padding": "CIRCULAR"}, (6, 6, 2), "rows"),
    ({"features": 64, "kernel_size": (3, 3), "padding": 1}, (6, 6, 64), "winograd"),
    ({"features": 64, "kernel_size": (3, 3), "padding": 1, "strides": 2}, (6, 5, 64), "taps"),
    ({"features": 4, "kernel_size": (3, 3), "feature_group_count": 2}, (6, 6, 4), "2 groups of channels"),
    ({"features": 3, "kernel_size": (3, 3), "input_dilation": (2, 1), "padding": 1}, (4, 6, 2), "dilated inputs"),
    ({"features": 3, "kernel_size": (3, 3), "padding": ((-1, 0), (0, 0))}, (6, 6, 2), "negative padding"),
    ({"features": 3, "kernel_size": (3,)}, (6, 2), "1 dimensions"),
]


def both(module, shape, batch=3):
    """(value, gradients) of a module with the forms on and off, in float64, and what was left to the library."""
    with jax.enable_x64(True):
        draw = np.random.default_rng(0).normal
        inputs = jnp.asarray(draw(size=(batch, *shape)))
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), module.init(jax.random.key(0), inputs))
        weights = draw(size=jax.eval_shape(module.apply, variables, inputs).shape)
        found, named = [], {}
        for on in (True, False):

            def value(variables, inputs, on=on):
                with flax_layers.fast_forms(on) as left:
                    out = module.apply(variables, inputs)
                named.update(left)
                return (out * weights).sum(), out

            found.append(jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(variables, inputs))
        return *found, list(named)


@pytest.mark.parametrize(("fields", "shape", "form"), CASES)
def test_convolutions_are_the_librarys(monkeypatch, fields, shape, form):
    """For kernels, strides, paddings, dilations and groups, those that the library keeps among them."""
    module = nn.Conv(**fields, param_dtype=jnp.float64)
    taken = []
    for name in ("by_patches", "by_rows", "convolution_3x3"):
        real = getattr(flax_layers, name)
        monkeypatch.setattr(flax_layers, name, lambda *a, name=name, real=real: (taken.append(name), real(*a))[1])
    ours, library, left = both(module, shape)
    chex.assert_trees_all_close(ours, library, rtol=1e-10, atol=1e-10)
    functions = {"patches": "by_patches", "rows": "by_rows", "winograd": "convolution_3x3", "taps": "convolution_3x3"}
    assert taken == ([functions[form]] if form in functions else [])
    assert len(left) == (form not in functions)
    assert all(form in one for one in left)


class Pools(nn.Module):
    window: tuple = (2, 2)
    strides: tuple | None = (2, 2)
    padding: object = "VALID"

    @nn.compact
    def __call__(self, x):
        """Of numbers with many ties, some of them the result of a ReLU, as behind a convolution."""
        x = jnp.round(x)
        x = nn.relu(x) + x
        first = nn.max_pool(x, self.window, strides=self.strides, padding=self.padding)
        return first + imported_before(x, self.window, strides=self.strides, padding=self.padding)


@pytest.mark.parametrize(
    ("pool", "shape", "is_ours"),
    [
        (Pools(), (6, 7, 2), True),
        (Pools((3, 2), (3, 2)), (7, 6, 2), True),
        (Pools(padding="SAME"), (6, 4, 1), True),
        (Pools(padding="SAME"), (5, 4, 1), False),
        (Pools((3, 3), (2, 2)), (7, 7, 2), False),
        (Pools(strides=None), (5, 5, 2), False),
    ],
)
def test_pools_are_the_librarys_and_give_the_gradient_to_the_first(pool, shape, is_ours):
    ours, library, left = both(pool, shape)
    chex.assert_trees_all_equal(ours, library)
    assert len(left) == (not is_ours)


def test_a_pool_shows_a_number_that_is_none():
    x = jnp.zeros((1, 2, 4, 1)).at[0, 1, 0, 0].set(jnp.nan)
    with flax_layers.fast_forms():
        pooled = nn.max_pool(x, (2, 2), (2, 2))
    np.testing.assert_array_equal(pooled[0, 0, :, 0], [np.nan, 0.0])


def test_dense_layers_are_the_librarys_and_a_users_own_hook_stays():
    def doubled(lhs, rhs, dimension_numbers, precision=None):
        return 2 * jax.lax.dot_general(lhs, rhs, dimension_numbers, precision)

    for module in (nn.Dense(5), nn.Dense(4, dot_general=doubled), nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(2)])):
        ours, library, left = both(module, (2, 3))
        chex.assert_trees_all_close(ours, library, rtol=1e-10)
        assert not left


@pytest.mark.parametrize("fields", [{}, {"broadcast_dims": (1, -1)}, {"rate": 0.0}, {"rate": 1.0}])
def test_dropout_drops_what_the_library_drops(fields):
    """To the bit, and the stream goes on as there."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            layer = nn.Dropout(**({"rate": 0.3} | fields), deterministic=False)
            return layer(layer(x)) + nn.Dropout(0.5)(x, deterministic=True)

    x = jax.random.normal(jax.random.key(1), (6, 5, 8))
    found = []
    for on in (True, False):
        with flax_layers.fast_forms(on), jax.threefry_partitionable(True):
            value, pull = jax.vjp(lambda x: Twice().apply({}, x, rngs={"dropout": jax.random.key(2)}), x)
        found.append((value, pull(jnp.ones_like(value))))
    chex.assert_trees_all_equal(*found)


@pytest.mark.parametrize("shape", [(), (7,), (64, 30, 5), (3, 1, 2)])
@pytest.mark.parametrize("partitionable", [True, False])
def test_draws_are_the_librarys(shape, partitionable):
    with jax.threefry_partitionable(partitionable):
        for seed, p in ((0, 0.25), (5, 0.9)):
            key = jax.random.key(seed)
            ours = jax.jit(threefry.bernoulli, static_argnums=(1, 2))(key, p, shape)
            np.testing.assert_array_equal(ours, jax.random.bernoulli(key, p, shape))
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(threefry.bernoulli(key, 0.5, (5,)), jax.random.bernoulli(key, 0.5, (5,)))


class Odd(nn.Module):
    """Layers that nothing can be done about."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=1, strides=2, name="first")(images))
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x))
        x = nn.ConvTranspose(2, (2, 2), name="up")(x)
        return nn.Dense(self.num_classes)(nn.max_pool(x, (3, 3), (2, 2)).reshape(len(x), -1))


def test_what_is_left_to_the_library_is_named_once():
    model = as_model(Odd(3), 3, (8, 8, 3))
    pool = "nn.max_pool of (3, 3) windows with strides (2, 2), padding VALID"
    assert model.left == ("nn.Conv depthwise (4 groups of channels)", "nn.ConvTranspose up", pool)
    assert as_model(Odd(3), 3, (8, 8, 3), fast_forms=False).left == ()
    variables, images = model.init(jax.random.key(0)), jnp.ones((2, 8, 8, 3))
    plain = Odd(3).apply({"params": variables.params}, images, False)
    np.testing.assert_allclose(model.apply(*variables, images, False)[0], plain, rtol=1e-5, atol=1e-6)
    words = flax_layers.slow_layers(model.left)
    assert all(words.count(one) == 1 for one in model.left)


def test_another_backend_asks_the_library(monkeypatch):
    monkeypatch.setattr(forms, "on_cpu", lambda: False)
    model = as_model(Odd(3), 3, (8, 8, 3))
    assert model.left == ()
    variables, images = model.init(jax.random.key(0)), jnp.ones((2, 8, 8, 3))
    plain = Odd(3).apply({"params": variables.params}, images, False)
    np.testing.assert_array_equal(model.apply(*variables, images, False)[0], plain)
    assert forms.form_of(Work(4, 4, (3, 3), (4, 4), 2)) == "library"


def test_too_many_patches_stay_with_the_library():
    work = Work(kernels=8, channels=64, size=(5, 5), windows=(220, 220), batch=32)
    assert forms.form_of(work) == "library"
    assert forms.form_of(work._replace(batch=8, windows=(60, 60))) == "patches"
    assert forms.form_of(work._replace(batch=1, windows=(300, 300))) == "rows"
    assert "MB" in forms.why_library(work)


class LeNet(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.max_pool(nn.relu(nn.Conv(4, (5, 5), padding="VALID")(images)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(8, (5, 5), padding="VALID")(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(24)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_classes)(x)


def test_a_lenet_of_flax_plays_the_same_round(small_cache):
    """Under the whole round, the clients vmapped."""

    def lenet(fast):
        def made(num_classes: int = 10, image_shape: tuple[int, int, int] = (32, 32, 3)):
            return as_model(LeNet(num_classes), num_classes, image_shape, fast_forms=fast)

        return made

    fields = {"model__name": "flax_lenet", "federation__client_batch": 4}
    results = []
    for fast in (True, False):
        with registry.models.temporary("flax_lenet", lenet(fast)):
            built = build(configs.resolve(small.config(1, **fields)))
            play = make_round(built.federation, built.arrays, built.sizes)
            results.append(play(built.state, built.key)[0].variables)
    ours, library = results
    chex.assert_trees_all_close(ours, library, atol=2e-5)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, results), strict=True))


def test_the_rule_takes_the_fastest_form_that_was_measured():
    """Of those that it chooses from; the table is `experiments/bench/bench_forms.py`'s."""
    table = json.loads((ROOT / "experiments" / "bench" / "forms.json").read_text())
    for row in table["rows"]:
        side = row["image"] + 2 * row.get("padding", 0) - row["size"] + 1
        pads = ((row.get("padding", 0),) * 2,) * 2
        form = forms.form_of(
            Work(row["kernels"], row["channels"], (row["size"],) * 2, (side, side), row["batch"], padding=pads)
        )
        if form == "taps":
            form = forms.padded_form(row["kernels"], row["channels"], row["image"], row["image"], 1)
        able = {name: ms for name, ms in row["ms"].items() if name in ("patches", "rows", "library", "taps", form)}
        assert row["ms"][form] <= 1.2 * min(able.values()), row["layer"]
        if row["pool"] == 2:
            form = forms.pooled_form(row["kernels"], row["channels"], row["size"], side // 2, row["batch"])
            able = {name: ms for name, ms in row["ms"].items() if name.startswith("pooled ")}
            assert row["ms"][f"pooled {form}"] <= 1.2 * min(able.values()), row["layer"]
