"""Partitions: every index exactly once, pure in the seed, and the reference's own draws."""

import numpy as np
import pytest

from fedjax_spmc.data import partition
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.registry import partitions

LABELS = np.random.RandomState(7).randint(0, 10, 2000)


@pytest.mark.parametrize("case", ["d0", "d3", "d5"])
def test_dirichlet_draws_what_the_reference_draws(shared, case):
    golden = np.load(shared / "golden" / f"spmc_partition_{case}.npz")
    rng = np.random.RandomState(int(golden["numpy_seed"]))
    cut, validation = partition.split_validation(len(golden["labels"]), 0.1, rng)
    clients = partition.dirichlet(golden["labels"][:cut], int(golden["n_clients"]), float(golden["beta"]), rng)

    np.testing.assert_array_equal(validation, golden["validation_indices"])
    np.testing.assert_array_equal([len(client) for client in clients], golden["client_sizes"])
    np.testing.assert_array_equal(np.concatenate(clients), golden["client_indices_concatenated"])
    np.testing.assert_array_equal(rng.random_sample(3), golden["uniform_after"])


def test_the_contract_test_knows_every_partition():
    assert {"dirichlet", "iid", "quantity", "shards"} <= set(partitions.names())


@pytest.mark.parametrize("num_clients", [1, 7, 10])
@pytest.mark.parametrize("name", ["dirichlet", "iid", "quantity", "shards"])
def test_every_index_exactly_once_and_the_same_for_the_same_seed(name, num_clients):
    divide = partitions.make(name)
    before = np.random.get_state()[1].copy()  # the global generator must stay untouched
    clients = divide(LABELS, num_clients, np.random.RandomState(3))
    again = divide(LABELS, num_clients, np.random.RandomState(3))

    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert len(clients) == num_clients
    assert all(client.dtype == np.int32 and client.ndim == 1 for client in clients)
    np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(len(LABELS)))
    for one, other in zip(clients, again, strict=True):
        np.testing.assert_array_equal(one, other)
    if num_clients > 1:
        other_seed = divide(LABELS, num_clients, np.random.RandomState(4))
        assert not np.array_equal(np.concatenate(clients), np.concatenate(other_seed))


@pytest.mark.parametrize("name", ["dirichlet", "quantity"])
def test_min_size_is_met(name):
    clients = partitions.make(name, beta=0.3, min_size=60)(LABELS, 10, np.random.RandomState(0))
    assert min(map(len, clients)) >= 60


def test_a_small_beta_skews_more():
    def classes_seen(beta):
        clients = partition.dirichlet(LABELS, 10, beta, np.random.RandomState(0), min_size=1)
        return np.mean([(np.bincount(LABELS[client], minlength=10) > 5).sum() for client in clients])

    assert classes_seen(0.05) < classes_seen(0.5) < classes_seen(100)


@pytest.mark.parametrize("beta", [1e-3, 1e-300])
def test_a_degenerate_draw_still_gives_every_index_once(beta):
    # 1e-300: numpy's gamma draws underflow and the proportions are NaN.
    for divide in (partition.dirichlet, partition.quantity):
        clients = divide(LABELS, 10, beta, np.random.RandomState(1), min_size=0)
        np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(len(LABELS)))


def test_beta_zero_is_an_equal_division_of_every_class():
    clients = partition.dirichlet(LABELS, 4, 0, np.random.RandomState(0))
    counts = np.array([np.bincount(LABELS[client], minlength=10) for client in clients])
    assert (counts.max(axis=0) - counts.min(axis=0)).max() <= 1


def test_shards_limit_the_classes_of_a_client():
    labels = np.repeat(np.arange(10), 100)
    clients = partitions.make("shards", shards=2)(labels, 10, np.random.RandomState(0))
    assert all(len(np.unique(labels[client])) <= 2 and len(client) == 100 for client in clients)


def test_iid_sizes_differ_by_one_at_most():
    sizes = [len(client) for client in partition.iid(LABELS[:1003], 10, np.random.RandomState(0))]
    assert max(sizes) - min(sizes) == 1


def test_a_missing_class_does_no_harm():
    labels = LABELS[(LABELS != 0) & (LABELS != 4)]
    clients = partition.dirichlet(labels, 5, 0.5, np.random.RandomState(0))
    np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(len(labels)))


@pytest.mark.parametrize(
    ("name", "num_clients", "options", "named"),
    [
        ("dirichlet", 201, {}, ["partition.min_size = 10", "partition.beta", "at most 9"]),
        ("quantity", 10, {"min_size": 201}, ["partition.min_size = 201", "partition.beta", "at most 200"]),
        ("iid", 2001, {}, ["federation.num_clients = 2001", "at most 2000"]),
        ("shards", 10, {"shards": 201}, ["partition.shards = 201", "at most 200"]),
        ("iid", 0, {}, ["federation.num_clients = 0", "at least 1"]),
        ("dirichlet", 0, {}, ["federation.num_clients = 0", "at least 1"]),
    ],
)
def test_what_cannot_be_divided_is_refused_at_once(name, num_clients, options, named):
    with pytest.raises(ConfigError) as caught:
        partitions.make(name, **options)(LABELS, num_clients, np.random.RandomState(0))
    assert all(word in str(caught.value) for word in named), str(caught.value)


@pytest.mark.parametrize("divide", [partition.dirichlet, partition.quantity])
def test_a_hopeless_min_size_ends(divide, monkeypatch):
    monkeypatch.setattr(partition, "MAX_ATTEMPTS", 20)
    with pytest.raises(ConfigError, match=r"partition\.min_size = 200 .* 20 draws with partition\.beta = 0\.1"):
        divide(LABELS, 10, 0.1, np.random.RandomState(0), min_size=200)


def test_beta_zero_with_an_impossible_min_size_ends_after_one_attempt():
    with pytest.raises(ConfigError, match=r"partition\.beta = 0"):
        partition.dirichlet(LABELS, 10, 0, np.random.RandomState(0), min_size=200)


@pytest.mark.parametrize(
    ("name", "options"),
    [("dirichlet", {"beta": 0.0}), ("dirichlet", {"min_size": -1}), ("shards", {"shards": 0}), ("iid", {"beta": 1.0})],
)
def test_options_are_checked(name, options):
    with pytest.raises(ConfigError):
        partitions.make(name, **options)


@pytest.mark.parametrize("num_examples", [1, 9, 10, 1797, 7291, 50_000, 60_000])
def test_the_split_counts_as_the_reference(num_examples):
    cut, validation = partition.split_validation(num_examples, 0.1, np.random.RandomState(0))
    assert cut == int(0.9 * num_examples)
    np.testing.assert_array_equal(np.sort(validation), np.arange(cut, num_examples))
