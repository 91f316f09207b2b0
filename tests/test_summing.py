"""Models that are summed as they are trained: the mean that the guarded aggregator makes of all uploads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators, attacks, experiment, local_rules, preaggregators, summing, sweep, trees
from fedjax_spmc.aggregators.guard import usable_rows
from fedjax_spmc.devices import CLIENTS as CLIENT_AXIS
from fedjax_spmc.devices import map_clients_over
from fedjax_spmc.keys import root_key
from fedjax_spmc.one_round import average_stats
from fedjax_spmc.registry import aggregators as registered
from fedjax_spmc.training import Trained, map_clients
from fedjax_spmc.types import Upload, Variables
from tests import small

CLIENTS = 131
OLD = Variables({"w": jnp.full((3, 5), 7.0), "b": jnp.full(5, -1.0)}, {"mean": jnp.full(2, 3.0)})


def tables(absent, broken):
    """What clients that never saw data might leave: any numbers, NaN of some, no steps of others; all CLIENTS."""
    rng = np.random.default_rng(1)
    leaves, structure = jax.tree.flatten(OLD)
    made = [rng.normal(size=(CLIENTS, *leaf.shape)).astype(np.float32) for leaf in leaves]
    made[0][list(broken), 0] = np.nan
    steps = 1 + np.arange(CLIENTS, dtype=np.int32) % 7
    steps[list(absent)] = 0
    loss = rng.random(CLIENTS).astype(np.float32)
    variables = jax.tree.unflatten(structure, made)
    return jax.tree.map(jnp.asarray, Trained(variables, (), steps, {"loss": loss}, {}))


class Ways:
    """The same mean, of sums and of uploads, as programs of what all clients leave."""

    def __init__(self, count, weights="size", map_bins=map_clients):
        rule = aggregators.make("mean", weights=weights)
        ids = jnp.asarray(np.random.default_rng(2).permutation(CLIENTS)[:count], jnp.int32)
        sizes = jnp.asarray(np.random.default_rng(3).integers(1, 500, CLIENTS), jnp.int32)

        def sums(everyone):
            return summing.train(lambda client_id: trees.take_rows(everyone, client_id), ids, sizes, rule, map_bins)

        def mean(summed):
            variables, verdict, clients = summing.mean(summed, sizes[ids], rule, OLD)
            return variables, verdict, *clients

        def uploads(everyone):
            trained = trees.take_rows(everyone, ids)
            upload = Upload(
                OLD.params,
                trained.variables.params,
                sizes[ids].astype(jnp.float32),
                trained.steps > 0,
                client_ids=ids,
                steps=trained.steps,
                client_stats=trained.variables.stats,
            )
            params, verdict, _ = rule.aggregate(upload, (), root_key(0))
            usable = usable_rows(upload)
            variables = Variables(params, average_stats(upload, usable, verdict, OLD.stats))
            return variables, verdict, usable, trained.steps, trained.metrics

        self.sums, self.mean, self.of_uploads = jax.jit(sums), jax.jit(mean), jax.jit(uploads)

    def of_sums(self, everyone):
        """In two programs, as a round has them."""
        return self.mean(jax.device_put(self.sums(everyone), jax.devices()[0]))


@pytest.mark.parametrize(("count", "weights"), [(48, "size"), (50, "uniform"), (131, "size")])
def test_sums_make_what_the_guarded_mean_makes(count, weights):
    ways, all_of_them = Ways(count, weights), range(CLIENTS)
    for absent, broken in (((), ()), ((3, 77), (5, 60, 61)), (all_of_them, ()), ((), all_of_them)):
        everyone = tables(absent, broken)
        sums, uploads = ways.of_sums(everyone), ways.of_uploads(everyone)
        for ours, theirs in zip(jax.tree.leaves(sums), jax.tree.leaves(uploads), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
        kept = [bool((x == y).all()) for x, y in zip(jax.tree.leaves(sums[0]), jax.tree.leaves(OLD), strict=True)]
        assert kept == [all_of_them in (absent, broken)] * len(kept)


def test_devices_that_share_the_bins_make_the_same_bits():
    mesh, everyone = jax.sharding.Mesh(np.array(jax.devices()[:2]), (CLIENT_AXIS,)), tables((3,), (5,))
    shared = Ways(50, map_bins=functools.partial(map_clients_over, mesh, True)).of_sums(everyone)
    for ours, theirs in zip(jax.tree.leaves(shared), jax.tree.leaves(Ways(50).of_sums(everyone)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("count", [48, 50, 100, 1000])
def test_every_client_has_one_place_and_halves_and_eighths_are_alike(count):
    for seed in range(4):
        spread = 1 if seed == 0 else 400
        work = jnp.asarray(np.random.default_rng(seed).integers(100, 100 + spread, count), jnp.int32)
        rows, back, loads = jax.jit(summing.dealt)(work)
        assert rows.shape == (summing.BINS, -(-count // summing.BINS))
        places = np.asarray(rows).ravel()
        np.testing.assert_array_equal(places[np.asarray(back)], np.arange(count))
        assert (places == count).sum() == rows.size - count
        np.testing.assert_array_equal(loads, np.append(work, 0)[np.asarray(rows)].sum(axis=1))
        for parts in (2, 4, 8):
            each = np.asarray(loads).reshape(parts, -1).sum(axis=1)
            assert np.ptp(each) <= 2 * int(work.max())
        halves = np.asarray(loads).reshape(2, -1).sum(axis=1)
        assert np.ptp(halves) <= (0 if seed == 0 else 0.02 * halves.mean())


def test_who_may_be_summed():
    """Rules and aggregators that look at a single upload, or keep something of a client, are not."""
    mean, sgd = aggregators.make("mean"), local_rules.make("sgd")
    assert summing.can_be(sgd, mean)
    able = {name for name in registered.names() if summing.can_be(sgd, aggregators.make(name))}
    assert able == {"mean"}
    assert not summing.can_be(sgd, aggregators.make_behind(preaggregators.make(["clip"]), "mean"))
    assert {name for name in local_rules.names() if summing.can_be(local_rules.make(name), mean)} == {"fedprox", "sgd"}


MANY = {
    "federation__num_clients": 60,
    "federation__clients_per_round": 50,
    "partition__min_size": 2,
    "data__options__num_train": 1000,
    "model__options__hidden": (8,),
}


def test_a_federation_sums_where_nobody_looks(small_cache):
    def federation(**fields):
        return experiment.build(small.config(1, "fedavg", **MANY, **fields)).federation

    plain = federation()
    assert plain.sums_models(50)
    assert not plain.sums_models(47)
    assert not plain._replace(client_batch=50).sums_models(50)
    assert not plain._replace(oracle=True).sums_models(50)
    assert not plain._replace(attack=attacks.make(("sign_flip",))).sums_models(50)


@pytest.mark.slow
def test_a_sweep_sums_as_a_run_does(tmp_path, small_cache):
    config = small.config(2, "fedavg", **MANY)
    alone = experiment.run(config)
    (row,) = sweep.run(sweep.Sweep(config), tmp_path)
    cell = experiment.load(tmp_path / row["folder"])
    for ours, theirs in zip(jax.tree.leaves(cell.variables), jax.tree.leaves(alone.variables), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for line, other in zip(cell.history, alone.history, strict=True):
        for name in ("client_ids", "flagged", "tpr", "fpr", "non_finite", "aggregation_failed", "A"):
            assert line[name] == other[name], name
