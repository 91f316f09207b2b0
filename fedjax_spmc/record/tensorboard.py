"""TensorBoard events beside the other files of a run: the numbers of `metrics.jsonl` once more.

They are written by hand, a few fields of TensorFlow's `event.proto` and `summary.proto` in the frames of `TFRecord`:
packages that write them import torch or TensorFlow where these are installed, seconds before the first round's line.
"""

import functools
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedjax_spmc import metrics
from fedjax_spmc.reading import reason_of


class TensorBoard:
    """Adds events to a file of its own; where it cannot be written it says so once, and the run goes on without.

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
        self._append([_field(3, b"brain.Event:2")])

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of a line of `metrics.jsonl` at the step of its round, from 1."""
        names = (*metrics.SCALARS, *(metrics.REJECTION if line["confidence"] > 0 else ()), *metrics.NEXT_TOKEN)
        shown = {name: line[name] for name in names if line.get(name) is not None}
        self._append([_scalar(name, value, line["round"] + 1) for name, value in shown.items()])

    def _append(self, events: list[bytes]) -> None:
        """Adds events, each given without its time."""
        content = b"".join(_framed(b"\x09" + struct.pack("<d", time.time()) + event) for event in events)

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


def _framed(data: bytes) -> bytes:
    """An event as TensorBoard's files hold it: its length and itself, each with a checksum."""
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _scalar(name: str, value: float, step: int) -> bytes:
    """The fields of an `Event` that has the number `value` under `name` at a step."""
    number = b"\x15" + struct.pack("<f", value)  # Summary.Value: 1 tag, 2 simple_value
    return b"\x10" + _varint(step) + _field(5, _field(1, _field(1, name.encode()) + number))


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes in a protocol buffer."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """A whole number >= 0, seven bits a byte, the lowest first."""
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


@functools.cache
def _table() -> list[int]:
    """What CRC-32C, the polynomial of Castagnoli, makes of each byte."""
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked as in TFRecord: turned round by 15 bits, and a constant added."""
    crc, table = 0xFFFFFFFF, _table()
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
