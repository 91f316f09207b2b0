"""The result of an experiment, and how it is read back from a run folder."""

import os
import typing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc import metrics, numerics, parts, reading
from fedjax_spmc.config import flatten, num_malicious, run_title
from fedjax_spmc.errors import UserError, WorkdirError
from fedjax_spmc.metrics import mean_of_last
from fedjax_spmc.paths import expanded
from fedjax_spmc.record import plots
from fedjax_spmc.record.environment import info_of
from fedjax_spmc.record.folder import RunFolder, resolved_config
from fedjax_spmc.record.judgement import judgement, timing
from fedjax_spmc.record.lines import verdict_of
from fedjax_spmc.record.remarks import Remark, facts_of, remarks_of
from fedjax_spmc.types import Variables, Verdict

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    def __repr__(self) -> str:
        numbers = self.summary()
        shown = "  ".join(f"{name} {_percent(numbers[name])}" for name in ("A", "ASR", "R", "V"))
        head = ", ".join(run_title(self.config).split("\n"))
        return f"<Result: {head}; {numbers['rounds']} rounds; {mean_of_last(numbers['mean_of'])}: {shown}>"

    def summary(self) -> dict[str, Any]:
        """The run in a few numbers: rounds; A, ASR, R, V and their `_all` forms (percent; mean of the last five
        evaluated rounds, or of the `mean_of` there are), the last round's (`*_last`), and in words what they say."""
        found = metrics.summarise(self.history)
        numbers = {f"{name}{end}": found[f"{name}{end}"] for end in ("", "_last") for name in metrics.PRINTED}
        rounds = self.history[-1]["round"] + 1 if self.history else 0
        when = timing(flatten(self.config), [line["round"] for line in self.history])
        said = judgement(found["A"], found["ASR"], self._remarks(), when=when)
        return {"rounds": rounds, "mean_of": found["mean_of"], **numbers, "says": said}

    def to_frame(self) -> Any:
        """The evaluated rounds as a pandas DataFrame, a row each, indexed by `round`, which counts from 1 here: the
        single numbers of the lines of `metrics.jsonl`, without those per class or client.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("to_frame() needs pandas, which is not installed: `pip install pandas`.") from None
        plain = (str, int, float, bool, type(None))
        rows = []
        for line in self.history:
            row = {name: value for name, value in line.items() if isinstance(value, plain)}
            rows.append(row | {"round": line["round"] + 1})
        return pandas.DataFrame(rows).set_index("round")

    def plot(self) -> "Figure":
        """A, ASR, R and V over the rounds, as a matplotlib figure that a notebook shows."""
        return plots.curves_figure({run_title(self.config): self.history})

    def _remarks(self) -> list[Remark]:
        """Those that the lines tell."""
        malicious = np.zeros(self.config.federation.num_clients, bool)
        for line in self.history:
            malicious[np.array(line["client_ids"], int)[np.array(line["malicious"], bool)]] = True
        flat = flatten(self.config)
        facts = facts_of(flat, self.history, malicious)._replace(malicious_clients=num_malicious(self.config))
        return remarks_of(flat, facts)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


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
