"""The metrics: A, ASR, R, V in percent, with and without test images of the target class, and detection."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_spmc.evaluation import Counts

DETECTION = ("tpr", "fpr", "precision", "f1", "auc")
"""How well a round's verdict tells malicious from benign clients; see `detection`."""
SCALARS = ("A", "ASR", "ASR_all", "R", "V", "R_all", "V_all", *DETECTION, "train_loss")
"""The single numbers of an evaluated round; the summary, TensorBoard and the run folder's checks go by this list."""
PRINTED = ("A", "ASR", "R", "V", "ASR_all", "R_all", "V_all")
"""The columns of printed tables."""
LAST_ROUNDS = 5
"""A run is summed up by the mean of its last five evaluated rounds, as the papers do."""


def percentages(counts: Counts, backdoor: bool) -> dict[str, Any]:
    """A, ASR, ASR_all, R, V, R_all, V_all and per_class (accuracy of each class) in percent; undefined = None.

    ASR leaves out labels that are the attacker's anyway, ASR_all keeps them. Where there are too many classes per_class
    is empty.
    """
    asked, correct, *attacked = (np.asarray(field, np.int64) for field in counts)
    triggered, hits, triggered_others, hits_others = attacked

    def percent(part: Any, whole: Any) -> float | None:
        return 100.0 * float(part) / float(whole) if whole > 0 else None

    accuracy = percent(correct.sum(), asked.sum())
    asr = percent(hits_others, triggered_others) if backdoor else None
    asr_all = percent(hits, triggered) if backdoor else None

    def resist(rate: float | None) -> float | None:
        return None if rate is None else 100.0 - rate

    def balance(rate: float | None) -> float | None:
        return None if rate is None or accuracy is None else (accuracy + (100.0 - rate)) / 2

    by_class = [percent(part, whole) for part, whole in zip(correct, asked, strict=True)]
    return {
        "A": accuracy,
        "ASR": asr,
        "ASR_all": asr_all,
        "R": resist(asr),
        "V": balance(asr),
        "R_all": resist(asr_all),
        "V_all": balance(asr_all),
        "per_class": by_class if len(asked) > 1 else [],
    }


def detection(
    flagged: np.ndarray, scores: np.ndarray, participating: np.ndarray, attacking: np.ndarray
) -> dict[str, float | None]:
    """How the verdict of one round, or of several joined, agrees with the truth; undefined = None.

    Args:
        flagged, participating, attacking: [K] bool, by row.
        scores: [K] float, larger = more suspicious.

    Returns:
        tpr, fpr, precision, f1 of the flags in percent, among the participants; auc of the scores in [0, 1], the
        probability that an attacking client's is above another's (ties one half), None where all scores are equal.
    """
    bad, good = participating & attacking, participating & ~attacking
    hits, false_alarms = int((flagged & bad).sum()), int((flagged & good).sum())

    def percent(part: float, whole: Any) -> float | None:
        return 100.0 * part / float(whole) if whole > 0 else None

    auc = None
    if bad.any() and good.any() and np.ptp(scores[participating]) > 0:
        gaps = scores[bad][:, None] - scores[good][None, :]
        auc = float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())
    return {
        "tpr": percent(hits, bad.sum()),
        "fpr": percent(false_alarms, good.sum()),
        "precision": percent(hits, hits + false_alarms),
        "f1": percent(2 * hits, hits + false_alarms + bad.sum()) if bad.any() else None,
        "auc": auc,
    }


def detection_over_run(history: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Detection over all evaluated rounds: flags are pooled, auc is the mean of the rounds that have one.

    Args:
        history: lines of `metrics.jsonl`; a malicious client counts in the rounds in which it attacks.

    Returns:
        tpr, fpr, precision, f1, auc as in `detection`, and perfect_rounds, the percentage of rounds in which exactly
        the attacking participants were flagged.
    """
    if not history:
        return dict.fromkeys((*DETECTION, "perfect_rounds"))
    flagged, participating, attacking = (
        np.concatenate([np.array(line[name], bool) for line in history])
        for name in ("flagged", "participating", "attacking")
    )
    pooled = detection(flagged, np.zeros(len(flagged)), participating, attacking)
    areas = [line["auc"] for line in history if line["auc"] is not None]
    perfect = [
        np.array_equal(line["flagged"], np.array(line["participating"], bool) & np.array(line["attacking"], bool))
        for line in history
    ]
    return {
        **pooled,
        "auc": float(np.mean(areas)) if areas else None,
        "perfect_rounds": 100.0 * float(np.mean(perfect)),
    }


def summarise(history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of the last five evaluated rounds of each percentage (`A`, ...) and the last round's (`A_last`, ...)."""
    summary: dict[str, Any] = {}
    for name in SCALARS:
        values = [line[name] for line in history[-LAST_ROUNDS:]]
        known = [value for value in values if value is not None]
        summary[name] = float(np.mean(known)) if known else None
        summary[f"{name}_last"] = values[-1] if values else None
    return summary


def paper_report(accuracy: np.ndarray, attack_success: np.ndarray) -> dict[str, Any]:
    """The papers' report over repeated runs: per-round means, and the mean of the last five, all rounded to 3 decimals.

    Source: the SPMC code's analysis script: R = 100 - ASR.

    Args:
        accuracy, attack_success: [runs, rounds] float64, percent.

    Returns:
        A_series, R_series ([rounds]), A, R.
    """
    series_a = np.round(np.mean(accuracy, axis=0), 3)
    series_r = np.round(np.mean(100.0 - attack_success, axis=0), 3)
    return {
        "A_series": series_a,
        "R_series": series_r,
        "A": round(float(np.mean(series_a[-LAST_ROUNDS:])), 3),
        "R": round(float(np.mean(series_r[-LAST_ROUNDS:])), 3),
    }
