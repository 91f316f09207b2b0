"""The lines of a run's `metrics.jsonl`, whatever version wrote them, and the numbers of the run made from them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_spmc import durability, metrics, reading
from fedjax_spmc.evaluation import BINS

THIRDS = ("first", "middle", "last")
DETECTION = ("tpr", "fpr", "auc")
FLAG_RATES = ("tpr", "fpr", "precision", "f1")
"""What is undefined of a rule that never flags anybody."""
MEAN_SCORES = ("score_benign", "score_malicious")
WEIGHT_SUMMARY = ("alpha_benign", "alpha_malicious", "alpha_smallest", "alpha_largest")
PER_RUN = (
    *(f"{name}_{part}" for part in ("run", *THIRDS) for name in DETECTION),
    "perfect_rounds",
    *MEAN_SCORES,
    *WEIGHT_SUMMARY,
)
"""Numbers of a whole run: detection over it and by thirds of it, percent (auc 0..1); clients' scores and weights."""


def read_lines(path: Path, num_clients: int, rule_flags: bool | None = None) -> list[dict[str, Any]]:
    """The lines that can be read and name clients of the run, by round; of two lines of a round the later one.

    Args:
        path: of the run's `metrics.jsonl`.
        num_clients: N.
        rule_flags: whether the rule flags clients at all, which lines of older versions do not say; None = not known.
            It is taken to where anybody was flagged.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    by_round: dict[int, dict[str, Any]] = {}
    for raw in text.split("\n"):
        try:
            line = reading.json_of(raw)
        except ValueError:
            continue
        if not isinstance(line, dict) or type(line.get("round")) is not int:
            continue
        ids = line.get("client_ids", [])
        if isinstance(ids, list) and all(type(i) is int and 0 <= i < num_clients for i in ids):
            by_round[line["round"]] = line
    lines = [by_round[index] for index in sorted(by_round)]
    flags = bool(rule_flags) or any(np.nan_to_num(client_values(line, "flagged")).any() for line in lines)
    return [_with_flags(line, flags) for line in lines]


def _with_flags(line: dict[str, Any], flags: bool) -> dict[str, Any]:
    """A line that says whether its rule flags; where it does not, nothing is known of its flags."""
    if "rule_flags" in line:
        return line
    unknown = {} if flags else {name: None for name in FLAG_RATES if name in line}
    return line | unknown | {"rule_flags": flags}


def number(value: Any) -> float:
    """The value as a float; NaN where it is no number."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def client_values(line: Mapping[str, Any], name: str) -> np.ndarray:
    """[K] float: a per-client entry of a line by row; NaN where it is undefined, all NaN where the line lacks it."""
    ids, values = line.get("client_ids"), line.get(name)
    length = len(ids) if isinstance(ids, list) else 0
    if not isinstance(values, list) or len(values) != length:
        return np.full(length, np.nan)
    return np.array([math.nan if value is None else value for value in values], float)


def participating(line: Mapping[str, Any]) -> np.ndarray:
    """[K] bool: who took part; all clients drawn where a line of an older version does not say."""
    stated = client_values(line, "participating")
    return np.where(np.isnan(stated), 1.0, stated) > 0


def client_ids(line: Mapping[str, Any]) -> np.ndarray:
    """[K] int: the client of each row."""
    ids = line.get("client_ids")
    return np.array(ids if isinstance(ids, list) else [], int)


def numbers_of(lines: Sequence[Mapping[str, Any]], malicious: np.ndarray) -> dict[str, float]:
    """All numbers of a run: `metrics.MEANS`, of the last five evaluated rounds, and `PER_RUN`; NaN = undefined.

    Args:
        lines: at least one.
        malicious: [N] bool.
    """
    last = lines[-metrics.LAST_ROUNDS :]
    found = {name: _mean(number(line.get(name)) for line in last) for name in metrics.MEANS}
    found["mean_of"] = float(len(last))
    parts = [lines, *([lines[i] for i in part] for part in np.array_split(np.arange(len(lines)), len(THIRDS)))]
    for name, part in zip(("run", *THIRDS), parts, strict=True):
        found |= {f"{key}_{name}": value for key, value in _detection(part, malicious).items()}
    found["perfect_rounds"] = 100 * _mean(_is_perfect(line, malicious) for line in lines)
    bad, scores = _pooled(lines, malicious, "scores")
    found |= dict(zip(MEAN_SCORES, (_mean(scores[~bad]), _mean(scores[bad])), strict=True))
    return found | _weights(lines, malicious)


