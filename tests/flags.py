"""XLA's flags in tests: compiling takes most of the suite's time, running next to none, so programs compile quickly."""

from importlib.metadata import version

AS_USUAL: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
"""Compiler options of the package in use, for tests of exact bits."""
QUICK = "--xla_backend_optimization_level=0"
"""For the variable XLA_FLAGS."""

# XLA aborts on a flag that it does not know: these two, which halve the time again, are set where they were tried.
if version("jaxlib").startswith("0.10."):
    AS_USUAL["xla_cpu_use_fusion_emitters"] = True
    QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
