"""Everything that is worth knowing of the simulator's speed on a GPU, in one call of less than five minutes.

    python experiments/bench/bench_gpu.py [--parts=sweeps,others] [--seconds=280] [--out=FILE] [--json] [--profile=DIR]
                                          [--toy]

Made-up images of CIFAR-10's shape (50,000, uint8, from NumPy's generator), real Dirichlet 0.5 sizes, ten clients, ten
local epochs, batch 64, crop and flip, SimpleCNN, BadNets: no data files and no network. The sections:

* ceilings: copy bandwidth, matrix products, the price of a step of an empty loop; operations and bytes of a local step;
* experiments: 1 to 64 experiments in a sweep's one program, plain SGD and SPMC: milliseconds per sequential step and
  per client-step, and what they make of a cell of SPMC's Table 2 (50 rounds), scaled from a part of a round
  (`gpu_rounds.py` says how; `scaled_by` is the factor in sequential steps);
* precision, client_batch: the same for the other precisions of the config, and for fewer clients side by side;
* forms: SimpleCNN's convolutions as they are, by the library's (grouped) convolution, and by plain patches;
* deterministic: the price of `--xla_gpu_deterministic_ops=true` in a process of its own, and whether a round repeats
  and a saved state resumes to the bit, with and without;
* torch: the plain torch loop over clients on the same GPU, where torch is installed;
* others: a round as a single run plays it of FLIP's searches, attacks, text and the other networks (`gpu_others.py`),
  milliseconds per client-step;
* profile: with --profile, a trace of a short round of the largest program, for TensorBoard or Perfetto.

--parts=sweeps is all but the others, --parts=others these alone: both hardly fit into one call. What does not fit into
--seconds is left out, the least telling first, and said to be left out. Needed are jax for CUDA,
flax, optax, numpy and filelock; tensorflow-datasets is not, and for ml_collections `plain_config.py` stands in where it
is missing.

--toy shrinks everything until it runs on a CPU: a check of the bench, its numbers mean nothing.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEEDED = ("jax", "flax", "optax", "numpy", "filelock")
PARTS = ("sweeps", "others")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
RESERVED = {"forms": 35.0, "deterministic": 60.0, "torch": 15.0}
"""Seconds kept for the sections after the long one."""
WAVE = 4
"""So many programs are compiled at once."""
GOAL_SECONDS, GOAL_MS, GOAL_PER_MINUTE = 30.0, 0.6, 6.6
"""Of one SPMC cell; of one sequential step of it; experiments a minute."""


class Budget:
    """The time that is left, and what was left out for want of it or for another reason.

    Args:
        seconds: for everything.
    """

    def __init__(self, seconds: float):
        self._end = time.monotonic() + seconds
        self.skipped: list[str] = []

    def left(self) -> float:
        """Seconds until the end."""
        return self._end - time.monotonic()

    def skip(self, what: str, why: str) -> None:
        """Notes what is left out."""
        self.skipped.append(f"{what} ({why})")

    def allows(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; notes what is left out where they are not."""
        if self.left() >= seconds:
            return True
        self.skip(what, f"needs about {seconds:.0f} s, {max(0.0, self.left()):.0f} s are left")
        return False


