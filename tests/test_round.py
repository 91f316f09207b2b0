"""The round: exact for unequal clients, the same whatever the neighbours and whatever `client_batch`."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import data, local_rules, models, training, trees
from fedjax_spmc.config import make_config
from fedjax_spmc.data.pipeline import pad_indices
from fedjax_spmc.experiment import build
from fedjax_spmc.one_round import data_of_client, play_round
from fedjax_spmc.rounds import make_round
from fedjax_spmc.types import Batch, ClientData, Context, Variables
from tests.flags import AS_USUAL


def small_config(**fields):
    config = make_config("", data__name="synthetic", model__name="mlp")
    defaults = {
        "data.options.num_train": 400,
        "data.options.num_test": 50,
        "federation.num_clients": 5,
        "federation.clients_per_round": 5,
        "local.batch_size": 8,
        "local.epochs": 1,
        "partition.min_size": 8,
        "attack.malicious_fraction": 0.4,
    }
    for path, value in (defaults | fields).items():
        configs.set_field(config, path, value)
    return configs.resolve(config)


@pytest.fixture(scope="module")
def experiment():
    config = small_config()
    return build(config)


def locals_of(experiment, arrays, client_batch=1, options=None):
    """The clients' models after one round, before the server: [K, ...] params."""
    federation = experiment.federation._replace(client_batch=client_batch)
    seen = {}

    rule = federation.aggregator(None)

    def spy(upload, state, key):
        seen["upload"] = upload
        return rule.aggregate(upload, state, key)

    spied = federation._replace(aggregator=lambda server: rule._replace(aggregate=spy))

    def run(state, key, arrays):
        play_round(spied, arrays, arrays[1].sizes, state, key)
        return seen["upload"]  # and nothing else: XLA then leaves out the server's part

    program = jax.jit(run, compiler_options=options)
    return program(experiment.state, experiment.key, arrays)


