"""What a run leaves: the history, the files, the saved model, and how the settings show in them."""

import json
import math
import os
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import config as configs
from fedjax_spmc import evaluate, experiment, rounds, setup
from fedjax_spmc.attacks import triggers
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.experiment import build
from tests import small

pytestmark = [pytest.mark.usefixtures("small_cache"), pytest.mark.pictures]

FILES = {
    "checkpoint",
    "config.json",
    "curves.png",
    "environment.json",
    "metrics.jsonl",
    "model.npz",
    "partition.npz",
    "partition.png",
    "roster.json",
    "attack.npz",
    "summary.json",
    "verdicts.png",
    "tensorboard",
}
KEYS = (
    "round A ASR ASR_all R V R_all V_all per_class A_top3 perplexity train_loss weights scores flagged client_ids "
    "rule_flags tpr fpr precision f1 auc participating attacking malicious non_finite aggregation_failed "
    "unattacked_rounds confidence A_without_rejection ASR_without_rejection rejected_clean rejected_triggered "
    "histograms round_seconds eval_seconds"
)


@pytest.fixture(scope="module")
def loaded(finished_run):
    return experiment.load(finished_run)


@pytest.fixture(scope="module")
def dataset(loaded):
    return setup.load_data(loaded.config)


def no_constant(name):
    raise AssertionError(f"{name} is no JSON")


# Files.


def test_the_files_of_a_run(finished_run):
    assert {path.name for path in finished_run.iterdir()} - {".lock"} == FILES
    for name in ("curves.png", "partition.png", "verdicts.png"):
        assert (finished_run / name).read_bytes().startswith(b"\x89PNG")
    for name in ("config.json", "environment.json", "summary.json"):
        assert isinstance(json.loads((finished_run / name).read_text(), parse_constant=no_constant), dict)
        assert (finished_run / name).stat().st_mode & 0o777 == 0o644


def test_the_lines_hold_the_public_keys_in_order_and_only_json(finished_run):
    text = (finished_run / "metrics.jsonl").read_text()
    for index, line in enumerate(json.loads(line, parse_constant=no_constant) for line in text.splitlines()):
        assert " ".join(line) == KEYS
        assert line["round"] == index
        assert line["R"] == 100 - line["ASR"]
        assert line["V"] == (line["A"] + line["R"]) / 2
        assert line["V_all"] == (line["A"] + line["R_all"]) / 2
        assert len(line["per_class"]) == 10
        assert line["client_ids"] == [0, 1, 2, 3]
        assert math.isclose(sum(line["weights"]), 1, abs_tol=1e-6)
        assert (line["rule_flags"], line["tpr"], line["fpr"]) == (False, None, None)


def test_the_environment_says_what_the_run_was_made_with(finished_run, dataset):
    environment = json.loads((finished_run / "environment.json").read_text())
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["device"]["platform"] == "cpu"
    assert environment["data"]["fingerprint"] == dataset.fingerprint
    assert environment["data"]["input_shape"] == [32, 32, 3]


def test_the_summary_means_the_last_five_rounds(finished_run, loaded):
    summary = json.loads((finished_run / "summary.json").read_text())
    assert (summary["status"], summary["rounds"], summary["oracle"]) == ("finished", 4, False)
    assert (summary["mean_of"], summary["tpr_run"]) == (4, None)
    for name in ("A", "ASR", "R", "V", "ASR_all", "R_all", "V_all", "train_loss"):
        values = [line[name] for line in loaded.history][-5:]
        assert summary[name] == pytest.approx(math.fsum(values) / len(values), abs=1e-12)
        assert summary[f"{name}_last"] == values[-1]


def test_tensorboard_comes_without_torch(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch", "tensorboardX")]:
        monkeypatch.delitem(sys.modules, name)
    from fedjax_spmc.record.tensorboard import TensorBoard

    TensorBoard(tmp_path, pytest.fail).add({"confidence": 0.0, "round": 0, "A": 50.0})
    assert "tensorboardX.summary" in sys.modules
    assert "torch" not in sys.modules
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, name)


