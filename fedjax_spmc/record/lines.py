"""Lines of `metrics.jsonl` and `summary.json`, alike for a single run and for a cell of a sweep; host values only."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc import metrics
from fedjax_spmc.evaluation import Counts
from fedjax_spmc.federation import RoundReport
from fedjax_spmc.options import plain
from fedjax_spmc.types import Verdict


class Unreported(NamedTuple):
    """Counts over the rounds since the last line of `metrics.jsonl`, for the next one; int32 scalars, or [lanes] in a
    sweep.

    Attributes:
        rejected: uploads that were not finite.
        failed: rounds that kept the global model.
    """

    rejected: Any
    failed: Any

    def plus(self, report: RoundReport) -> "Unreported":
        """With one more round."""
        # Arrays, as a checkpoint takes no NumPy scalars.
        return Unreported(np.asarray(self.rejected + report.rejected), np.asarray(self.failed + report.failed))


NONE_UNREPORTED = Unreported(np.zeros((), np.int32), np.zeros((), np.int32))


def metrics_line(
    round_index: int,
    counts: Counts,
    report: RoundReport,
    malicious: np.ndarray,
    backdoor: bool,
    unreported: Unreported,
    seconds: Mapping[str, float | None],
) -> dict[str, Any]:
    """One line of `metrics.jsonl`.

    Args:
        round_index: the round that was evaluated, from 0.
        counts: of the evaluated model.
        report: of that round.
        malicious: [N] bool.
        backdoor: whether the attack has triggered test images.
        unreported: of the rounds since the line before.
        seconds: keys ending in `_seconds`; None where they were not measured apart.
    """
    client_ids, participating = np.asarray(report.client_ids), np.asarray(report.participating)
    flagged, scores = np.asarray(report.verdict.flagged), np.asarray(report.verdict.scores)
    content = {
        "round": round_index,
        **metrics.percentages(counts, backdoor=backdoor),
        "train_loss": float(report.metrics["loss"]),
        "weights": report.verdict.weights,
        "scores": scores,
        "flagged": flagged,
        "client_ids": client_ids,
        **metrics.detection(flagged, scores, participating, np.asarray(report.attacking)),
        "participating": participating,
        "attacking": np.asarray(report.attacking),
        "malicious": malicious[client_ids],
        "non_finite": int(unreported.rejected),
        "aggregation_failed": int(unreported.failed),
        **seconds,
    }
    return {name: json_value(value) for name, value in content.items()}


def summary_of(
    rounds: int,
    history: Sequence[dict[str, Any]],
    oracle: bool,
    data_note: str | None,
    diverged: int,
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        rounds: of the config.
        history: the lines of `metrics.jsonl`.
        oracle: whether the aggregator was told who is malicious.
        data_note: what the data set's reader has to say of it.
        diverged: the round in which training stopped being finite; -1 = none.
    """
    return {
        "status": "finished" if diverged < 0 else "diverged",
        "rounds": rounds,
        "diverged_round": None if diverged < 0 else diverged,
        "oracle": oracle,
        "data_note": data_note,
        **metrics.summarise(history),
        **{f"{name}_run": value for name, value in metrics.detection_over_run(history).items()},
    }


def diverged_message(round_index: int) -> str:
    """The sentence that says that training stopped being finite."""
    return (
        f"training stopped being finite in round {round_index} (counted from 0): no client's model is finite there; "
        "the global model of the round before is kept."
    )


def verdict_of(line: Mapping[str, Any]) -> Verdict:
    """The verdict of a line of `metrics.jsonl`, as NumPy arrays; an undefined score is NaN."""
    scores = [np.nan if score is None else score for score in line["scores"]]
    columns: Any = np.array(line["weights"], np.float32), np.array(scores, np.float32), np.array(line["flagged"], bool)
    return Verdict(*columns)


def json_value(value: Any) -> Any:
    """A value for JSON: arrays become lists, floats that are not finite None."""
    value = plain(value)
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
