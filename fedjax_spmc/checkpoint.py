"""The whole state on disk (Orbax), with a digest: a resumed run has the same bits, a damaged file is noticed."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.errors import WorkdirError


class Checkpoints:
    """The last checkpoint of a run folder; saving is atomic, and only the newest is kept.

    Args:
        folder: `WORKDIR/checkpoint`.
    """

    def __init__(self, folder: Path):
        import orbax.checkpoint as ocp  # imported here: it takes half a second, and not every command needs it

        logging.getLogger("absl").setLevel(logging.ERROR)
        self._ocp = ocp
        self._folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        except Exception as error:
            raise self._damaged(error) from None

    def latest(self) -> int | None:
        """Rounds played when the newest checkpoint was saved; None without one."""
        return self._manager.latest_step()

    def save(self, rounds: int, state: Any) -> None:
        """Writes `state`, to be found under `rounds`."""
        plain = _plain(state)
        args = self._ocp.args
        self._manager.save(
            rounds,
            args=args.Composite(
                state=args.StandardSave(plain), meta=args.JsonSave({"rounds": rounds, "digest": digest(plain)})
            ),
            force=True,
        )

    def restore(self, rounds: int, like: Any) -> Any:
        """Reads the checkpoint of `rounds`.

        Args:
            rounds: from `latest`.
            like: a state of the same structure, shapes and dtypes.

        Raises:
            WorkdirError: it is missing, truncated, corrupt, or of another shape.
        """
        args = self._ocp.args
        try:
            restored: Any = self._manager.restore(
                rounds, args=args.Composite(state=args.StandardRestore(_plain(like)), meta=args.JsonRestore())
            )
            intact = restored.meta["digest"] == digest(restored.state)
        except Exception as error:
            raise self._damaged(error) from None
        if not intact:
            raise self._damaged("its digest does not match")
        return jax.tree.map(_like, like, restored.state)

    def close(self) -> None:
        """Ends the manager's background work."""
        self._manager.close()

    def _damaged(self, reason: Any) -> WorkdirError:
        return WorkdirError(
            f"checkpoint {self._folder} is damaged ({_first_line(reason)}): remove the run folder or give another "
            "--workdir to start anew."
        )


def digest(state: Any) -> str:
    """sha256 over the bytes, shapes and dtypes of all leaves in order."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        array = np.asarray(leaf)
        sha.update(f"{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def _like(leaf: Any, data: Any) -> Any:
    return jax.random.wrap_key_data(jnp.asarray(data)) if _is_key(leaf) else jnp.asarray(data)


def _first_line(reason: Any) -> str:
    lines = str(reason).strip().splitlines()
    return (lines[0] if lines else type(reason).__name__)[:200]
