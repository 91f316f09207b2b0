"""Runs of FLIP: kept and gone on with, their pictures, a sweep's memory, attackers with an optimiser of their own."""

import shutil

import chex
import jax
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import experiment, one_round, setup
from fedjax_spmc.parity import walk
from fedjax_spmc.report import read, triggers
from fedjax_spmc.sweep import plan, program
from fedjax_spmc.sweep.player import Player
from tests import small

pytestmark = pytest.mark.usefixtures("small_cache")

FLIP = {
    "data__options__num_classes": 4,
    "model__options__hidden": (8,),
    "local__options__universal_steps": 6,
    "local__options__pair_samples": 4,
    "local__options__pair_steps": 4,
    "local__options__pairs": 2,
    "local__options__threshold": 0.3,
    "local__options__size_limit": 1e4,
    "evaluation__confidence": 0.3,
}


@pytest.fixture(scope="module")
def finished(cache_folder, tmp_path_factory):
    """A run of three rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDJAX_SPMC_CACHE", str(cache_folder))
        small.share_compiled(cache_folder)
        folder = tmp_path_factory.mktemp("flip") / "run"
        experiment.run(small.config(3, "flip", **FLIP), folder)
    return folder


def test_a_run_that_was_interrupted_ends_with_the_same_bits(finished, tmp_path):
    folder = tmp_path / "run"
    experiment.run(small.config(1, "flip", **FLIP), folder)
    experiment.run(small.config(3, "flip", **FLIP), folder)
    small.assert_same_run(finished, folder)
    assert (finished / "rule.npz").read_bytes() == (folder / "rule.npz").read_bytes()


def test_the_run_folder_shows_what_a_benign_client_keeps(finished):
    with np.load(finished / "rule.npz") as arrays:
        kept = dict(arrays)
    assert sorted(kept) == ["client_id", "has", "masks", "patterns", "warm"]
    assert kept["client_id"] != 3  # the malicious one
    assert kept["masks"].shape == (4, 4, 32, 32)
    assert kept["patterns"].shape == (4, 4, 32, 32, 3)
    sizes = np.abs(kept["masks"]).sum(axis=(2, 3))
    assert ((sizes > 0) == kept["has"]).all()
    assert (kept["warm"][kept["has"]] > 0).all()


def test_the_report_draws_triggers_sizes_and_rates_over_confidence(finished, tmp_path):
    (run,) = read.read([finished]).runs
    captions = [one.caption for one in triggers.pictures(run)]
    assert [caption.split(" ")[0] for caption in captions][-2:] == ["sizes", "A"]
    with np.load(finished / "rule.npz") as arrays:
        towards = bool(arrays["has"][:, run.config["attack.target_label"]].any())
    assert any("mask times pattern" in caption and "first the true one" in caption for caption in captions) == towards
    assert all("<svg" in one.markup for one in triggers.pictures(run))
    bare = tmp_path / "bare"
    shutil.copytree(finished, bare)
    (bare / "rule.npz").unlink()
    (run,) = read.read([bare]).runs
    assert len(triggers.pictures(run)) == 1


def test_a_result_says_how_its_clients_searched(finished):
    (run,) = read.read([finished]).runs
    assert [one.letter for one in run.remarks] == ["f"]
    assert "preset lite, schedule parallel" in run.remarks[0].sentence


@pytest.mark.slow
def test_a_sweep_counts_what_clients_keep():
    """The memory of all clients enters a program for each experiment: as argument, on which the result is written.

    Noise stands for the triggers: a search, which keeps nothing more, takes long to compile.
    """
    fields = {"federation__num_clients": 40, "data__options__num_train": 800, "model__options__hidden": (8,)}
    fields["local__options__triggers"] = "noise"
    cells = plan.expand(plan.Sweep(small.config(1, "flip", **fields)))
    (group,) = plan.groups_of(cells)
    player = Player(group, setup.load_data(cells[0].config))
    state, _ = player.start(cells[0])
    kept = sum(x.nbytes for x in jax.tree.leaves(state.rule.clients))
    assert kept > 40 * 100 * 32 * 32 * 4 * 4
    layout = program.Layout(tuple(jax.local_devices()[:1]), program.EXPERIMENTS, 1)
    needed = player.memory(layout, cells[0])
    if needed is None:
        pytest.skip("this backend does not say how much memory a program takes")
    assert needed > kept
    assert program.largest_batch(8 * needed, 8, 0, 3 * needed) == 3


def uploads(**fields):
    """What the clients of round 0 have trained; the last one is malicious."""
    made = experiment.build(configs.resolve(small.config(1, "fedavg", model__options__hidden=(8,), **fields)))
    play = jax.jit(lambda state, key: one_round.train(made.federation, made.arrays, made.sizes, state, key))
    return play(made.state, made.key).trained.variables.params


ADAM = {"local__optimizer": "adam", "local__learning_rate": 1e-3}
OWN = {"attack__local__optimizer": "sgd", "attack__local__learning_rate": 0.05}


@pytest.mark.parametrize("first", [0, 5])
def test_attackers_may_train_with_sgd_where_the_others_take_adam(first):
    """And malicious clients that rest, if the config says so."""
    fields = {"attack__schedule__first": first}
    mixed = uploads(**ADAM, **OWN, **fields, attack__local__idle=first > 0)
    adam, sgd = uploads(**ADAM, **fields), uploads(local__learning_rate=0.05, **fields)
    for row, like in ((0, adam), (1, adam), (3, sgd)):
        chex.assert_trees_all_close(*(jax.tree.map(lambda x, row=row: x[row], one) for one in (mixed, like)), atol=1e-7)
    different = jax.tree.map(lambda a, b: bool(abs(a[3] - b[3]).max() > 1e-4), adam, sgd)
    assert all(jax.tree.leaves(different))


# Parity: the checks notice what was changed.


def changed(shared, tmp_path, name, change):
    with np.load(shared / "golden" / f"{name}.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    return {one.check: one for one in walk(tmp_path)}


def only(arrays, *beginnings):
    for name in list(arrays):
        if not name.startswith(beginnings):
            del arrays[name]


def test_a_changed_search_fails(shared, tmp_path):
    def change(arrays):
        only(arrays, "mnist/param", "mnist/x", "mnist/y", "mnist/single/init", "mnist/single/cost0.05")
        arrays["mnist/single/cost0.05/noise_mask"][1] += 0.02

    found = changed(shared, tmp_path, "flip_inversion", change)
    assert found["inversion mnist single cost0.05, gradient"].verdict == "passed"
    assert found["inversion mnist single cost0.05"].verdict == "failed"


def test_a_changed_event_fails(shared, tmp_path):
    def change(arrays):
        only(arrays, "fmnist/")
        events = str(arrays["fmnist/call1/events_json"])
        arrays["fmnist/call1/events_json"] = np.array(events.replace('"target": 9', '"target": 8', 1))
        arrays["fmnist/call0/mask"][3] *= 1.5

    found = changed(shared, tmp_path, "flip_hardening", change)
    assert found["hardening fmnist call0, events"].verdict == "passed"
    assert found["hardening fmnist call0, scores"].verdict == "failed"
    assert found["hardening fmnist call0, weights"].verdict == "failed"
    assert found["hardening fmnist call1, events"].verdict == "failed"
