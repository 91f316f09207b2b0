"""TensorBoard events beside the other files of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_spmc import metrics


class TensorBoard:
    """TensorBoard events beside the other files.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path):
        from tensorboardX import SummaryWriter  # imported here: it takes over a second

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds the numbers of a line of `metrics.jsonl` at the step of its round."""
        rejecting = metrics.REJECTION if line["confidence"] > 0 else ()
        for name in (*metrics.SCALARS, *rejecting, *metrics.NEXT_TOKEN):
            if line.get(name) is not None:
                self._writer.add_scalar(name, line[name], line["round"])
        self._writer.flush()

    def close(self) -> None:
        """Ends the writer's thread."""
        self._writer.close()
