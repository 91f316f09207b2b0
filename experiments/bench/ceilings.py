"""What this machine can do at most: copy bandwidth, matrix products, the price of one step of an empty loop.

    python experiments/bench/ceilings.py [--json] [--small]

The numbers that a measured time is held against. Bandwidth counts the bytes read and the bytes written of an array far
larger than any cache; products are of square matrices of random numbers, in GFLOP/s (2 n^3 operations); the empty loop
is one multiplication of 1,024 numbers a step, once with a number of steps that is known to the compiler and once with
one that is data, as the simulator's loops have it. Each is told for one device and for all of them at work at once; on
a CPU, where the devices share the cores, also for a process that is bound to one core. The median of `REPEATS` calls
after one that is not counted.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import DotAlgorithmPreset, Precision

from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.devices import use_cores
from fedjax_spmc.keys import root_key

REPEATS = 5
BOUND = (
    "import os, runpy, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Runs a script on one core, bound before JAX counts the cores for its threads."""


def seconds_of(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median seconds of a call whose results are waited for; the first call, which compiles, is not counted."""
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _on_each(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> Callable[[], Any]:
    """A call that starts `function` on the arguments of every device before it waits for any."""
    return lambda: [function(*mine) for mine in arguments]


def copy_rate(devices: list[Any], megabytes: int, passes: int = 4) -> float:
    """GB/s, read and written, of going over so many megabytes on each device at once.

    In a loop over one array, in place: memory that is fresh from the system costs more on its first touch.
    """
    count = megabytes * 2**20 // 4

    @jax.jit
    def run(passes: Any, x: Any) -> Any:
        return jax.lax.fori_loop(0, passes, lambda step, x: x * 0.999 + step, x)[:1]

    numbers = jax.random.normal(root_key(0), (count,))
    arguments = [tuple(jax.device_put((jnp.int32(passes), numbers), device)) for device in devices]
    # The loop copies its argument before it works on it: one pass more.
    return 2 * 4 * count * (passes + 1) * len(devices) / seconds_of(_on_each(run, arguments)) / 1e9


def product_rate(devices: list[Any], size: int, kind: str) -> float:
    """GFLOP/s of products of matrices [size, size] on each device at once.

    Args:
        devices: to be measured together.
        size: rows and columns.
        kind: "float32", "tensorfloat32" or "bfloat16"; a CPU takes the second for the first.
    """
    dtype = jnp.bfloat16 if kind == "bfloat16" else jnp.float32
    precision: Any = Precision.HIGHEST
    if kind == "tensorfloat32" and devices[0].platform != "cpu":
        precision = DotAlgorithmPreset.TF32_TF32_F32
    keys = jax.random.split(root_key(0))
    pair = [jax.random.normal(key, (size, size), dtype) for key in keys]
    arguments = [tuple(jax.device_put(pair, device)) for device in devices]
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=None if kind == "bfloat16" else precision))
    return 2 * size**3 * len(devices) / seconds_of(_on_each(product, arguments)) / 1e9


def loop_floor(device: Any, steps: int, known: bool) -> float:
    """Milliseconds a step of a loop with one tiny kernel a step.

    Args:
        device: where.
        steps: how many.
        known: whether the compiler knows the number. On a GPU the host may have to ask the device before every step
            where it does not.
    """
    start = jax.device_put(jax.random.normal(root_key(0), (1024,)), device)

    @jax.jit
    def run(count: Any, x: Any) -> Any:
        return jax.lax.fori_loop(0, steps if known else count, lambda step, x: x * 0.999 + step, x)

    count = jax.device_put(jnp.int32(steps), device)
    return seconds_of(lambda: run(count, start)) / steps * 1e3


def ceilings(small: bool = False) -> dict[str, Any]:
    """Everything that this process can measure by itself.

    Args:
        small: sizes for a quick look, too small for numbers to quote.
    """
    devices = jax.local_devices()
    cpu = devices[0].platform == "cpu"
    megabytes, size, steps = (256, 1536, 20_000) if cpu else (2048, 8192, 2000)
    if small:
        megabytes, size, steps = 16, 256, 500
    kinds = ("float32",) if cpu else ("float32", "tensorfloat32", "bfloat16")
    found: dict[str, Any] = {"device": devices[0].device_kind, "devices": len(devices), "platform": devices[0].platform}
    found["copy_gb_s"] = copy_rate(devices[:1], megabytes)
    found |= {f"gflops_{kind}": product_rate(devices[:1], size, kind) for kind in kinds}
    found["loop_ms_known"] = loop_floor(devices[0], steps, known=True)
    found["loop_ms"] = loop_floor(devices[0], steps, known=False)
    if len(devices) > 1:
        found["copy_gb_s_all"] = copy_rate(devices, megabytes)
        found |= {f"gflops_{kind}_all": product_rate(devices, size, kind) for kind in kinds}
    return found


def on_one_core(small: bool) -> dict[str, Any]:
    """The same of a process that may use one core; {} on an accelerator or where processes cannot be bound."""
    if jax.default_backend() != "cpu" or not hasattr(os, "sched_setaffinity"):
        return {}
    command = [sys.executable, "-c", BOUND, __file__, "--json", "--alone", *(["--small"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {f"{name}_one_core": found[name] for name in ("copy_gb_s", "gflops_float32")}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.switch("--small", "a quick look; no numbers to quote")
    parser.switch("--alone", "one CPU device, and no process beside this one")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    if not flags["alone"]:
        use_cores()
    found = ceilings(flags["small"])
    if not flags["alone"]:
        found |= on_one_core(flags["small"])
    if flags["json"]:
        print(json.dumps({name: round(v, 5) if isinstance(v, float) else v for name, v in found.items()}))
        return 0
    for name, value in found.items():
        print(f"{name:<24} {value:,.4f}" if isinstance(value, float) else f"{name:<24} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
