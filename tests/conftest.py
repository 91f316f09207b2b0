"""Strict modes for every test: rank promotion raises, two fake CPU devices, no network, a cache of its own."""

import base64
import gc
import os
import sys
from pathlib import Path

from tests.flags import QUICK, share_contexts

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK} --xla_force_host_platform_device_count=2"

import jax
import psutil
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).resolve().parent.parent
# Many tests compile the same program anew: kept on disk, each is compiled once.
COMPILED = ROOT / ".pytest_cache" / "xla"
COMPILED.mkdir(parents=True, exist_ok=True)
jax.config.update("jax_compilation_cache_dir", str(COMPILED))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
sys.path.insert(0, str(ROOT))
MEMORY_OF_A_WORKER = 3 * 2**30
BLANK = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
"""A PNG of one pixel."""
SHARED = Path(os.environ.get("FEDJAX_SPMC_SHARED", ROOT.parent / "shared"))

# Tracing makes very many objects, and JAX hooks into every collection: rarer ones save a part of each test.
gc.set_threshold(50_000, 20, 100)


def pytest_collection_finish() -> None:
    """Modules and tests stay: the collector need not walk them again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs stay in memory: where a worker has grown large, those of the modules before it are dropped."""
    share_contexts()
    yield
    if psutil.Process().memory_info().rss > MEMORY_OF_A_WORKER:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def draw():
    """How the pictures of run folders are drawn."""
    from fedjax_spmc.record import plots

    return plots._png


@pytest.fixture(scope="module", autouse=True)
def pictures(request, draw):
    """Run folders have pictures, which take longer to draw than a small run that is compiled: they are built in every
    test, and drawn in the modules marked `pictures`."""
    with pytest.MonkeyPatch.context() as patch:
        marked = request.node.get_closest_marker("pictures") is not None
        patch.setattr("fedjax_spmc.record.plots._png", draw if marked else lambda figure: BLANK)
        yield


@pytest.fixture(autouse=True)
def forget_kept_programs():
    """A test may change what a program is made of without saying so: none takes one that another has made."""
    yield
    module = sys.modules.get("fedjax_spmc.compiled")
    if module is not None:
        module.forget()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden vectors and prepared data sets; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: set FEDJAX_SPMC_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory) -> Path:
    """A cache for the whole session; compiled programs are those of all tests, also for the processes they start."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "xla").symlink_to(COMPILED, target_is_directory=True)
    return folder


@pytest.fixture(scope="session")
def finished_run(cache_folder, tmp_path_factory, draw) -> Path:
    """The folder of an uninterrupted run of `tests.small.config(rounds=4)`: read it, copy it, do not change it."""
    from fedjax_spmc import experiment
    from tests import small

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDJAX_SPMC_CACHE", str(cache_folder))
        patch.setattr("fedjax_spmc.record.plots._png", draw)
        small.share_compiled(cache_folder)
        folder = tmp_path_factory.mktemp("runs") / "finished"
        experiment.run(small.config(rounds=4), folder)
    return folder


@pytest.fixture
def small_cache(cache_folder, monkeypatch):
    """Points the package at the session's cache."""
    from tests import small

    monkeypatch.setenv("FEDJAX_SPMC_CACHE", str(cache_folder))
    small.share_compiled(cache_folder)