def test_steps_are_epochs_times_batches(experiment):
    upload = locals_of(experiment, experiment.arrays)
    sizes = np.array([len(part) for part in experiment.parts])
    assert len(set(sizes // 8)) > 1, "the clients should differ in size here"
    np.testing.assert_array_equal(upload.steps, sizes // 8)
    np.testing.assert_array_equal(upload.num_examples, sizes)


@pytest.mark.slow
@pytest.mark.parametrize("client_batch", [1, 5])
def test_a_client_is_bitwise_the_same_whatever_its_neighbours_data_are(experiment, client_batch):
    """The neighbours get twice the data in another order, so that paddings and step counts change too."""
    first = experiment.parts[0]
    others = [np.concatenate([part[::-1], part]) for part in experiment.parts[1:]]
    changed = (experiment.arrays[0], pad_indices([first, *others]))
    ours = locals_of(experiment, experiment.arrays, client_batch, AS_USUAL)
    beside = locals_of(experiment, changed, client_batch, AS_USUAL)
    assert (np.asarray(beside.steps)[1:] > np.asarray(ours.steps)[1:]).all()
    for a, b in zip(jax.tree.leaves(ours.client_params), jax.tree.leaves(beside.client_params), strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        assert not np.array_equal(a[1], b[1])


@pytest.mark.slow
def test_client_batch_changes_nothing_beyond_rounding(experiment):
    one = locals_of(experiment, experiment.arrays, 1)
    assert int(one.steps.max()) <= 30
    for client_batch in (2, 5):
        several = locals_of(experiment, experiment.arrays, client_batch)
        chex.assert_trees_all_close(one.client_params, several.client_params, atol=1e-6)


@pytest.mark.slow
def test_a_whole_round_equals_a_plain_loop(experiment):
    """The jitted round against a Python loop over clients and steps with hand-written torch-style SGD."""
    upload = locals_of(experiment, experiment.arrays)
    federation, state = experiment.federation, experiment.state
    ctx = Context(federation.model, state.variables, state.variables, federation.hyper, 1, jnp.int32(0))

    @jax.jit
    def gradients(params, batch, teacher):
        return federation.rule.gradients(ctx, params, {}, batch, teacher, jax.random.key(1))[0]

    for client in (0, 4):
        batches = data_of_client(federation, experiment.arrays, state, experiment.key, jnp.int32(client))
        teacher = trees.take_rows(state.rule.clients, client)
        params = state.variables.params
        velocity = None
        for step in range(int(batches.num_batches)):
            batch = batches.gather(jnp.int32(step), jax.random.key(1))
            grads = gradients(params, batch, teacher)
            grads = jax.tree.map(lambda g, w: g + 1e-5 * w, grads, params)
            velocity = grads if velocity is None else jax.tree.map(lambda v, g: 0.9 * v + g, velocity, grads)
            params = jax.tree.map(lambda w, v: w - 0.01 * v, params, velocity)
        chex.assert_trees_all_close(params, trees.take_rows(upload.client_params, client), atol=2e-6)


def test_batches_differ_by_client_round_and_epoch(experiment):
    federation, state = experiment.federation, experiment.state

    def ids(client, round_index, step=0):
        made = data_of_client(
            federation,
            experiment.arrays,
            state._replace(round=jnp.int32(round_index)),
            experiment.key,
            jnp.int32(client),
        )
        return np.asarray(made.gather(jnp.int32(step), experiment.key).sample_ids)

    part = experiment.parts[0]
    assert set(ids(0, 0)) <= set(part.tolist())
    assert not np.array_equal(ids(0, 0), ids(0, 1))
    assert not np.array_equal(ids(0, 0), ids(1, 0))
    np.testing.assert_array_equal(ids(0, 0), ids(0, 0))


@pytest.mark.slow
def test_an_epoch_visits_every_sample_once():
    config = small_config(**{"local.epochs": 3})
    built = build(config)
    made = data_of_client(built.federation, built.arrays, built.state, built.key, jnp.int32(2))
    count = int(made.num_batches)
    orders = [
        np.concatenate([np.asarray(made.gather(jnp.int32(e * count + b), built.key).sample_ids) for b in range(count)])
        for e in range(3)
    ]
    for order in orders:
        assert len(set(order.tolist())) == 8 * count
        assert set(order.tolist()) <= set(built.parts[2].tolist())
    assert not np.array_equal(orders[0], orders[1])


@pytest.mark.slow
def test_sampling_and_clients_too_small_for_a_batch():
    config = small_config(
        **{
            "federation.num_clients": 12,
            "federation.clients_per_round": 4,
            "partition.min_size": 1,
            "local.batch_size": 24,
        }
    )
    built = build(config)
    sizes = np.array([len(part) for part in built.parts])
    assert (sizes < 24).any()
    play = make_round(built.federation, built.arrays, built.arrays[1].sizes)
    state, seen = built.state, []
    for _ in range(5):
        teachers = state.rule.clients
        state, report = play(state, built.key)
        ids = np.asarray(report.client_ids)
        seen.append(tuple(ids))
        assert len(set(ids.tolist())) == 4
        assert (np.diff(ids) > 0).all()
        np.testing.assert_array_equal(report.steps, sizes[ids] // 24)
        np.testing.assert_array_equal(report.participating, sizes[ids] >= 24)
        np.testing.assert_array_equal(np.asarray(report.verdict.weights)[sizes[ids] < 24], 0.0)
        absent = np.setdiff1d(np.arange(12), ids)
        chex.assert_trees_all_equal(trees.take_rows(teachers, absent), trees.take_rows(state.rule.clients, absent))
    assert len(set(seen)) > 1


@pytest.mark.slow
def test_frozen_augmentation_stays_and_live_augmentation_moves():
    images = {}
    for augmentation in ("live", "frozen"):
        config = make_config("", data__name="digits", model__name="mlp", local__batch_size=16, local__epochs=2)
        configs.set_field(config, "attack.augmentation", augmentation)
        config = configs.resolve(config)
        built = build(config)
        for client in (0, 9):
            made = [
                data_of_client(
                    built.federation,
                    built.arrays,
                    built.state._replace(round=jnp.int32(r)),
                    built.key,
                    jnp.int32(client),
                )
                for r in (0, 1)
            ]
            by_sample = []
            for one in made:
                count = 2 * int(one.num_batches)
                batches = [jax.jit(one.gather)(jnp.int32(s), built.key) for s in range(count)]
                by_sample.append(
                    {int(i): np.asarray(x) for b in batches for i, x in zip(b.sample_ids, b.inputs, strict=True)}
                )
            shared = sorted(by_sample[0].keys() & by_sample[1].keys())
            images[augmentation, client] = np.mean([np.array_equal(by_sample[0][i], by_sample[1][i]) for i in shared])
    assert images["frozen", 9] == 1.0
    assert images["frozen", 0] < 0.3
    assert images["live", 9] < 0.3
    assert images["live", 0] < 0.3


@pytest.mark.slow
def test_vmap_over_experiments_equals_single_runs(experiment):
    states = jax.tree.map(lambda x: jnp.stack([x, x]), experiment.state)
    keys = jnp.stack([experiment.key, jax.random.key(7)])

    def play(state, key):
        return play_round(experiment.federation, experiment.arrays, experiment.arrays[1].sizes, state, key)[0]

    together = jax.jit(jax.vmap(play))(states, keys)
    for i, key in enumerate(keys):
        alone = jax.jit(play)(experiment.state, key)
        chex.assert_trees_all_close(
            jax.tree.map(lambda x, i=i: x[i], together.variables.params), alone.variables.params, atol=1e-5
        )


@pytest.mark.slow
def test_the_round_is_traced_once(experiment):
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(play_round, n=1)
    program = jax.jit(lambda s, k, a: traced(experiment.federation, a, a[1].sizes, s, k))
    state = experiment.state
    for _ in range(2):
        state, _ = program(state, experiment.key, experiment.arrays)
    assert int(state.round) == 2


def test_a_batch_with_padding_counts_only_valid_samples():
    model = models.make("mlp", num_classes=3)
    variables = model.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    labels = jnp.array([0, 1, 2, 0])
    ctx = Context(model, variables, variables, {}, 1, jnp.int32(0))
    for name, teacher in (("sgd", ()), ("spmc", model.init(jax.random.key(2)))):
        rule = local_rules.make(name)
        whole = Batch(images[:3], labels[:3], jnp.arange(3), jnp.ones(3, bool))
        padded = Batch(images, labels, jnp.arange(4), jnp.array([True, True, True, False]))

        @jax.jit
        def gradients(batch, rule=rule, teacher=teacher):
            return rule.gradients(ctx, variables.params, {}, batch, teacher, jax.random.key(0))[0]

        expected, ours = gradients(whole), gradients(padded)
        chex.assert_trees_all_close(ours, expected, atol=1e-6)


def test_no_step_leaves_the_model_alone():
    model = models.make("mlp")
    variables = model.init(jax.random.key(0))
    empty = ClientData(
        lambda step, key: Batch(
            jnp.zeros((2, 32, 32, 3)), jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.int32), jnp.ones(2, bool)
        ),
        jnp.int32(0),
        jnp.int32(0),
    )
    hyper = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-5}
    ctx = Context(model, variables, variables, hyper, 3, jnp.int32(0))
    trained = training.train_client(local_rules.make("sgd"), ctx, (), empty, jax.random.key(0))
    assert int(trained.steps) == 0
    chex.assert_trees_all_equal(trained.variables, Variables(variables.params, variables.stats))


def test_data_is_on_the_device_once_as_uint8(experiment):
    assert experiment.arrays[0].inputs.dtype == jnp.uint8
    assert isinstance(experiment.dataset, data.Dataset)
