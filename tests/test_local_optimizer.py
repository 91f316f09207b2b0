"""`local.optimizer` and `local.clip_norm` against torch, in the order in which a step applies them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fedjax_spmc import config as configs
from fedjax_spmc import setup, sweep
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.training import Hooks, clipped, train_client
from fedjax_spmc.types import Batch, ClientData, Context, LocalRule, Variables
from tests import small

SHAPES = {"w": (5, 3), "b": (3,)}
STEPS = 12
RATE, MOMENTUM, DECAY, BETA2 = 0.05, 0.8, 0.01, 0.95


def numbers(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


START, PULLS = numbers(0), [numbers(step + 1, scale) for step, scale in enumerate(np.geomspace(0.01, 30, STEPS))]
MASK = {name: (np.arange(np.prod(shape)).reshape(shape) % 3 > 0).astype(np.float32) for name, shape in SHAPES.items()}


def ours(hyper):
    """The parameters after all steps; the gradient of step t is w - pull_t, of which the attack masks a third."""
    stacked = {name: jnp.stack([pull[name] for pull in PULLS]) for name in SHAPES}

    def gather(step, key):
        none = jnp.zeros(1, jnp.int32)
        return Batch(step[None].astype(jnp.float32), none, none, none == 0)

    def gradients(ctx, params, stats, batch, client_state, key):
        step = batch.inputs[0].astype(jnp.int32)
        grads = {name: params[name] - stacked[name][step] for name in SHAPES}
        return grads, stats, {"loss": jnp.float32(0)}

    hooks = Hooks(mask_gradients=lambda grads, params, step: {name: MASK[name] * grads[name] for name in grads})
    data = ClientData(gather, jnp.int32(STEPS), jnp.int32(0))
    variables = Variables(jax.tree.map(jnp.asarray, START), {})

    def run(hyper):
        ctx = Context(None, variables, variables, hyper, 1, jnp.int32(0))  # type: ignore[arg-type]
        return train_client(LocalRule(gradients), ctx, (), data, jax.random.key(0), hooks).variables.params

    return jax.jit(run)(hyper)


def torchs(name, clip_norm):
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in START.items()}
    made = {
        "sgd": lambda: torch.optim.SGD(params.values(), RATE, MOMENTUM, weight_decay=DECAY),
        "adam": lambda: torch.optim.Adam(params.values(), RATE, (MOMENTUM, BETA2), weight_decay=DECAY),
    }[name]()
    for pull in PULLS:
        for key, param in params.items():
            param.grad = torch.tensor(MASK[key]) * (param.detach() - torch.tensor(pull[key]))
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(list(params.values()), clip_norm)
        made.step()
    return {name: param.detach().numpy() for name, param in params.items()}


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_masked_clipped_and_stepped_as_in_torch(name, clip_norm):
    fields = {"optimizer": name, "learning_rate": RATE, "momentum": MOMENTUM, "weight_decay": DECAY}
    fields |= {} if clip_norm is None else {"clip_norm": clip_norm}
    fields |= {"beta2": BETA2} if name == "adam" else {}
    config = configs.resolve(small.config(**{f"local__{field}": value for field, value in fields.items()}))
    params, theirs = ours(setup.array_settings(config).hyper), torchs(name, clip_norm)
    for leaf in SHAPES:
        np.testing.assert_allclose(params[leaf], theirs[leaf], rtol=1e-5, atol=1e-6)


def test_a_gradient_is_clipped_by_its_norm_over_all_tensors():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([[4.0]])}
    np.testing.assert_allclose(clipped(grads, {"clip_norm": 1.0})["a"], 3 / (5 + 1e-6), rtol=1e-6)
    for hyper in ({"clip_norm": 5.1}, {}):
        assert float(clipped(grads, hyper)["b"][0, 0]) == 4.0
    tiny = jax.tree.map(lambda x: 0 * x, grads)
    assert float(clipped(tiny, {"clip_norm": 1e-7})["a"][0]) == 0.0


def test_a_config_without_them_has_the_numbers_of_sgd_alone():
    assert setup.array_settings(configs.resolve(small.config())).hyper.keys() == set(configs.HYPERPARAMETERS)


@pytest.mark.parametrize(
    ("preset", "fields", "words"),
    [
        ("scaffold", {}, "with local.rule = 'scaffold', whose formula assumes SGD: it must be 'sgd'."),
        (
            "fedavg",
            {"attack__local__rule": "scaffold"},
            "with attack.local.rule = 'scaffold', whose formula assumes SGD",
        ),
    ],
)
def test_scaffold_refuses_adam(preset, fields, words):
    with pytest.raises(ConfigError) as caught:
        configs.resolve(small.config(presets=preset, local__optimizer="adam", **fields))
    assert str(caught.value).startswith(f"local.optimizer = 'adam' is not allowed {words}")
    configs.resolve(small.config(presets=preset, local__clip_norm=1.0, **fields))


def test_their_numbers_are_arrays_of_one_program_and_they_are_not():
    def groups(grid, **fields):
        return len(sweep.groups_of(sweep.expand(sweep.Sweep(small.config(1, "fedavg", **fields), grid))))

    assert groups({"local.clip_norm": [1.0, 2.0]}) == 1
    assert groups({"local.clip_norm": [None, 1.0]}) == 2
    assert groups({"local.optimizer": ["sgd", "adam"]}) == 2
    assert groups({"local.beta2": [0.9, 0.99]}, local__optimizer="adam") == 1
