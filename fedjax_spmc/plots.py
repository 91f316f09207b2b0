"""The pictures of a run folder. Figures are built without pyplot, so that nothing global is touched."""

import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"A": "#0072B2", "ASR": "#D55E00", "R": "#009E73", "V": "#CC79A7"}
"""Okabe and Ito's palette: told apart with any colour vision."""


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """A, ASR, R and V over the rounds, one panel per run.

    Args:
        runs: title -> history (lines of `metrics.jsonl`).
        path: the PNG to write.
    """
    figure = _figure(4.8 * len(runs), 3.6)
    axes = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axis, (title, history) in zip(axes, runs.items(), strict=True):
        rounds = [line["round"] + 1 for line in history]
        for name, colour in COLOURS.items():
            values = [np.nan if line[name] is None else line[name] for line in history]
            if not np.all(np.isnan(values)):
                axis.plot(rounds, values, color=colour, label=name, marker="." if len(rounds) < 30 else None)
        axis.set(title=title, xlabel="round", ylim=(-2, 102))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("percent")
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=120)


def partition(counts: np.ndarray, malicious: np.ndarray, path: Path) -> None:
    """Training images by client and class; malicious clients are marked.

    Args:
        counts: [N, classes] images.
        malicious: [N] bool.
        path: the PNG to write.
    """
    num_clients, num_classes = counts.shape
    few = num_clients <= 40 and num_classes <= 20
    figure = _figure(min(3 + 0.5 * num_classes, 14), min(1.6 + 0.32 * num_clients, 12))
    axis = figure.subplots()
    image = axis.imshow(counts, cmap="Blues", aspect="auto", vmin=0)
    if few:
        top = max(1, counts.max())
        for client in range(num_clients):
            for label in range(num_classes):
                colour = "white" if counts[client, label] > 0.6 * top else "black"
                axis.text(label, client, str(counts[client, label]), ha="center", va="center", color=colour, fontsize=7)
        axis.set_yticks(
            range(num_clients),
            [f"{k}{' malicious' if malicious[k] else ''}  ({counts[k].sum()})" for k in range(num_clients)],
            fontsize=8,
        )
        for tick, bad in zip(axis.get_yticklabels(), malicious, strict=True):
            tick.set_color("#D55E00" if bad else "black")
        axis.set_xticks(range(num_classes))
    axis.set(xlabel="class", ylabel="client (images)", title="training images by client and class")
    figure.colorbar(image, ax=axis)
    figure.savefig(path, dpi=120)
