"""The environment of a run: versions, device, commit, data and the model to begin with."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from fedjax_spmc.data import DatasetInfo

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "numpy", "tensorflow-datasets", "pillow")


def environment(info: DatasetInfo, fingerprint: str, start_sha256: str | None = None) -> dict[str, Any]:
    """Versions, device, commit, data, and the sha256 of the model to begin with, for `environment.json`."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version(), "fedjax_spmc": _version("fedjax_spmc")}
        | {name: _version(name) for name in LIBRARIES},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "machine": {"system": platform.platform(), "processors": os.cpu_count()},
        "commit": _commit(),
        "data": {
            "name": info.name,
            "fingerprint": fingerprint,
            "note": info.note,
            "num_classes": info.num_classes,
            "input_shape": list(info.input_shape),
            "vocabulary": info.vocabulary,
        },
        "start_sha256": start_sha256,
    }


def info_of(facts: Mapping[str, Any]) -> DatasetInfo:
    """What a model must know of the data set that `environment.json` speaks of."""
    shape, vocabulary = tuple(facts["input_shape"]), facts.get("vocabulary", 0)
    return DatasetInfo(facts["name"], facts["num_classes"], shape, None, None, vocabulary=vocabulary)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, "+" behind it where files differ; None elsewhere."""
    here = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", "__init__.py"):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
