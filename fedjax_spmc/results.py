"""What is said of a round and of a whole run, alike for a single run and for a cell of a sweep: host values only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_spmc import metrics, record
from fedjax_spmc.federation import RoundReport


def line(
    round_index: int,
    counts: metrics.Counts,
    report: RoundReport,
    malicious: np.ndarray,
    backdoor: bool,
    non_finite: int,
    aggregation_failed: int,
    seconds: Mapping[str, float | None],
) -> dict[str, Any]:
    """One line of `metrics.jsonl`.

    Args:
        round_index: the round that was evaluated, from 0.
        counts: of the evaluated model.
        report: of that round.
        malicious: [N] bool.
        backdoor: whether the attack has triggered test images.
        non_finite: uploads that were not finite, since the line before.
        aggregation_failed: rounds that kept the global model, since the line before.
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
        **metrics.detection(flagged, scores, participating, malicious[client_ids]),
        "participating": participating,
        "non_finite": non_finite,
        "aggregation_failed": aggregation_failed,
        **seconds,
    }
    return {name: record.finite(value) for name, value in content.items()}


def summary(
    rounds: int,
    history: Sequence[dict[str, Any]],
    oracle: bool,
    data_note: str | None,
    malicious: np.ndarray,
    diverged: int,
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        rounds: of the config.
        history: the lines of `metrics.jsonl`.
        oracle: whether the aggregator was told who is malicious.
        data_note: what the data set's reader has to say of it.
        malicious: [N] bool.
        diverged: the round in which training stopped being finite; -1 = none.
    """
    return {
        "status": "finished" if diverged < 0 else "diverged",
        "rounds": rounds,
        "diverged_round": None if diverged < 0 else diverged,
        "oracle": oracle,
        "data_note": data_note,
        **metrics.summarise(history),
        **{f"{name}_run": value for name, value in metrics.detection_over_run(history, malicious).items()},
    }


def diverged_message(round_index: int) -> str:
    """The sentence that says that training stopped being finite."""
    return (
        f"training stopped being finite in round {round_index} (counted from 0): no client's model is finite there; "
        "the global model of the round before is kept."
    )
