"""Lines of `metrics.jsonl` and `summary.json`, alike for a single run and for a cell of a sweep; host values only."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc import durability, metrics
from fedjax_spmc.evaluation import Counts
from fedjax_spmc.federation import RoundReport
from fedjax_spmc.options import plain
from fedjax_spmc.record.remarks import Facts, remarks_of
from fedjax_spmc.setup import is_oracle
from fedjax_spmc.types import Verdict


class Unreported(NamedTuple):
    """Counts over the rounds since the last line of `metrics.jsonl`, for the next one; int32 scalars, or [lanes] in a
    sweep.

    Attributes:
        rejected: uploads that were not finite.
        failed: rounds that kept the global model.
        unattacked: rounds of the attack's schedule in which no attacking client took part.
    """

    rejected: Any
    failed: Any
    unattacked: Any

    def plus(self, report: RoundReport) -> "Unreported":
        """With one more round."""
        more = (report.rejected, report.failed, report.unattacked)
        # Arrays, as a checkpoint takes no NumPy scalars.
        return Unreported(*(np.asarray(old + new, np.int32) for old, new in zip(self, more, strict=True)))


NONE_UNREPORTED = Unreported(*[np.zeros((), np.int32)] * 3)


def metrics_line(
    round_index: int,
    counts: Counts,
    report: RoundReport,
    malicious: np.ndarray,
    backdoor: bool,
    unreported: Unreported,
    seconds: Mapping[str, float | None],
    confidence: float = 0.0,
    flags: bool = True,
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
        confidence: predictions below it are rejected.
        flags: whether the aggregator flags clients at all, see `Aggregator.flags`.
    """
    client_ids, participating = np.asarray(report.client_ids), np.asarray(report.participating)
    flagged, scores = np.asarray(report.verdict.flagged), np.asarray(report.verdict.scores)
    kept = _histograms(counts, backdoor)
    content = {
        "round": round_index,
        **metrics.percentages(counts, backdoor, confidence),
        "train_loss": float(report.metrics["loss"]),
        "weights": report.verdict.weights,
        "scores": scores,
        "flagged": flagged,
        "client_ids": client_ids,
        "rule_flags": flags,
        **metrics.detection(flagged, scores, participating, np.asarray(report.attacking), flags),
        "participating": participating,
        "attacking": np.asarray(report.attacking),
        "malicious": malicious[client_ids],
        "non_finite": int(unreported.rejected),
        "aggregation_failed": int(unreported.failed),
        "unattacked_rounds": int(unreported.unattacked),
        "confidence": confidence,
        **_rejection(kept, confidence),
        "histograms": kept,
        **seconds,
    }
    return {name: json_value(value) for name, value in content.items()}


def _histograms(counts: Counts, backdoor: bool) -> dict[str, Any]:
    """Those of clean examples, and of triggered ones where there are any."""
    found = {} if counts.histograms is None else counts.histograms._asdict()
    return {name: found[name] for name in found if backdoor or name in ("clean", "correct")}


def _rejection(histograms: Mapping[str, Any], confidence: float) -> dict[str, float | None]:
    """The numbers of `metrics.REJECTION`; None without histograms."""
    found = metrics.judged(histograms, confidence, backdoor="triggered" in histograms) if histograms else {}
    return {name: found.get(name) for name in metrics.REJECTION}


def at_confidence(line: Mapping[str, Any], confidence: float) -> dict[str, Any]:
    """A line of `metrics.jsonl` as it is with another `evaluation.confidence`, from its own histograms.

    Raises:
        ValueError: it has none, as an older version wrote none.
    """
    if line.get("confidence", 0.0) == confidence:
        return dict(line)
    if not line.get("histograms"):
        raise ValueError("the line has no histograms")
    found = metrics.judged(line["histograms"], confidence, backdoor="triggered" in line["histograms"])
    return {**line, **found, "confidence": confidence}


def measured(config: configs.Config, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a summary that the fields of `evaluation` touch: percentages and durability.

    Args:
        config: resolved.
        history: the lines of `metrics.jsonl`, with the config's confidence.
    """
    thresholds = config.evaluation.lifespan_thresholds
    rounds, rates = [line["round"] for line in history], [line["ASR"] for line in history]
    return {
        "confidence": config.evaluation.confidence,
        "lifespan_thresholds": list(thresholds),
        **metrics.summarise(history),
        **durability.measure(rounds, rates, config.attack.schedule.last, thresholds),
    }


def summary_of(
    config: configs.Config, history: Sequence[dict[str, Any]], facts: Facts, data_note: str | None, diverged: int
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
        config: resolved.
        history: the lines of `metrics.jsonl`.
        facts: of the run.
        data_note: what the data set's reader has to say of it.
        diverged: the round in which training stopped being finite; -1 = none.
    """
    return {
        "status": "finished" if diverged < 0 else "diverged",
        "rounds": config.federation.rounds,
        "diverged_round": None if diverged < 0 else diverged,
        "oracle": is_oracle(config),
        "data_note": data_note,
        **facts._asdict(),
        "remarks": [remark._asdict() for remark in remarks_of(configs.flatten(config), facts)],
        **measured(config, history),
        **{f"{name}_run": value for name, value in metrics.detection_over_run(history).items()},
    }


def diverged_message(round_index: int, config: Any) -> str:
    """The sentence that says that training stopped being finite, and what may help."""
    rate, norm = config.local.learning_rate, config.local.clip_norm
    clip = "a local.clip_norm" if norm is None else f"a local.clip_norm below {norm:g}"
    return (
        f"training stopped being finite in round {round_index + 1}: no client's model is finite there; the global "
        f"model of the round before is kept. A local.learning_rate below {rate:g}, {clip}, or, against "
        "scaled uploads, aggregator.name = norm_clip, may keep it finite."
    )


def verdict_of(line: Mapping[str, Any]) -> Verdict:
    """The verdict of a line of `metrics.jsonl`, as NumPy arrays; an undefined score is NaN."""
    scores = [np.nan if score is None else score for score in line["scores"]]
    columns: Any = np.array(line["weights"], np.float32), np.array(scores, np.float32), np.array(line["flagged"], bool)
    return Verdict(*columns)


def json_value(value: Any) -> Any:
    """A value for JSON: arrays become lists, floats that are not finite None."""
    if isinstance(value, Mapping):
        return {name: json_value(item) for name, item in value.items()}
    value = plain(value)
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