def durability_of(
    lines: Sequence[Mapping[str, Any]], last: int | None, thresholds: Sequence[float]
) -> dict[str, float]:
    """How long the backdoor outlived the attack: the names of `durability.measure`, NaN where undefined.

    Args:
        lines: of the run.
        last: last round of the attack; None = it has no end.
        thresholds: percent.
    """
    rates = [number(line.get("ASR")) for line in lines]
    known = [None if math.isnan(rate) else rate for rate in rates]
    return plain_numbers(durability.measure([line["round"] for line in lines], known, last, thresholds))


def plain_numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """Numbers and truth values as floats, anything else as NaN."""
    return {name: float(value) if isinstance(value, (bool, int, float)) else math.nan for name, value in found.items()}


def over_confidence(line: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What a line would say with other confidences: "confidence", A, ASR, ASR_all, R, V, ... over the grid of all tau.

    Returns:
        Name -> [BINS] float, percent, NaN where undefined; {} where the line has no histograms.
    """
    kept = line.get("histograms")
    if not isinstance(kept, dict) or not kept:
        return {}
    grid = np.arange(BINS) / BINS
    found = [metrics.judged(kept, float(tau), backdoor="triggered" in kept) for tau in grid]
    columns = {name: np.array([number(one[name]) for one in found]) for name in found[0]}
    return {"confidence": grid} | columns


def _detection(lines: Sequence[Mapping[str, Any]], malicious: np.ndarray) -> dict[str, float]:
    """Flags pooled over the rounds; auc is the mean of the rounds that have one."""
    bad, flagged = _pooled(lines, malicious, "flagged", "attacking")
    areas = _mean(number(line.get("auc")) for line in lines)
    if not all(line.get("rule_flags", True) for line in lines):
        return dict(zip(DETECTION, (math.nan, math.nan, areas), strict=True))
    return dict(zip(DETECTION, (100 * _mean(flagged[bad]), 100 * _mean(flagged[~bad]), areas), strict=True))


def _is_perfect(line: Mapping[str, Any], malicious: np.ndarray) -> float:
    """Whether exactly the attacking were flagged; NaN where the line does not say who was flagged."""
    bad, flagged = _pooled([line], malicious, "flagged", "attacking")
    if not line.get("rule_flags", True):
        return math.nan
    return math.nan if np.isnan(flagged).any() else float(np.array_equal(flagged > 0, bad))


def _weights(lines: Sequence[Mapping[str, Any]], malicious: np.ndarray) -> dict[str, float]:
    """Mean weights of benign and of malicious clients, the smallest and the largest of all."""
    bad, weights = _pooled(lines, malicious, "weights")
    known = weights[~np.isnan(weights)]
    ends = (float(known.min()), float(known.max())) if len(known) else (math.nan, math.nan)
    return dict(zip(WEIGHT_SUMMARY, (_mean(weights[~bad]), _mean(weights[bad]), *ends), strict=True))


def _pooled(
    lines: Sequence[Mapping[str, Any]], malicious: np.ndarray, name: str, kind: str = "malicious"
) -> tuple[np.ndarray, np.ndarray]:
    """Over all rounds, of those who took part: who is malicious or attacking (bool), and an entry of the lines (float).

    Lines of older versions do not say who attacks: there it is everyone who is malicious.
    """
    here = [participating(line) for line in lines]
    ids = [client_ids(line)[mask] for line, mask in zip(lines, here, strict=True)]
    values = [client_values(line, name)[mask] for line, mask in zip(lines, here, strict=True)]
    empty = np.zeros(0)
    bad = malicious[np.concatenate([empty.astype(int), *ids])]
    if kind == "attacking" and all(kind in line for line in lines):
        stated = [client_values(line, kind)[mask] for line, mask in zip(lines, here, strict=True)]
        bad = np.concatenate([empty, *stated]) > 0
    return bad, np.concatenate([empty, *values])


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
