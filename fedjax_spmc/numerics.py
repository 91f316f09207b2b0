"""What numbers depend on besides config, data and seed: random generator, word width, promotion, precision, flags.

The first four are pinned in the code, whatever the environment says (`pinned`); what cannot be pinned is written down
(`facts`), so that a run does not go on under other flags than it began with.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from fedjax_spmc import keys
from fedjax_spmc.errors import ConfigError, WorkdirError
from fedjax_spmc.reading import reason_of

FLAGS = (
    "jax_random_seed_offset", "jax_threefry_gpu_kernel_lowering", "jax_enable_x64", "jax_numpy_dtype_promotion",
    "jax_default_matmul_precision", "jax_disable_jit", "jax_use_direct_linearize", "jax_softmax_custom_jvp",
    "jax_high_dynamic_range_gumbel", "jax_allow_f16_reductions", "jax_disable_most_optimizations",
    "jax_optimization_level", "jax_exec_time_optimization_effort", "jax_memory_fitting_level",
    "jax_memory_fitting_effort", "jax_compiler_enable_remat_pass", "jax_custom_vjp3", "jax_remat3", "jax_scan3",
    "eager_constant_folding",
)  # fmt: skip
"""Settings of JAX that touch numbers; those that a version of JAX does not know are left out."""
VARIABLES = (
    "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "TF_DETERMINISTIC_OPS",
    "TF_ENABLE_ONEDNN_OPTS", "TF_AUTOTUNE_THRESHOLD",
)  # fmt: skip
PREFIXES = ("XLA_", "CUDNN_", "TF_XLA_", "TF_CUDNN_", "TF_ENABLE_CUDNN_", "TF_ENABLE_CUBLAS_")
"""Environment variables that touch numbers, by name or by how the name begins."""
HARMLESS = ("XLA_PYTHON_CLIENT_", "XLA_CLIENT_MEM_")
"""Beginnings of names of those that do not: memory."""
PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
"""Variables that tell JAX which devices to use; in small letters they are settings of `jax.config`."""
HARMLESS_XLA_FLAGS = ("--xla_force_host_platform_device_count", "--xla_cpu_collective_", "--xla_dump_")
"""Beginnings of XLA flags that do not: how many devices a CPU is cut into, how long they wait, what is printed."""


class OtherNumerics(WorkdirError):
    """What a folder holds was begun under settings that give other numbers; the folder is whole."""


@contextlib.contextmanager
def pinned(precision: str | None = None) -> Iterator[None]:
    """Fixes what touches numbers for the length of a `with` block, or of a function that it decorates.

    The random generator is threefry in its partitionable form, numbers have 32 bits, types are promoted as NumPy does.

    Args:
        precision: of matrix products, as `config.precision`; None leaves it.

    Raises:
        ConfigError: JAX has no device of the platform that it was told to use.
    """
    check_platform()
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.default_prng_impl(keys.IMPLEMENTATION))
        stack.enter_context(jax.threefry_partitionable(True))
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        if precision is not None:
            stack.enter_context(jax.default_matmul_precision(precision))
        yield


def check_platform() -> None:
    """Starts JAX's devices.

    Raises:
        ConfigError: there are none of the platform that JAX was told to use.
    """
    try:
        jax.local_devices()
    except Exception as error:  # a RuntimeError, or an assertion of JAX's, by its version and by what is installed
        given = {name: os.environ.get(name) or getattr(jax.config, name.lower(), None) for name in PLATFORM_VARIABLES}
        said = " and ".join(f"{name} = {value!r}" for name, value in given.items() if value)
        if not said:
            raise
        why = f" ({reason_of(error).partition('. ')[0]})" if str(error) else ""
        raise ConfigError(
            f"{said} is not allowed: it must name platforms that JAX finds on this machine{why}; without it JAX takes "
            "what there is."
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host or a device has no memory left."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, jax.errors.JaxRuntimeError) and ("RESOURCE_EXHAUSTED" in text or "Out of memory" in text)
    )


def facts(precision: str) -> dict[str, Any]:
    """The generator, the flags of JAX and the environment variables that numbers depend on in a run of this process.

    Args:
        precision: as `config.precision`.
    """
    with pinned(precision):
        flags = {name: _flag(name) for name in FLAGS if hasattr(jax.config, name)}
        generator = {"implementation": keys.IMPLEMENTATION, "partitionable": _flag("jax_threefry_partitionable")}
    variables = {name: value for name, value in os.environ.items() if _touches_numbers(name)}
    if "XLA_FLAGS" in variables:
        words = sorted(w for w in variables.pop("XLA_FLAGS").split() if not w.startswith(HARMLESS_XLA_FLAGS))
        variables |= {"XLA_FLAGS": " ".join(words)} if words else {}
    return {
        "generator": generator,
        "flags": flags,
        "variables": dict(sorted(variables.items())),
    }


def check_same(before: Mapping[str, Any] | None, now: Mapping[str, Any], where: str) -> None:
    """Refuses to go on under other settings.

    Args:
        before: from `facts`, as it was recorded; None where an older version recorded nothing.
        now: from `facts`.
        where: what would go on, "workdir = ...".

    Raises:
        OtherNumerics: one of them differs; it is named.
    """
    if before is None:
        return
    for kind in ("generator", "flags", "variables"):
        old, new = before.get(kind, {}), now[kind]
        for name in sorted(old.keys() | new.keys()):
            if kind == "flags" and not (name in old and name in new):
                continue  # JAX came to know it, or forgot it
            if old.get(name) != new.get(name):
                raise OtherNumerics(
                    f"{name} = {_shown(new.get(name))} is not allowed in {where}: what is there was begun with "
                    f"{_shown(old.get(name))} and would go on with other numbers; set it back, or give "
                    "another --workdir."
                )


def _touches_numbers(name: str) -> bool:
    return (name in VARIABLES or name.startswith(PREFIXES)) and not name.startswith(HARMLESS)


def _flag(name: str) -> Any:
    """The value of a setting of JAX in this place of the program, as JSON has it."""
    value = getattr(jax.config, name)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(getattr(value, "value", value))


def _shown(value: Any) -> str:
    return "(not set)" if value is None else repr(value)
