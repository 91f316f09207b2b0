"""Every aggregator beside each kind of local training, with and without an attack: two rounds on the digits.

Local training does not know what the server does: it is compiled once for each pair of rule and attack, and every
aggregator once for all pairs.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, setup, trees
from fedjax_spmc import config as configs
from fedjax_spmc.config import make_config
from fedjax_spmc.experiment import build
from fedjax_spmc.federation import FederationState
from fedjax_spmc.one_round import play_round
from fedjax_spmc.parts import assemble
from fedjax_spmc.types import Upload, Variables

pytestmark = pytest.mark.slow
PAIRS = [(rule, attack) for rule in ("sgd", "spmc") for attack in ("none", "badnets")]
OWN_RULE = {"fdcr": "fdcr"}
"""Aggregators that need what a certain local rule sends: they are played with that one."""
CASES = [(pair, name) for pair in PAIRS for name in aggregators.names() if name not in OWN_RULE]
CASES += [((rule, "badnets"), name) for name, rule in OWN_RULE.items()]
LIKE_THE_MEAN: dict[str, str] = {}
"""Rules whose model is that of the mean here, and why."""


def make_small(rule: str = "sgd", attack: str = "none", aggregator: str = "mean") -> Any:
    rule = OWN_RULE.get(aggregator, rule)
    config = make_config("fedavg", data__name="digits", model__name="mlp", attack__name=attack)
    for path, value in {
        "local.rule": rule,
        "aggregator.name": aggregator,
        "model.options.hidden": (16,),
        "data.limit_train": 800,
        "local.epochs": 1,
        "local.batch_size": 32,
        "local.learning_rate": 0.1,
        "federation.num_clients": 8,
        "federation.clients_per_round": 8,
        "attack.malicious_fraction": 0.25,
        "partition.min_size": 32,
        **({"local.options.teacher_weights": "uniform"} if rule == "spmc" else {}),
        **({"aggregator.options.samples": 64} if aggregator == "deepsight" else {}),  # to save time
    }.items():
        configs.set_field(config, path, value)
    return configs.resolve(config)


class Local(NamedTuple):
    """One pair of rule and attack.

    Attributes:
        experiment: its parts.
        train: state -> upload, the half of a round that clients play, compiled.
        after_round: what the rule makes of the server's verdict, compiled.
        first: the upload of round 0, the same for every aggregator.
        mean: the model of the mean after two rounds, once it is known.
    """

    experiment: setup.Experiment
    train: Any
    after_round: Any
    first: Upload
    mean: list[np.ndarray]


@functools.cache
def local_of(pair: tuple[str, str]) -> Local:
    """The local training of a pair, made once: pytest would make a fixture anew where tests come in another order."""
    config = make_small(*pair)
    experiment = build(config)
    federation, arrays = experiment.federation, experiment.arrays

    def train(state: FederationState, arrays: Any) -> Upload:
        seen, rule = {}, federation.aggregator(None)

        def spy(upload, aggregator_state, key):
            seen["upload"] = upload
            return rule.aggregate(upload, aggregator_state, key)

        spied = federation._replace(aggregator=lambda server: rule._replace(aggregate=spy))
        play_round(spied, arrays, arrays[1].sizes, state, experiment.key)
        return seen["upload"]

    traces = []

    @jax.jit
    def program(state, arrays):
        traces.append(1)
        return train(state, arrays)

    def once(state):
        upload = program(state, arrays)
        assert len(traces) == 1, "local training must not be compiled anew for each aggregator"
        return upload

    return Local(experiment, once, jax.jit(federation.rule.after_round), once(experiment.state), [])


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """Aggregators under jit, shared by all pairs."""
    return {}


def aggregator_of(name: str, local: Local, compiled: dict[str, Any]):
    if name not in compiled:
        experiment = local.experiment
        config, dataset = make_small(aggregator=name), experiment.dataset
        held = setup.server_examples(config, dataset)
        rule = assemble(config, dataset.info, held).aggregator(held)
        compiled[name] = rule._replace(aggregate=jax.jit(rule.aggregate))
    return compiled[name]


def two_rounds(local: Local, aggregator) -> tuple[np.ndarray, list[Any]]:
    """The evaluated model after two rounds, flat, and both verdicts."""
    state, upload, verdicts = local.experiment.state, local.first, []
    held = aggregator.init(state.variables.params, 8)
    for index in range(2):
        params, verdict, held = aggregator.aggregate(upload, held, jax.random.key(index))
        variables = Variables(params, {})
        rule_state = local.after_round(state.rule, upload, upload.client_params, variables, verdict)
        state = state._replace(
            variables=variables, previous=state.variables, rule=rule_state, round=jnp.int32(index + 1)
        )
        verdicts.append(verdict)
        if index == 0:
            upload = local.train(state)
    final = aggregator.evaluated(state.variables.params, held)
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(final)]), verdicts


@pytest.mark.parametrize(("pair", "name"), CASES, ids=["-".join((*pair, name)) for pair, name in CASES])
def test_two_rounds_are_finite_and_not_the_means(pair, name, compiled):
    local = local_of(pair)
    assert bool(trees.all_finite(local.first.client_params))
    if not local.mean:
        local.mean.append(two_rounds(local, aggregator_of("mean", local, compiled))[0])
    model, verdicts = two_rounds(local, aggregator_of(name, local, compiled))
    assert np.isfinite(model).all()
    for verdict in verdicts:
        assert float(verdict.weights.sum()) == pytest.approx(1.0, abs=1e-4)
        assert np.isfinite(verdict.scores).all()
    start = np.concatenate([np.ravel(x) for x in jax.tree.leaves(local.experiment.state.variables.params)])
    assert not np.allclose(model, start, atol=1e-5), "two rounds must move the model"
    assert np.allclose(model, local.mean[0], atol=1e-6) == (name == "mean" or name in LIKE_THE_MEAN)
