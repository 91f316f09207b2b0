"""What clients keep, with many clients: the same numbers from the host as from the device, and rows of those drawn."""

import chex
import jax
import numpy as np
import pytest

from fedjax_spmc import compiled, experiment, federation, parts, store
from fedjax_spmc import config as configs
from fedjax_spmc.errors import DamagedError
from fedjax_spmc.experiment import build
from fedjax_spmc.keys import numbers_of
from fedjax_spmc.record.checkpoint import Checkpoints
from fedjax_spmc.rounds import make_program, make_round, place_inputs
from fedjax_spmc.store import Store
from tests import small


@pytest.fixture(autouse=True)
def programs_of_its_own():
    """Programs do not know that the limit was changed."""
    compiled.forget()
    yield
    compiled.forget()


ROW = {"a": jax.ShapeDtypeStruct((2, 3), np.float32), "b": jax.ShapeDtypeStruct((), bool)}
FIELDS = {
    "federation__num_clients": 12,
    "federation__clients_per_round": 3,
    "partition__min_size": 1,
    "data__options__num_train": 240,
}


def fresh(ids):
    """Rows that tell whose they are."""
    return {"a": -np.ones((len(ids), 2, 3), np.float32) * ids[:, None, None], "b": ids % 2 == 0}


def rows_of(ids, value):
    return {"a": np.full((len(ids), 2, 3), value, np.float32), "b": np.ones(len(ids), bool)}


@pytest.mark.parametrize("in_memory", [2**30, 2 * 25, 0])
def test_a_store_gives_back_what_was_put_and_else_what_init_says(monkeypatch, in_memory):
    """Whether rows lie in memory, in the file, or some here and some there; a store that was put to stays as it was."""
    monkeypatch.setattr(store, "IN_MEMORY", in_memory)
    first = Store(100, ROW, fresh)
    second = first.put(np.array([7, 3, 50]), rows_of([7, 3, 50], 1.0))
    third = second.put(np.array([3, 99]), rows_of([3, 99], 2.0))
    ids = np.array([99, 3, 4, *range(10, 40), 7])
    for kept, wanted in ((first, {}), (second, {7: 1, 3: 1, 50: 1}), (third, {7: 1, 3: 2, 50: 1, 99: 2})):
        assert kept.ids == sorted(wanted)
        expected = fresh(ids)
        for place, one in enumerate(ids):
            if int(one) in wanted:
                expected["a"][place], expected["b"][place] = wanted[int(one)], True
        chex.assert_trees_all_equal(kept.take(ids), expected)
    del first, second
    # 3's old row is nobody's now: its place is taken again.
    fourth = third.put(np.array([1]), rows_of([1], 5.0)).put(np.array([2]), rows_of([2], 6.0))
    chex.assert_trees_all_equal(fourth.take(np.array([3, 1, 50, 2]))["a"][:, 0, 0], np.float32([2, 5, 1, 6]))


def test_only_many_clients_of_whom_few_are_drawn_are_large():
    rows = {"w": jax.ShapeDtypeStruct((1000, 2**18), np.float32)}
    assert store.is_large(rows, 1000, 250)
    assert not store.is_large(rows, 1000, 251)
    assert not store.is_large({"w": jax.ShapeDtypeStruct((512, 2**18), np.float32)}, 512, 1)
    assert not store.is_large((), 10**6, 1)


def played(config, rounds, owned=False, count=1):
    compiled.forget()
    built = build(configs.resolve(config))
    used = jax.local_devices()[:count]
    program = make_program(built.federation, used, owned=owned)
    play = make_round(built.federation, built.arrays, built.sizes, used, program)
    state, reports = built.state, []
    for _ in range(rounds):
        state, report = play(state, built.key)
        reports.append(report)
    return built, state, reports


def numbers(state, reports):
    """All of it as arrays, of stores the rows of all twelve clients."""

    def whole(leaf):
        return leaf.take(np.arange(12)) if isinstance(leaf, Store) else numbers_of(leaf)

    leaves = jax.tree.map(whole, (state, reports), is_leaf=lambda leaf: isinstance(leaf, Store))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(leaves)]