def test_tensorboard_has_a_value_for_every_round(finished_run, loaded):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (path,) = (finished_run / "tensorboard").iterdir()
    content, position, values = path.read_bytes(), 0, {}
    while position < len(content):
        length, ahead = struct.unpack("<QI", content[position : position + 12])
        (behind,) = struct.unpack("<I", content[position + 12 + length : position + 16 + length])
        assert ahead == masked_crc32c(content[position : position + 8])
        assert behind == masked_crc32c(content[position + 12 : position + 12 + length])
        event = Event.FromString(content[position + 12 : position + 12 + length])
        assert event.file_version == ("" if position else "brain.Event:2")
        assert abs(event.wall_time - path.stat().st_mtime) < 3600
        values |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        position += 16 + length
    for line in loaded.history:
        assert values["A", line["round"] + 1] == pytest.approx(line["A"])
        assert values["ASR", line["round"] + 1] == pytest.approx(line["ASR"])


# Results.


def test_a_run_without_a_workdir_gives_the_same_and_writes_nothing(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = experiment.run(small.config())
    assert os.listdir(tmp_path) == []
    assert [small.without_times(line) for line in result.history] == [
        small.without_times(line) for line in loaded.history
    ]
    assert jax.tree.structure(result.variables) == jax.tree.structure(loaded.variables)
    jax.tree.map(np.testing.assert_array_equal, result.variables, loaded.variables)
    assert configs.flatten(result.config) == configs.flatten(loaded.config)
    for mine, read in zip(result.verdicts, loaded.verdicts, strict=True):
        for first, second in zip(mine, read, strict=True):
            assert first.dtype == second.dtype
            np.testing.assert_array_equal(first, second)


def test_load_gives_numpy_verdicts_and_the_config(loaded):
    assert [type(column) for column in loaded.verdicts[0]] == [np.ndarray] * 3
    assert [column.dtype.name for column in loaded.verdicts[0]] == ["float32", "float32", "bool"]
    assert loaded.config.local.batch_size == 8


def test_evaluate_prints_the_last_line_exactly(finished_run, loaded, capsys):
    assert evaluate.main([str(finished_run), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    printed = json.loads(out)
    assert printed == {name: loaded.history[-1][name] for name in printed}
    assert list(printed) == ["A", "ASR", "ASR_all", "R", "V", "R_all", "V_all", "per_class", "A_top3", "perplexity"]
    assert evaluate.main([str(finished_run)]) == 0
    assert f"A {printed['A']:>15.2f}".split() == capsys.readouterr().out.splitlines()[0].split()


def test_the_numbers_are_those_of_numpy_on_the_saved_model(finished_run, loaded, dataset):
    """Everything anew: normalise, stamp, three layers, argmax, count."""
    with np.load(finished_run / "model.npz") as arrays:
        weights = {name: arrays[name].astype(np.float64) for name in arrays}
    images = (dataset.test_inputs / 255.0 - np.array(dataset.info.mean)) / np.array(dataset.info.std)

    def predict(images):
        values = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        values = np.maximum(values @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
        values = np.maximum(values @ weights["fc2.weight"].T + weights["fc2.bias"], 0)
        return np.argmax(values @ weights["cls.weight"].T + weights["cls.bias"], axis=1)

    labels, target = dataset.test_labels, loaded.config.attack.target_label
    correct = predict(images) == labels
    stamped = images.copy()
    for channel, row, column in triggers.PRESETS["fdcr_paper"].positions:
        stamped[:, row, column, channel] = (1.0 - dataset.info.mean[channel]) / dataset.info.std[channel]
    hits = predict(stamped) == target
    line = loaded.history[-1]
    assert line["A"] == pytest.approx(100 * correct.mean(), abs=1e-9)
    assert line["ASR"] == pytest.approx(100 * hits[labels != target].mean(), abs=1e-9)
    assert line["ASR_all"] == pytest.approx(100 * hits.mean(), abs=1e-9)
    for label in range(10):
        assert line["per_class"][label] == pytest.approx(100 * correct[labels == label].mean(), abs=1e-9)


# Settings.


@pytest.mark.slow
def test_without_an_attack_nothing_is_said_of_it(tmp_path, capsys):
    result = experiment.run(small.config(rounds=1, attack__name="none"), tmp_path / "run", stream=None)
    (line,) = small.lines(tmp_path / "run")
    assert [line[name] for name in ("ASR", "ASR_all", "R", "V", "R_all", "V_all", "tpr")] == [None] * 7
    assert (line["A"] > 0, line["fpr"]) == (True, None)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["ASR"], summary["V_last"], summary["A_last"]) == (None, None, line["A"])
    assert evaluate.main([str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["ASR", "-"]
    assert result.history[0]["V"] is None


@pytest.mark.slow
def test_only_k_of_n_clients_take_part():
    fields = {"federation__num_clients": 6, "federation__clients_per_round": 2, "partition__min_size": 8}
    result = experiment.run(small.config(rounds=4, **fields))
    drawn = [line["client_ids"] for line in result.history]
    assert all(len(ids) == 2 and ids == sorted(set(ids)) and set(ids) <= set(range(6)) for ids in drawn)
    assert len({tuple(ids) for ids in drawn}) > 1
    for line in result.history:
        assert len(line["weights"]) == len(line["scores"]) == len(line["flagged"]) == 2
        assert line["malicious"] == [one == 5 for one in line["client_ids"]]


@pytest.mark.slow
def test_clients_too_small_for_a_batch_take_no_step():
    config = small.config(rounds=1, local__batch_size=32, partition__name="quantity", partition__min_size=1)
    resolved = configs.resolve(config)
    sizes = [len(part) for part in setup.divide(resolved, setup.load_data(resolved))]
    assert min(sizes) < 32 <= max(sizes)
    (line,) = experiment.run(config).history
    assert [weight > 0 for weight in line["weights"]] == [size >= 32 for size in sizes]
    assert (line["non_finite"], line["aggregation_failed"]) == (0, 0)
    with pytest.raises(ConfigError, match=rf"local\.batch_size = 200 .* at most {max(sizes)}"):
        experiment.run(small.config(local__batch_size=200, partition__name="quantity", partition__min_size=1))


def test_the_last_clients_or_random_ones_are_malicious():
    def malicious(placement, seed):
        fields = {"attack__placement": placement, "attack__malicious_fraction": 0.5, "seed": seed}
        return setup.roster(configs.resolve(small.config(**fields)), jax.random.key(seed)).malicious.tolist()

    assert malicious("last", 0) == malicious("last", 1) == [False, False, True, True]
    drawn = [tuple(malicious("random", seed)) for seed in range(8)]
    assert all(sum(who) == 2 for who in drawn)
    assert len(set(drawn)) > 1
    assert malicious("random", 3) == list(drawn[3])


@pytest.mark.slow
def test_the_attack_keeps_to_its_schedule(dataset):
    """Outside of the schedule the models are those of a run without poison; inside they are not."""
    config = configs.resolve(small.config(attack__schedule__first=1, attack__schedule__last=5))
    built = build(config, dataset)
    roster, own = built.state.roster, built.state.attack["badnets"]
    assert (int(roster.first), int(roster.last)) == (1, 5)
    play = rounds.make_round(built.federation, built.arrays, built.sizes)

    def models(first, last, fraction=0.5):
        who = roster._replace(first=jnp.int32(first), last=jnp.int32(last))
        attack = {"badnets": own._replace(fraction=jnp.float32(fraction))}
        state, leaves = built.state._replace(roster=who, attack=attack), []
        for _ in range(3):
            state, _ = play(state, built.key)
            leaves.append(np.asarray(jax.tree.leaves(state.variables.params)[0]))
        return leaves

    def agree(one, other):
        return [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]

    honest, always = models(0, 9, fraction=0.0), models(0, 9)
    assert agree(always, honest) == [False, False, False]
    assert agree(models(3, 9), honest) == [True, True, True]
    assert agree(models(1, 9), honest) == [True, False, False]
    assert agree(models(0, 0), always) == [True, False, False]


def test_evaluations_are_every_so_many_rounds_and_at_the_end(loaded):
    result = experiment.run(small.config(rounds=3, federation__eval_every=2))
    assert [line["round"] for line in result.history] == [1, 2]
    known = [small.without_times(loaded.history[index]) for index in (1, 2)]
    assert [small.without_times(line) for line in result.history] == known


def test_seeds_differ(dataset):
    states = [build(configs.resolve(small.config(seed=seed)), dataset).state for seed in (0, 0, 1, 2**32 - 1)]
    first = [np.asarray(jax.tree.leaves(state.variables.params)[0]) for state in states]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    assert np.isfinite(first[3]).all()


@pytest.mark.slow
def test_digits_are_learnt_and_the_backdoor_works():
    fields = {"data__name": "digits", "local__rule": "sgd", "aggregator__name": "mean", "local__epochs": 2}
    config = small.config(rounds=8, **fields, attack__malicious_fraction=0.5, local__batch_size=16)
    for name in ("num_train", "num_test"):
        del config.data.options[name]
    history = experiment.run(config).history
    assert history[-1]["A"] > 80
    assert history[-1]["ASR"] > 50
