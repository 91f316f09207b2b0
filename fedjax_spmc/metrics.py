"""The metrics: A, ASR, R, V in percent, with and without test images of the target class, and detection."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_spmc.evaluation import BINS, Counts

DETECTION = ("tpr", "fpr", "precision", "f1", "auc")
"""How well a round's verdict tells malicious from benign clients; see `detection`."""
SCALARS = ("A", "ASR", "ASR_all", "R", "V", "R_all", "V_all", *DETECTION, "train_loss")
"""The single numbers of an evaluated round; the summary, TensorBoard and the run folder's checks go by this list."""
REJECTION = ("A_without_rejection", "ASR_without_rejection", "rejected_clean", "rejected_triggered")
"""Beside them: A and ASR whatever the confidence of a prediction, and the percentage of clean and of triggered labels
(those of ASR) whose prediction is rejected; see `judged`."""
NEXT_TOKEN = ("A_top3", "perplexity")
"""Beside them, where every place of a sequence asks for the next token: percentage of asked tokens among the three
likeliest, and exp of the mean of -log p over the asked tokens, both whatever the confidence; None for other data."""
MEANS = (*SCALARS, *REJECTION, *NEXT_TOKEN)
"""What a run is summed up by."""
PRINTED = ("A", "ASR", "R", "V", "ASR_all", "R_all", "V_all")
"""The columns of printed tables."""
LAST_ROUNDS = 5
"""A run is summed up by the mean of its last five evaluated rounds, as the papers do."""


def percentages(counts: Counts, backdoor: bool, confidence: float = 0.0) -> dict[str, Any]:
    """A, ASR, ASR_all, R, V, R_all, V_all, per_class (accuracy of each class) in percent, and `NEXT_TOKEN`; undefined
    = None.

    ASR leaves out labels that are the attacker's anyway, ASR_all keeps them. Where there are too many classes per_class
    is empty.

    Args:
        counts: of the test set.
        backdoor: whether there are triggered examples.
        confidence: predictions below it are rejected, see `judged`, but not for per_class; without histograms 0.
    """
    asked, correct, triggered, hits, triggered_others, hits_others = (np.asarray(x, np.int64) for x in counts[:6])
    by_class = [_percent(part, whole) for part, whole in zip(correct, asked, strict=True)]
    if counts.histograms is None:
        assert confidence == 0, "without histograms nothing can be rejected"
        rates = _percent(correct.sum(), asked.sum()), _percent(hits_others, triggered_others), _percent(hits, triggered)
        found = _rates(*rates, backdoor)
    else:
        found = judged(counts.histograms._asdict(), confidence, backdoor)
    kept = {name: found[name] for name in found if name not in REJECTION}
    return kept | {"per_class": by_class if len(asked) > 1 else []} | _of_next_tokens(counts, int(asked.sum()))


def _of_next_tokens(counts: Counts, asked: int) -> dict[str, float | None]:
    """The numbers of `NEXT_TOKEN`."""
    if counts.near is None or counts.nats is None or asked == 0:
        return dict.fromkeys(NEXT_TOKEN)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(np.float64(counts.nats) / asked))
    return dict(zip(NEXT_TOKEN, (_percent(int(counts.near), asked), perplexity), strict=True))


def judged(histograms: Mapping[str, Any], confidence: float, backdoor: bool) -> dict[str, float | None]:
    """The percentages where a prediction counts only if its probability is at least `confidence`; undefined = None.

    A rejected prediction is wrong for A, and failed for ASR and ASR_all; all asked labels stay in the denominators.
    Source: FLIP (ICLR 2023), evaluation with its confidence threshold tau: argmax = y and max softmax >= tau.

    Args:
        histograms: name -> [BINS] counts, see `evaluation.Histograms`.
        confidence: a multiple of 1 / BINS; 0 rejects nothing.
        backdoor: whether there are triggered examples.

    Returns:
        A, ASR, ASR_all, R, V, R_all, V_all and `REJECTION`.
    """
    first = round(confidence * BINS)
    bins = {name: np.asarray(counts, np.int64) for name, counts in histograms.items()}
    whole = {name: int(counts.sum()) for name, counts in bins.items()}
    kept = {name: int(counts[first:].sum()) for name, counts in bins.items()}
    asked, triggered, others = whole["clean"], whole.get("triggered", 0), whole.get("triggered_others", 0)
    right, hits, hits_others = kept["correct"], kept.get("hits", 0), kept.get("hits_others", 0)
    found = _rates(_percent(right, asked), _percent(hits_others, others), _percent(hits, triggered), backdoor)
    found["A_without_rejection"] = _percent(whole["correct"], asked)
    found["ASR_without_rejection"] = _percent(whole.get("hits_others", 0), others) if backdoor else None
    found["rejected_clean"] = _percent(asked - kept["clean"], asked)
    found["rejected_triggered"] = _percent(others - kept.get("triggered_others", 0), others) if backdoor else None
    return found


