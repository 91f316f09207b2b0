"""How programs compile in tests: compiling takes most of the suite's time, running next to none, so it is quick."""

import functools
from importlib.metadata import version

AS_USUAL: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
"""Compiler options of the package in use, for tests of exact bits."""
QUICK = "--xla_backend_optimization_level=0"
"""For the variable XLA_FLAGS."""

# XLA aborts on a flag that it does not know: these two, which halve the time again, are set where they were tried.
KNOWN = version("jaxlib").startswith("0.10.")
if KNOWN:
    AS_USUAL["xla_cpu_use_fusion_emitters"] = True
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def share_contexts() -> None:
    """Programs are written down in one MLIR context until the next call, which begins another.

    JAX makes one for each program, and fills it with all dialects, which takes a good part of the time in which a small
    program is written down. What a context holds stays as long as it does, so it is not kept
    for good.
    """
    if not KNOWN:
        return
    from jax._src.interpreters import mlir

    make = getattr(mlir.make_ir_context, "__wrapped__", mlir.make_ir_context)
    mlir.make_ir_context = functools.cache(make)
