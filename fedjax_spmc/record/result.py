"""The result of an experiment, and how it is read back from a run folder."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_spmc import numerics, parts, reading
from fedjax_spmc.errors import WorkdirError
from fedjax_spmc.paths import expanded
from fedjax_spmc.record.environment import info_of
from fedjax_spmc.record.folder import RunFolder, resolved_config
from fedjax_spmc.record.lines import verdict_of
from fedjax_spmc.types import Variables, Verdict


class Result(NamedTuple):
    """The result of an experiment.

    Attributes:
        variables: the final global model (parameters, batch statistics), as it was evaluated.
        history: one dict per evaluated round, the lines of `metrics.jsonl`.
        verdicts: one `Verdict` of NumPy arrays ([K] each) per evaluated round.
        config: the resolved config.
    """

    variables: Variables
    history: list[dict[str, Any]]
    verdicts: list[Verdict]
    config: Any


def read_config(workdir: Path) -> Any:
    """The resolved config of a run folder.

    Raises:
        WorkdirError: there is no run, or its `config.json` cannot be used here.
    """
    path = workdir / "config.json"
    try:
        return resolved_config(path, reading.json_object(path))
    except FileNotFoundError:
        sweep = (workdir / "results.jsonl").exists()
        told = f"it is a sweep's folder; its runs are in {workdir / 'cells'}" if sweep else f"{path} is missing"
        raise WorkdirError(f"workdir = {str(workdir)!r} holds no run: {told}.") from None
    except reading.UnreadableError as error:
        raise WorkdirError(f"workdir = {str(workdir)!r} cannot be used: {path} {error}.") from None


@numerics.pinned()
def load(workdir: str | os.PathLike[str]) -> Result:
    """Reads a run folder back: the newest saved model, the history, the verdicts and the config.

    Raises:
        WorkdirError: there is no run, or a file of it is missing or damaged.
    """
    path = expanded(workdir, "workdir")
    config = read_config(path)
    folder = RunFolder(path, config, read_only=True)
    environment = folder.environment()
    if environment is None:
        raise WorkdirError(f"{path / 'environment.json'} is missing.")
    facts = environment["data"]
    model = parts.model_of(config, info_of(facts))
    history = folder.history()
    return Result(folder.read_model(model), history, [verdict_of(line) for line in history], config)
