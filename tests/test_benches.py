"""The benchmarks run, at toy size, and say what they promise; no time is asserted."""

import importlib
import io
import json
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import local_rules, models, registry, store

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
    assert plain.moved == 4 * (5 * 7 + 7 * 11 + 5 * 11)
    assert not plain.in_loops
    assert plain.bytes > 0

    def thrice(left, right):
        return jax.lax.fori_loop(0, 3, lambda i, x: x + jnp.sin(x @ right) @ right.T, left)

    looped = counting.of_call(thrice, left, right)
    assert looped.in_loops
    assert looped.products == 3 * 2 * 2 * 5 * 7 * 11
    assert looped.moved == 3 * 2 * plain.moved
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
    assert sorted(found) == sorted(f"s1_{name}" for name in (*names, "gflop", "mb"))
    assert all(value > 0 for value in found.values())


def test_one_step_a_client(script, capsys, monkeypatch):
    monkeypatch.setattr(script("bench_sweep"), "ONE_STEP", ("mlp",))
    found = json_line(script, capsys, "--parts=one_step", "--one-step-clients=3")
    for name in ("ms_whole", "ms_training", "whole_by_training", "gflop", "mb"):
        assert found.pop(f"one_step_{name}_mlp") > 0
    assert found == {}


def test_forked_torch_averages_what_one_process_would(script):
    torch = pytest.importorskip("torch")
    from fedjax_spmc.parity.torch_reference import forked_rounds

    torch.manual_seed(0)
    start = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
    examples = torch.randn(5, 4, 3, 2, 2), torch.randint(0, 10, (5, 4))
    means = []
    for shares in ((range(5),), (range(0, 5, 2), range(1, 5, 2))):
        server = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
        server.load_state_dict(start.state_dict())
        totals = [[torch.ones_like(tensor) for tensor in server.state_dict().values()] for _ in shares]
        for share, total in zip(shares, totals, strict=True):
            assert forked_rounds.train_share(server, share, examples, 4, 0.1, total) == len(share)
        forked_rounds.put_mean(server, totals, 5)
        means.append(server.state_dict()["1.weight"])
    torch.testing.assert_close(means[0], means[1])
    assert not torch.equal(means[0], start.state_dict()["1.weight"])


def test_without_pfl_its_part_is_left_out(script, capsys):
    assert script("bench_sweep").main(["--parts=pfl", "--pfl=false", "--json"]) == 0
    said = capsys.readouterr()
    assert said.out == "{}\n"
    assert said.err.startswith("pfl: left out, as false has no pfl and torch")


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


@pytest.fixture
def step_bench(script):
    pytest.importorskip("torch")
    bench = script("bench_step")
    yield bench
    registry.models._factories.pop("lenet", None)
    sys.modules.pop("lenet", None)


def test_steps_of_a_users_network(step_bench, capsys, monkeypatch):
    """Torch plays; in place of our rounds, whose programs take long to compile, a count of their steps."""
    asked = []

    def ours(model, work, method, fast_forms=True):
        asked.append((model, method, fast_forms))
        rounds = Mock(side_effect=lambda: work.clients * work.images // work.batch)
        federation = rounds.experiment.federation
        federation.model = models.make("mlp", hidden=(16,), image_shape=(4, 4, 3))
        federation.rule = local_rules.make("sgd")
        return rounds

    monkeypatch.setattr(step_bench, "ours", ours)
    assert step_bench.main(["--model=lenet", "--toy", "--repeats=1", "--threads=1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ("ms", "torch_ms", "ratio", "library_ms", "library_ratio", "gflop", "mb", "gflops")
    assert sorted(found) == sorted(f"{name}_{method}" for name in names for method in ("sgd", "spmc"))
    assert asked == [("lenet", method, fast) for method in ("sgd", "spmc") for fast in (True, False)]


def test_torch_has_the_same_networks(step_bench, script):
    """Tensor by tensor; below and in `test_networks.py` and `test_residual.py` number by number."""
    script("lenet")
    for name, work in step_bench.WORKLOADS.items():
        model = models.make(name, num_classes=work.classes, image_shape=work.shape)
        ours = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)).params)]
        theirs = [tuple(tensor.shape) for tensor in work.torch_model().parameters()]
        if name == "lenet":  # Flax's order and layout
            ours, theirs = sorted(map(np.prod, ours)), sorted(map(np.prod, theirs))
        assert ours == theirs, name


