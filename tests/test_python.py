"""A notebook's view: a second run compiles nothing, the compilation cache is used, and a result shows itself."""

import io
import subprocess
import sys

import jax
import pytest

from fedjax_spmc import compiled, experiment, registry
from fedjax_spmc.record.progress import Progress
from tests import small

pytestmark = pytest.mark.pictures

COMPILES = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@pytest.fixture(scope="module")
def second_run(cache_folder):
    """Two runs that differ in their seed: what was compiled in each, the results, what was printed."""
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDJAX_SPMC_CACHE", str(cache_folder))
        small.share_compiled(cache_folder)
        jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: seen.append(name))
        stream, counts, results = io.StringIO(), [], []
        for seed in (0, 1):
            seen.clear()
            # As many examples for each client whatever the seed, so that all shapes are the same.
            made = small.config(rounds=2, presets="krum", partition__name="iid", seed=seed)
            results.append(experiment.run(made, stream=stream))
            counts.append(seen.count(COMPILES))
        jax.monitoring.clear_event_listeners()
    return counts, results, stream.getvalue()


def test_a_run_of_the_same_program_compiles_nothing(second_run):
    (first, second), (one, other), _ = second_run
    assert first > 2
    assert second == 0
    assert one.history[-1]["train_loss"] != other.history[-1]["train_loss"]


def test_a_part_registered_anew_is_another_program():
    from fedjax_spmc import config as configs
    from fedjax_spmc.aggregators.mean import mean

    keys = []
    for _ in range(2):
        with registry.aggregators.temporary("again", lambda: mean()):
            keys.append(compiled.key_of(configs.resolve(small.config(aggregator__name="again")), "f"))
    same = [compiled.key_of(configs.resolve(small.config(seed=seed)), "f") for seed in (0, 1)]
    assert keys[0] != keys[1]
    assert same[0] == same[1]
    assert compiled.key_of(configs.resolve(small.config()), "g") != same[0]
    assert compiled.key_of(configs.resolve(small.config(local__epochs=2)), "f") != same[0]
    assert compiled.key_of(configs.resolve(small.config(rounds=9)), "f") == same[0]
    longer = [small.config(rounds=rounds, presets="crfl") for rounds in (2, 3)]  # its bound follows the rounds
    first, second = (compiled.key_of(configs.resolve(config), "f") for config in longer)
    assert (first == second) == (not registry.aggregators.needs("crfl", "rounds"))
    falling = [small.config(rounds=rounds, local__schedule="linear") for rounds in (2, 3)]
    first, second = (compiled.key_of(configs.resolve(config), "f") for config in falling)
    assert first != second


def test_few_programs_are_kept():
    made = [compiled.kept("a", (number,), lambda number=number: number) for number in range(compiled.KEPT + 1)]
    assert made == list(range(compiled.KEPT + 1))
    assert compiled.kept("a", (0,), lambda: "anew") == "anew"
    assert compiled.kept("a", (compiled.KEPT,), lambda: "anew") == compiled.KEPT
    assert compiled.kept("a", None, lambda: "anew") == "anew"


def test_a_result_shows_itself(second_run):
    result = second_run[1][0]
    text = repr(result)
    assert text.startswith("<Result: krum, synthetic, badnets, 25 % malicious; 2 rounds; mean of the last two: A ")
    assert len(text) < 160
    summary = result.summary()
    assert (summary["rounds"], summary["mean_of"]) == (2, 2)
    assert summary["A"] == pytest.approx(sum(line["A"] for line in result.history) / 2)
    assert summary["A_last"] == result.history[-1]["A"]
    assert summary["says"].endswith(".")
    frame = result.to_frame()
    assert frame.index.tolist() == [1, 2]
    assert frame["V"].tolist() == [line["V"] for line in result.history]
    assert "weights" not in frame
    figure = result.plot()
    assert figure.axes[0].get_title() == "krum\nsynthetic, badnets, 25 % malicious"
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())
    assert figure._repr_png_().startswith(b"\x89PNG")  # pyright: ignore[reportAttributeAccessIssue]


def test_progress_says_what_is_done_before_the_first_round(second_run):
    lines = second_run[2].splitlines()
    assert lines[:2] == ["reading data: synthetic ...", "compiling ..."]
    assert lines[2].startswith("round 1/2")
    assert "left" not in lines[2]  # it compiled
    assert lines[3].endswith("  0:00 left")


def test_a_phase_is_overwritten_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = Progress(1, stream)
    progress.phase("compiling")
    progress.note("a note")
    assert stream.getvalue() == "\r\033[Kcompiling ...\r\033[Ka note\n"


CACHED = """
import jax, jax.numpy as jnp
from fedjax_spmc.config import make_config, resolve
from fedjax_spmc.config.files import use_compilation_cache
jax.jit(lambda x: x + 1)(1.0)  # JAX decides with its first program whether it has a cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
use_compilation_cache(resolve(make_config("fedavg", data__name="synthetic")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) + 41)(1.0)
"""


def test_the_compilation_cache_is_used_in_a_process_that_has_compiled(tmp_path):
    import os

    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    environment["FEDJAX_SPMC_CACHE"] = str(tmp_path)
    subprocess.run(
        [sys.executable, "-c", CACHED], env=environment, check=True, cwd=small.CONFIG.rpartition("/configs/")[0]
    )
    assert list((tmp_path / "xla").iterdir())