def _rates(accuracy: float | None, asr: float | None, asr_all: float | None, backdoor: bool) -> dict[str, float | None]:
    """A, ASR, ASR_all, R, V, R_all, V_all."""
    asr, asr_all = (asr, asr_all) if backdoor else (None, None)

    def resist(rate: float | None) -> float | None:
        return None if rate is None else 100.0 - rate

    def balance(rate: float | None) -> float | None:
        return None if rate is None or accuracy is None else (accuracy + (100.0 - rate)) / 2

    return {
        "A": accuracy,
        "ASR": asr,
        "ASR_all": asr_all,
        "R": resist(asr),
        "V": balance(asr),
        "R_all": resist(asr_all),
        "V_all": balance(asr_all),
    }


def _percent(part: Any, whole: Any) -> float | None:
    return 100.0 * float(part) / float(whole) if whole > 0 else None


def detection(
    flagged: np.ndarray, scores: np.ndarray, participating: np.ndarray, attacking: np.ndarray, flags: bool = True
) -> dict[str, float | None]:
    """How the verdict of one round, or of several joined, agrees with the truth; undefined = None.

    Args:
        flagged, participating, attacking: [K] bool, by row.
        scores: [K] float, larger = more suspicious.
        flags: whether the rule flags clients at all; else everything but auc is undefined.

    Returns:
        tpr, fpr, precision, f1 of the flags in percent, among the participants; auc of the scores in [0, 1], the
        probability that an attacking client's is above another's (ties one half), None where all scores are equal.
    """
    bad, good = participating & attacking, participating & ~attacking
    hits, false_alarms = int((flagged & bad).sum()), int((flagged & good).sum())

    auc = None
    if bad.any() and good.any() and np.ptp(scores[participating]) > 0:
        gaps = scores[bad][:, None] - scores[good][None, :]
        auc = float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())
    found: dict[str, float | None] = {
        "tpr": _percent(hits, bad.sum()),
        "fpr": _percent(false_alarms, good.sum()),
        "precision": _percent(hits, hits + false_alarms),
        "f1": _percent(2 * hits, hits + false_alarms + bad.sum()) if bad.any() else None,
    }
    return (found if flags else dict.fromkeys(found)) | {"auc": auc}


def detection_over_run(history: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Detection over all evaluated rounds: flags are pooled, auc is the mean of the rounds that have one.

    Args:
        history: lines of `metrics.jsonl`; a malicious client counts in the rounds in which it attacks.

    Returns:
        tpr, fpr, precision, f1, auc as in `detection`, and perfect_rounds, the percentage of rounds in which exactly
        the attacking participants were flagged; None where the rule never flags.
    """
    if not history:
        return dict.fromkeys((*DETECTION, "perfect_rounds"))
    flagged, participating, attacking = (
        np.concatenate([np.array(line[name], bool) for line in history])
        for name in ("flagged", "participating", "attacking")
    )
    flags = all(line.get("rule_flags", True) for line in history)
    pooled = detection(flagged, np.zeros(len(flagged)), participating, attacking, flags)
    areas = [line["auc"] for line in history if line["auc"] is not None]
    perfect = [
        np.array_equal(line["flagged"], np.array(line["participating"], bool) & np.array(line["attacking"], bool))
        for line in history
    ]
    return {
        **pooled,
        "auc": float(np.mean(areas)) if areas else None,
        "perfect_rounds": 100.0 * float(np.mean(perfect)) if flags else None,
    }


def summarise(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean of the last five evaluated rounds of each percentage (`A`, ...), of how many (`mean_of`: fewer where no more
    were evaluated), and the last round's (`A_last`, ...)."""
    summary: dict[str, Any] = {"mean_of": len(history[-LAST_ROUNDS:])}
    for name in MEANS:
        values = [line.get(name) for line in history[-LAST_ROUNDS:]]
        known = [value for value in values if value is not None]
        summary[name] = float(np.mean(known)) if known else None
        summary[f"{name}_last"] = values[-1] if values else None
    return summary


def mean_of_last(count: int) -> str:
    """What a mean over the last `count` evaluated rounds is called."""
    words = ("no round", "the last round alone", "the last two", "the last three", "the last four", "the last five")
    return f"mean of {words[count]}" if count > 1 else words[count]


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