def test_two_blocks_a_stage_beside_torch(step_bench):
    """As in the thin ResNet-18, with fewer channels."""
    import torch

    network = step_bench.ResNet((2, 2, 2, 2), 4).eval()
    model = models.make("resnet18", width=4, image_shape=(8, 8, 3))
    named = {name: x.numpy() for name, x in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    variables = models.from_torch_dict(model, named)
    logits, _ = jax.jit(lambda variables, images: model.apply(*variables, images, False))(variables, images)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_a_users_lenet_beside_torch(step_bench, script):
    import torch

    script("lenet")
    model, network = models.make("lenet"), step_bench.lenet()
    convolutions = [network[0], network[3]]
    params = {f"Conv_{i}": layer for i, layer in enumerate(convolutions)}
    params |= {f"Dense_{i}": network[place] for i, place in enumerate((7, 9, 11))}
    made = {}
    for name, layer in params.items():
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        made[name] = {"kernel": weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T, "bias": bias}
    first = made["Dense_0"]["kernel"].reshape(32, 5, 5, 120)  # torch flattens channels first
    made["Dense_0"]["kernel"] = first.transpose(1, 2, 0, 3).reshape(800, 120)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    logits, _ = jax.jit(lambda params, images: model.apply(params, {}, images, False))(made, images)
    expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)


def test_a_case_of_many_users_answers(script, monkeypatch):
    """With the users' rows in a store, as where they are many."""
    monkeypatch.setattr(store, "LIMIT", 0)
    out = io.StringIO()
    script("bench_users").serve("spmc", 8, 2, ["\n", "checkpoint\n"], out, model="mlp")
    ready, played, saved = out.getvalue().splitlines()
    assert ready == "ready"
    assert json.loads(played)["steps"] == 2
    assert json.loads(saved)["checkpoint_seconds"] > 0
    assert json.loads(saved)["peak_mb"] >= json.loads(played)["peak_mb"] > 0


def test_many_users(script, capsys, monkeypatch):
    """The command beside processes that answer at once."""
    bench = script("bench_users")
    answer = json.dumps({"peak_mb": 5, "checkpoint_seconds": 2})
    code = f"import sys; print('ready', flush=True); [print('{answer}', flush=True) for _ in sys.stdin]"
    monkeypatch.setattr(bench, "command_of", lambda *case: [sys.executable, "-S", "-c", code])
    assert bench.main(["--drawn=3", "--repeats=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ("seconds", "peak_mb", "checkpoint_seconds", "checkpoint_peak_mb")
    cases = [f"{name}_{method}_3" for name in names for method in ("averaging", "spmc")]
    assert sorted(found) == sorted([*cases, "averaging_by_spmc_3"])
    assert found["peak_mb_spmc_3"] == 5
    monkeypatch.setattr(bench, "command_of", lambda *case: [sys.executable, "-S", "-c", "pass"])
    with pytest.raises(SystemExit, match="has ended without an answer"):
        bench.main(["--drawn=3", "--json"])


def test_startup(script, capsys, monkeypatch):
    bench = script("bench_startup")
    says = "import time; print('reading ...'); print('round  1/12', flush=True); time.sleep(60)"
    monkeypatch.setattr(bench, "ENDS", {"help": ("-S", "-c", "pass")})
    monkeypatch.setattr(bench, "PLAYS", {"demo": ("-S", "-c", says)})
    assert bench.main(["--repeats=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sorted(found) == ["cold_seconds_demo", "seconds_demo", "seconds_help"]
    assert max(found.values()) < 60
    monkeypatch.setattr(bench, "PLAYS", {"demo": ("-S", "-c", "print('error: no data')")})
    with pytest.raises(SystemExit, match="without a round: error: no data"):
        bench.main(["--commands=demo", "--repeats=1"])
