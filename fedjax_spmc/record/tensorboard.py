"""TensorBoard events beside the other files of a run: the numbers of `metrics.jsonl` once more."""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedjax_spmc import metrics
from fedjax_spmc.reading import reason_of


class TensorBoard:
    """Adds events to a file of its own; where it cannot be written it says so once, and the run goes on without.

    The events are tensorboardX's; its writer is not used, whose thread dies on a full disk and leaves the run waiting.

    Args:
        folder: the run folder.
        note: takes a line for the user.
    """

    def __init__(self, folder: Path, note: Callable[[str], None]):
        self._path: Path | None = folder / "tensorboard"
        self._note = note
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._write(lambda path: path.mkdir(exist_ok=True))
        self._path = self._path and self._path / name
        self._append([{"file_version": "brain.Event:2"}])

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of a line of `metrics.jsonl` at the step of its round, from 1."""
        scalar = _tensorboardx()[0]
        names = (*metrics.SCALARS, *(metrics.REJECTION if line["confidence"] > 0 else ()), *metrics.NEXT_TOKEN)
        shown = {name: line[name] for name in names if line.get(name) is not None}
        self._append([{"summary": scalar(name, value), "step": line["round"] + 1} for name, value in shown.items()])

    def _append(self, events: list[dict[str, Any]]) -> None:
        _, event, checksum = _tensorboardx()
        whole = (event(wall_time=time.time(), **one).SerializeToString() for one in events)
        content = b"".join(_framed(data, checksum) for data in whole)

        def append(path: Path) -> None:
            with path.open("ab") as file:
                file.write(content)

        self._write(append)

    def _write(self, write: Callable[[Path], None]) -> None:
        if self._path is None:
            return
        try:
            write(self._path)
        except OSError as error:
            self._note(f"no TensorBoard events from here on: {self._path} cannot be written ({reason_of(error)})")
            self._path = None


def _framed(data: bytes, checksum: Callable[[bytes], int]) -> bytes:
    """An event as TensorBoard's files hold it: its length and itself, each with a checksum."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", checksum(length)) + data + struct.pack("<I", checksum(data))


def _tensorboardx() -> tuple[Any, Any, Any]:
    """Its `scalar`, `Event` and `masked_crc32c`, imported when the first event is written.

    Where torch is installed tensorboardX imports it, which takes seconds, for tensors that it is not given here.
    """
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.record_writer import masked_crc32c
        from tensorboardX.summary import scalar
    finally:
        if absent:
            del sys.modules["torch"]
    return scalar, Event, masked_crc32c
