"""The benchmarks run, at toy size, and say what they promise; no time is asserted."""

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from fedjax_spmc import local_rules, models

BENCH = Path(__file__).resolve().parent.parent / "experiments" / "bench"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def json_line(script, capsys, *argv: str) -> dict[str, float]:
    script("bench_sweep").main([*argv, "--repeats=1", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    return json.loads(line)


def test_products_and_loops_are_counted(script):
    counting = script("counting")
    left, right = jnp.zeros((5, 7)), jnp.zeros((7, 11))
    plain = counting.of_call(jnp.matmul, left, right)
    assert plain.products == 2 * 5 * 7 * 11
    assert not plain.in_loops
    assert plain.bytes > 0

    def thrice(left, right):
        return jax.lax.fori_loop(0, 3, lambda i, x: x + jnp.sin(x @ right) @ right.T, left)

    looped = counting.of_call(thrice, left, right)
    assert looped.in_loops
    assert looped.products == 3 * 2 * 2 * 5 * 7 * 11
    assert looped.flops < looped.products, "XLA counts a loop's body once"
    unused = counting.of_call(lambda left, right: (left @ right, left)[1], left, right)
    assert unused.products == 0
    images, kernel = jnp.zeros((1, 3, 6, 6)), jnp.zeros((4, 3, 3, 3))
    convolved = counting.of_call(lambda x, k: jax.lax.conv(x, k, (1, 1), "VALID"), images, kernel)
    assert convolved.products == 2 * (4 * 4 * 4) * (3 * 3 * 3)


def test_a_step_of_a_perceptron_costs_its_products(script):
    model = models.make("mlp", hidden=(16,), image_shape=(4, 4, 3))
    one = script("counting").of_step(model, local_rules.make("sgd"), 8)
    forward = 2 * 8 * (48 * 16 + 16 * 10)
    assert one.products == 2 * forward + 2 * 8 * 16 * 10  # the first layer needs no gradient by the images
    assert one.products <= one.flops < 2 * one.products


@pytest.mark.parametrize("rule", ["sgd", "spmc"])
def test_products_of_simple_cnn_are_those_by_hand(rule, script):
    counting, model = script("counting"), models.make("simple_cnn")
    assert counting.of_step(model, local_rules.make(rule), 8).products == counting.simple_cnn_flops(
        rule, 8, as_written=True
    )


@pytest.mark.parametrize("rule", ["sgd", "spmc"])
def test_bytes_of_simple_cnn_are_about_those_of_whole_products(rule, script, monkeypatch):
    """XLA can count where the convolutions are one product each, as on a GPU; it copies and reads about as much."""
    counting, model = script("counting"), models.make("simple_cnn")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    whole = counting.of_step(model, local_rules.make(rule), 64)
    assert 0.8 < counting.simple_cnn_bytes(rule, 64) / whole.bytes < 1.25


@pytest.mark.slow
def test_experiments(script, capsys):
    small = ("--images=800", "--experiments=1,2", "--methods=sgd", "--shares=unequal")
    found = json_line(script, capsys, "--parts=experiments", *small)
    for count in (1, 2):
        for name in ("sweep_seconds", "alone_seconds", "ratio", "gflops", "alone_gflops"):
            assert found.pop(f"{name}_sgd_unequal_{count}") > 0
    assert found == {}


@pytest.mark.slow
def test_clients(script, capsys):
    found = json_line(script, capsys, "--parts=clients", "--images=64", "--clients=2", "--methods=spmc")
    for name in ("seconds", "ms", "gflops"):
        assert found.pop(f"clients_{name}_spmc_2") > 0
    assert found == {}


@pytest.mark.slow
def test_s1(script, capsys):
    pytest.importorskip("torch")
    found = json_line(script, capsys, "--parts=s1", "--images=200", "--s1-clients=2")
    names = ("seconds", "torch_seconds", "clients_per_second", "torch_clients_per_second", "ratio", "gflops", "step_mb")
    assert sorted(found) == sorted(f"s1_{name}" for name in names)
    assert all(value > 0 for value in found.values())


def test_an_unknown_part_is_refused(script, capsys):
    assert script("bench_sweep").main(["--parts=experimants"]) == 2
    assert "(did you mean experiments?)" in capsys.readouterr().err
    assert "bench_sweep" in sys.modules


SCRIPTS = ("ceilings", "count_waste", "host_work", *sorted(path.stem for path in BENCH.glob("bench_*.py")))


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_takes_flags_as_all_commands_do(name, script, capsys):
    if name in ("bench_step", "bench_text"):
        pytest.importorskip("torch")
    main = script(name).main
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python ")
    assert main(["--no-such-flag"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: --no-such-flag is no flag of this command; usage: ")
    assert said.err.count("\n") == 1


def test_whole_numbers_in_a_list(script, capsys):
    assert script("bench_sweep").main(["--clients=ten"]) == 2
    assert "--clients = ('ten',) is not allowed: it must be a list of whole numbers." in capsys.readouterr().err


@pytest.mark.slow
def test_texts(script, capsys, monkeypatch):
    pytest.importorskip("torch")
    bench = script("bench_text")
    small = {"width": 8, "vocabulary": 30, "length": 6, "clients": 2, "batches": 2, "batch": 3}
    monkeypatch.setattr(bench, "WORKLOADS", {name: work._replace(**small) for name, work in bench.WORKLOADS.items()})
    monkeypatch.setattr(bench.devices, "use_cores", lambda: None)
    bench.main(["--repeats=1", "--threads=1", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert sorted(found) == sorted(f"{what}_{name}" for name in bench.WORKLOADS for what in ("ms", "torch_ms", "ratio"))
    assert all(value > 0 for value in found.values())
    assert bench.main(["--workloads=nothing"]) == 2


def test_the_masks_round_is_timed_beside_the_same_without(script, capsys, tmp_path, small_cache):
    file = tmp_path / "masked.py"
    file.write_text(
        "from tests import small\n\n\n"
        "def get_config(arg=''):\n"
        "    return small.config(3, attack__name=('badnets', 'neurotoxin'), attack__options__neurotoxin__ratio=0.9)\n"
    )
    assert script("bench_mask").main([f"--config={file}", "--repeats=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratio"] > 0
    assert found["seconds"].keys() == {"masked", "plain"}


def test_only_a_round_with_a_mask_is_timed(script, capsys):
    assert script("bench_mask").main(["--config=configs/digits.py"]) == 2
    assert "neurotoxin" in capsys.readouterr().err


@pytest.mark.slow
def test_flip(script, capsys, monkeypatch):
    pytest.importorskip("torch")
    bench = script("bench_flip")
    few = {"universal_steps": 2, "pair_steps": 2, "pairs": 1}
    small = {"lite": bench.Setting("lite", options=few, images=40, epochs=1)}
    monkeypatch.setattr(bench, "SETTINGS", small)
    monkeypatch.setattr(bench.devices, "use_cores", lambda: None)
    bench.main(["--clients=1", "--repeats=1", "--threads=1", "--settings=lite", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    cases = [f"{what}_lite_{visit}_1" for visit in bench.VISITS for what in ("seconds", "torch_seconds", "ratio")]
    assert sorted(found) == sorted(cases)
    assert all(value > 0 for value in found.values())
    code = bench.Setting("reference", "reference").work(first=True)
    assert (code.batches, code.pairs, code.short_steps) == (100, 45, 50)
    assert bench.main(["--settings=nothing"]) == 2