def play_cases(size: Any, dataset: Any, budget: Budget, say: Callable[[str], None], reserved: float) -> tuple[Any, Any]:
    """Times the cases in waves: compiled side by side, timed one after another.

    Returns:
        Rows, and the prepared programs by (method, experiments) at the simulator's defaults.
    """
    import gpu_rounds as rounds

    todo, rows, kept, longest = rounds.cases(size), [], {}, 40.0 if size != rounds.TOY else 1.0
    while todo:
        wave, todo = todo[:WAVE], todo[WAVE:]
        if budget.left() < reserved + longest:
            for case in [*wave, *todo]:
                budget.skip(case.title(), "no time left")
            break
        start = time.monotonic()
        for case, ready in zip(wave, rounds.prepare_all(size, wave, dataset), strict=True):
            try:
                if isinstance(ready, Exception):
                    raise ready
                row = rounds.measure(ready)
            except Exception as error:  # one program that does not fit or does not run is no reason to lose the rest
                budget.skip(case.title(), f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
                continue
            rows.append(row)
            if case.section == "experiments":
                kept[case.method, case.experiments] = ready
            say(
                f"{case.title():<45} {row['ms_per_sequential_step']:8.3f} ms a sequential step  "
                f"{row['ms_per_client_step']:7.4f} a client-step  {row['seconds_of_all_cells']:7.1f} s for "
                f"{case.experiments} whole cells at once (scaled by {row['scaled_by']:.1f})"
            )
        longest = max(15.0 if size != rounds.TOY else 1.0, 1.2 * (time.monotonic() - start))
    return rows, kept


def time_forms(size: Any, toy: bool, budget: Budget, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The three forms of the convolutions, for one experiment and for several side by side."""
    import gpu_forms as forms
    import numpy as np

    rows, first = [], {}
    for together in (1,) if toy else (1, size.together):
        lanes = size.clients * together
        for form in forms.FORMS:
            if not budget.allows(f"forms: {form}, {lanes} lanes", 0 if toy else 8):
                continue
            try:
                ms, losses = forms.time_form(form, lanes, size.batch, 1 if toy else 50)
            except Exception as error:
                budget.skip(f"forms: {form}, {lanes} lanes", f"{type(error).__name__}: {str(error)[:200]}")
                continue
            off = float(np.abs(np.asarray(losses) - first.setdefault(lanes, np.asarray(losses))).max())
            rows.append({"form": form, "lanes": lanes, "ms_per_step": ms, "loss_differs_by": off})
            say(f"forms: {form:<10} {lanes:>4} lanes {ms:8.3f} ms a step, losses differ by {off:.1e}")
    return rows


def compare_deterministic(
    size: Any, dataset: Any, kept: dict[Any, Any], toy: bool, budget: Budget, say: Callable[[str], None]
) -> dict[str, Any]:
    """The same rows as they are and with deterministic operations, the latter from a process of its own."""
    import gpu_rounds as rounds

    found = {"as_usual": rounds.deterministic_rows(size, dataset, kept)}
    flags = f"{os.environ.get('XLA_FLAGS', '')} {DETERMINISTIC}".strip()
    command = [sys.executable, str(HERE / "bench_gpu.py"), "--child", *(["--toy"] if toy else [])]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            timeout=max(5, budget.left()),
        )
        found["deterministic"] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        budget.skip("deterministic: the process with the flag", "no time left")
    except (IndexError, ValueError):
        budget.skip("deterministic: the process with the flag", done.stderr.strip().splitlines()[-1][:200])
    for kind, rows in found.items():
        for n, row in rows.items():
            say(
                f"deterministic: {kind:<13} spmc x {n:<3} {row['ms_per_sequential_step']:8.3f} ms a sequential step, "
                f"repeats {row['repeats']}, resumes {row['resumes']}"
            )
    return found


def shares_of_ceilings(rows: list[dict[str, Any]], machine: dict[str, Any], costs: dict[str, Any]) -> None:
    """Adds to every row which part it reaches of the machine's products, of its bandwidth and of its empty loop."""
    for row in rows:
        a_second = 1e3 / row["ms_per_client_step"] if row["ms_per_client_step"] else 0.0
        gflops = machine.get(f"gflops_{row['precision']}", machine["gflops_float32"])
        cost = costs[row["method"]]
        row["share_of_product_rate"] = a_second * cost["flops"] / 1e9 / gflops
        row["share_of_copy_rate"] = a_second * cost["bytes"] / 1e9 / machine["copy_gb_s"]
        step = row["ms_per_sequential_step"]
        row["share_of_empty_loop"] = machine["loop_ms"] / step if step else None


def against_goals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of SPMC's rows beside the goals."""
    spmc = [row for row in rows if row["method"] == "spmc" and row["section"] == "experiments"]
    alone = [row for row in spmc if row["experiments"] == 1]
    return {
        "seconds_of_one_spmc_cell": alone[0]["seconds_of_all_cells"] if alone else None,
        "goal_seconds": GOAL_SECONDS,
        "ms_per_sequential_step": alone[0]["ms_per_sequential_step"] if alone else None,
        "goal_ms": GOAL_MS,
        "experiments_per_minute": max((row["experiments_per_minute"] or 0 for row in spmc), default=None),
        "goal_per_minute": GOAL_PER_MINUTE,
    }


def bench(flags: Any, say: Callable[[str], None]) -> dict[str, Any]:
    """All sections; one dict of what was found."""
    import ceilings
    import gpu_others
    import gpu_rounds as rounds
    import jax

    budget, toy = Budget(flags["seconds"]), flags["toy"]
    began = time.monotonic()
    machine = ceilings.ceilings(small=toy)
    say("  ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in machine.items()))
    size = rounds.TOY if toy else rounds.Size()
    found: dict[str, Any] = {"jax": jax.__version__, "toy": toy, "size": size._asdict(), "ceilings": machine}
    if "sweeps" in flags["parts"]:
        found |= bench_sweeps(flags, size, machine, budget, say)
    if "others" in flags["parts"]:
        found["others"] = []
        for row in gpu_others.rows(toy, budget):
            found["others"].append(row)
            say(
                f"others: {row['kind']} {row['name']:<28} {row['ms_per_client_step']:8.3f} ms a client-step  "
                f"{row['seconds']:6.2f} s a round  {row['first_seconds']:6.1f} s with compiling"
            )
    return {**found, "skipped": budget.skipped, "seconds": time.monotonic() - began}


def bench_sweeps(
    flags: Any, size: Any, machine: dict[str, Any], budget: Budget, say: Callable[[str], None]
) -> dict[str, Any]:
    """The part `sweeps`."""
    import counting
    import gpu_forms as forms
    import gpu_rounds as rounds
    import jax

    from fedjax_spmc import local_rules, models

    toy = flags["toy"]
    model = models.make(size.model, num_classes=10, image_shape=(32, 32, 3))
    costs: dict[str, dict[str, float]] = {}
    for rule in rounds.METHODS:
        counted = counting.of_step(model, local_rules.make(rule), size.batch)
        cost = costs[rule] = {"flops": counted.products, "bytes": counted.bytes}
        if size.model == "simple_cnn":
            cost["flops_of_plain_convolutions"] = counting.simple_cnn_flops(rule, size.batch)
        say(f"a local step of {rule}: " + "  ".join(f"{name} {value:,.0f}" for name, value in cost.items()))
    dataset = rounds.made_up(size)
    rows, kept = play_cases(size, dataset, budget, say, 0.0 if toy else sum(RESERVED.values()))
    shares_of_ceilings(rows, machine, costs)
    found: dict[str, Any] = {
        "step_costs": costs,
        "rows": rows,
        "goals": against_goals(rows),
        "deterministic": {},
        "torch": {},
    }
    found["forms"] = time_forms(size, toy, budget, say)
    if budget.allows("deterministic", 0 if toy else 40):
        try:
            found["deterministic"] = compare_deterministic(size, dataset, kept, toy, budget, say)
        except Exception as error:
            budget.skip("deterministic", f"{type(error).__name__}: {str(error)[:200]}")
    missing = "a toy" if toy else forms.torch_missing()
    if missing is not None:
        budget.skip("torch", missing)
    elif budget.allows("torch", 10):
        try:
            times = forms.torch_times(size.batch, 100)
        except Exception as error:  # what was measured so far must not be lost
            budget.skip("torch", f"{type(error).__name__}: {str(error)[:200]}")
            times = {}
        found["torch"] = {f"ms_{rule}": ms for rule, ms in times.items()}
        for row in [row for row in rows if times and row["section"] == "experiments" and row["ms_per_client_step"]]:
            row["torch_ratio"] = times[row["method"]] / row["ms_per_client_step"]
            say(
                f"torch: {row['method']} {times[row['method']]:.3f} ms, {row['torch_ratio']:.1f} x {row['experiments']}"
            )
    largest = max(kept, default=None, key=lambda key: key[1])
    if flags["profile"] and largest is not None:
        with jax.profiler.trace(flags["profile"]):
            rounds.play(kept[largest], 1 / 16)
        say(f"profile: {flags['profile']}, {largest[0]} x {largest[1]}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: {', '.join(missing)} cannot be imported: the head of {__file__} says what is needed.",
            file=sys.stderr,
        )
        return 2
    if importlib.util.find_spec("ml_collections") is None:
        sys.path.insert(0, str(HERE))
        from plain_config import stand_in

        stand_in()
    # The process with deterministic operations and torch take memory of the same GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
    from fedjax_spmc.command import Parser, run_command
    from fedjax_spmc.options import NON_NEGATIVE, Option

    parser = Parser("", __doc__)
    parser.flag(Option("--parts", tuple, PARTS, choices=PARTS), "NAME,...", "which parts")
    parser.flag(Option("--seconds", float, 280.0, range=NON_NEGATIVE), "SECONDS", "for everything")
    parser.switch("--json", "prints one line of JSON and nothing else")
    parser.flag(Option("--out", str, None, optional=True), "FILE", "keeps the JSON in this file")
    parser.flag(Option("--profile", str, None, optional=True), "DIR", "keeps a trace of a short round in this folder")
    parser.switch("--toy", "a check of the bench; runs on a CPU")
    parser.switch("--child", "what the bench itself calls: the section with deterministic operations alone")
    return run_command(parser, _bench, arguments)


def _bench(flags: Any) -> int:
    import jax

    from fedjax_spmc.errors import ConfigError
    from fedjax_spmc.paths import file_to_write

    out = None if flags["out"] is None else file_to_write(flags["out"], "--out")
    if jax.default_backend() != "gpu" and not flags["toy"]:
        raise ConfigError("this bench needs a GPU that JAX sees (a toy size runs anywhere: --toy).")
    if flags["child"]:
        import gpu_rounds as rounds

        size = rounds.TOY if flags["toy"] else rounds.Size()
        print(json.dumps(rounds.deterministic_rows(size, rounds.made_up(size), {})))
        return 0
    found = bench(flags, (lambda text: None) if flags["json"] else (lambda text: print(text, flush=True)))
    line = json.dumps(found)
    if out is not None:
        out.write_text(line + "\n")
    if flags["json"]:
        print(line)
        return 0
    for what in found["skipped"]:
        print(f"skipped: {what}")
    print("  ".join(f"{name} {value}" for name, value in found.get("goals", {}).items()))
    print(f"{found['seconds']:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
