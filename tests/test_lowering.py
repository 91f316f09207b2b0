"""The programs of a round are lowered for accelerators that this machine need not have, in the forms they would get."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export

from fedjax_spmc import config as configs
from fedjax_spmc.experiment import build
from fedjax_spmc.one_round import aggregate, train
from fedjax_spmc.training import auto_client_batch
from tests import small

METHODS = ("fedavg", "spmc", "fdcr", "krum", "fltrust")
"""A mean, both papers' own, a rule with a Gram matrix and order statistics, one that trains on the server."""


def shapes_of(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_round_is_lowered(method, monkeypatch, small_cache):
    config = configs.resolve(small.config(1, method, model__name="simple_cnn", federation__client_batch=4))
    experiment = build(config)
    federation = experiment.federation
    given = shapes_of((experiment.state, experiment.key, experiment.arrays, experiment.sizes, federation.server))

    def training(state, key, arrays, sizes, server):
        return train(federation._replace(server=server), arrays, sizes, state, key)

    def server_part(trainings, state, key, arrays, sizes, server):
        return aggregate(federation._replace(server=server), arrays, sizes, state, key, trainings)

    monkeypatch.setattr(jax, "default_backend", lambda: "an accelerator")
    assert auto_client_batch(4) == 4
    trained = jax.eval_shape(training, *given)
    for program, arguments in ((training, given), (server_part, (trained, *given))):
        # Keys cannot be exported: they go in as their numbers.
        plain, structure = jax.tree.flatten(arguments)
        is_key = [jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in plain]
        numbers = [jax.eval_shape(jax.random.key_data, x) if key else x for x, key in zip(plain, is_key, strict=True)]

        def of_numbers(numbers, program=program, structure=structure, is_key=is_key):
            leaves = [jax.random.wrap_key_data(x) if key else x for x, key in zip(numbers, is_key, strict=True)]
            results = jax.tree.leaves(program(*jax.tree.unflatten(structure, leaves)))
            return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in results]

        traced_once = jax.jit(of_numbers)
        for platform in ("cuda", "tpu"):
            lowered = export.export(traced_once, platforms=[platform])(numbers)
            assert lowered.platforms == (platform,)
            assert "stablehlo" in lowered.mlir_module()


def test_the_forms_of_an_accelerator_are_other_programs(monkeypatch, small_cache):
    """Lanes are packed and all clients train at once there: what the test above lowers is not the CPU's program."""
    config = configs.resolve(small.config(1, "fedavg"))
    experiment = build(config)

    def lowered() -> str:
        federation = experiment.federation._replace(client_batch=auto_client_batch(4))
        given = shapes_of((experiment.state, experiment.key, experiment.arrays, experiment.sizes))
        program = jax.jit(lambda state, key, arrays, sizes: train(federation, arrays, sizes, state, key).trained.steps)
        return program.lower(*given).as_text()

    here = lowered()
    monkeypatch.setattr(jax, "default_backend", lambda: "an accelerator")
    assert lowered() != here