@pytest.mark.parametrize(
    ("presets", "fields", "exact"),
    [
        ("", {"local__rule": "spmc", "aggregator__name": "foolsgold"}, True),
        ("", {"local__rule": "scaffold", "aggregator__name": "mean"}, False),
    ],
)
def test_the_host_keeps_what_the_device_would(monkeypatch, presets, fields, exact):
    config = small.config(3, presets, **FIELDS, **fields)
    with monkeypatch.context() as patch:
        patch.setattr(store, "LIMIT", 0)
        built, far, far_reports = played(config, 3)
    assert any(built.federation.large)
    _, near, near_reports = played(config, 3, owned=True)
    kept = [part for part in (far.rule.clients, far.aggregator) if isinstance(part, Store)]
    drawn = {int(one) for report in far_reports for one in report.client_ids}
    assert len(drawn) < 12
    assert len(kept) == sum(built.federation.large)
    assert all(set(part.ids) == drawn for part in kept)
    pairs = zip(numbers(far, far_reports), numbers(near, near_reports), strict=True)
    for a, b in pairs:
        if exact:
            np.testing.assert_array_equal(a, b)
        else:  # a running sum in place of a mean over all
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_state_that_is_owned_is_written_on_and_another_is_not(small_cache):
    config = configs.resolve(small.config(2, "spmc", **FIELDS))
    built = build(config)
    used = jax.local_devices()[:1]
    placed = place_inputs(built.arrays, built.sizes, built.federation.held, used)
    play = make_program(built.federation, used, owned=True)
    first, _ = play(placed, built.state, built.key)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(built.state))
    second, _ = play(placed, first, built.key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first.rule.clients))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(second))


def test_a_run_with_a_store_goes_on_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "LIMIT", 0)
    run = small.config(2, "spmc", **FIELDS)
    straight = experiment.run(run)
    experiment.run(small.config(1, "spmc", **FIELDS), tmp_path / "run")
    files = list((tmp_path / "run" / "checkpoint").glob("clients-*"))
    assert [path.name for path in files] == ["clients-1-0.rows"]
    resumed = experiment.run(run, tmp_path / "run")
    chex.assert_trees_all_equal(resumed.variables, straight.variables)
    assert [small.without_times(x) for x in resumed.history] == [small.without_times(x) for x in straight.history]
    (path,) = (tmp_path / "run" / "checkpoint").glob("clients-*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"clients-2-0\.rows has changed"):
        experiment.run(small.config(3, "spmc", **FIELDS), tmp_path / "run")


def test_a_checkpoint_of_another_kind_of_state_is_told(monkeypatch, tmp_path):
    config = configs.resolve(small.config(1, "spmc", **FIELDS))
    near = build(config).state
    monkeypatch.setattr(store, "LIMIT", 0)
    compiled.forget()
    far = build(config).state
    checkpoints = Checkpoints(tmp_path / "checkpoint")
    checkpoints.save(1, near)
    with pytest.raises(DamagedError, match="another structure"):
        checkpoints.restore(1, far)
    checkpoints.close()


def test_no_program_of_a_round_holds_a_row_of_all_clients(monkeypatch):
    """Neither the start nor the making of rows of clients that are drawn for the first time."""
    monkeypatch.setattr(store, "LIMIT", 0)
    config = configs.resolve(small.config(1, "spmc", **{**FIELDS, "federation__num_clients": 40}))
    built = build(config)
    one = sum(x.nbytes for x in jax.tree.leaves(built.state.variables))
    info = built.dataset.info
    start = parts.make_start(config, info, None, stored=True)
    settings = experiment.setup.array_settings(config)
    lowered = start.lower(built.key, built.state.roster, settings, (), None)
    taken = lowered.compile().memory_analysis()
    assert taken.temp_size_in_bytes + taken.output_size_in_bytes < 10 * one
    made = jax.jit(
        lambda variables, ids: federation.trees.take_rows(built.federation.rule.init(variables, 40).clients, ids)
    )
    taken = made.lower(built.state.variables, np.zeros(store.AT_ONCE, np.int32)).compile().memory_analysis()
    assert taken.temp_size_in_bytes < one
