"""The environment of a run: versions, device, commit, data, the model to begin with, and what touches numbers."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_spmc import numerics, trees
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.errors import WorkdirError

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "numpy", "tensorflow-datasets", "pillow")


CONTINUATION = ("versions", "device", "machine", "commit", "numerics")
"""What `environment.json` says anew of each time that the run was gone on with."""


def environment(
    info: DatasetInfo, fingerprint: str, precision: str, start_sha256: str | None = None, held: Any = ()
) -> dict[str, Any]:
    """The content of `environment.json` where a run begins.

    Args:
        info, fingerprint: of the data set.
        precision: of the config.
        start_sha256: of the saved model with which the run begins, or None.
        held: the arrays that the attack holds; their sum is kept.
    """
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
            "held_sha256": digest_of(held),
        },
        "start_sha256": start_sha256,
        "numerics": numerics.facts(precision),
        "continuations": [],
    }


def continued(before: Mapping[str, Any], now: Mapping[str, Any], rounds_played: int) -> dict[str, Any]:
    """The content of `environment.json` where a run goes on: as it began, with a line more in `continuations`.

    Args:
        before: the content so far.
        now: from `environment`.
        rounds_played: after which the run goes on.
    """
    line = {"rounds_played": rounds_played, **{name: now[name] for name in CONTINUATION}}
    return {**before, "continuations": [*before.get("continuations", []), line]}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the last time that a run was played and now, of versions, device and commit, in words."""
    last = [before, *before.get("continuations", [])][-1]
    old, new = (
        {**env.get("versions", {}), "device": (env.get("device") or {}).get("kind"), "commit": env.get("commit")}
        for env in (last, now)
    )
    return [f"{name} {old.get(name)} -> {new.get(name)}" for name in new if old.get(name) != new[name]]


def digest_of(tree: Any) -> str | None:
    """sha256 of the arrays of a tree, with their places, types and shapes; None for a tree without arrays."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    if not leaves:
        return None
    digest = hashlib.sha256()
    for name, leaf in zip(trees.leaf_names(tree), leaves, strict=True):
        digest.update(f"{name} {leaf.dtype} {leaf.shape} ".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def check_data(recorded: Mapping[str, Any], fingerprint: str, held_sha256: str | None, where: str, advice: str) -> None:
    """Compares the data of a run with those that are here.

    Args:
        recorded: "data" of `environment.json`.
        fingerprint: of the data set here.
        held_sha256: of what the attack holds here, from `digest_of`.
        where: "workdir = ..." or a folder.
        advice: the end of the sentence: what to do.

    Raises:
        WorkdirError: they differ.
    """
    kind, before, now = "fingerprint", recorded["fingerprint"], fingerprint
    if before == now:
        kind, before, now = "sha256 of what the attack holds", recorded.get("held_sha256"), held_sha256
    if before != now:
        raise WorkdirError(
            f"{where} holds a run on other data ({kind} {str(before)[:12]}, now {str(now)[:12]}): {advice}"
        )


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
