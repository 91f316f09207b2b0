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
BENIGN, MALICIOUS = "#0072B2", "#D55E00"
FEW = 40
"""Up to so many clients each gets a line or a name of its own."""


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
    few = num_clients <= FEW and num_classes <= 20
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
            tick.set_color(MALICIOUS if bad else "black")
        axis.set_xticks(range(num_classes))
    axis.set(xlabel="class", ylabel="client (images)", title="training images by client and class")
    figure.colorbar(image, ax=axis)
    figure.savefig(path, dpi=120)


def verdicts(history: Sequence[Mapping[str, Any]], malicious: np.ndarray, path: Path) -> None:
    """Score and weight of every client over the rounds (FDCR's Figure 2); flags are marked on the scores.

    Of more than 40 clients the median and the range of the benign and of the malicious ones are shown.

    Args:
        history: lines of `metrics.jsonl`.
        malicious: [N] bool.
        path: the PNG to write.
    """
    rounds = np.array([line["round"] + 1 for line in history])
    tables = {name: np.full((len(history), len(malicious)), np.nan) for name in ("scores", "weights", "flagged")}
    for i, line in enumerate(history):
        took_part = np.array(line["participating"], bool)
        rows = np.array(line["client_ids"], int)[took_part]
        for name, table in tables.items():
            table[i, rows] = np.array(line[name], float)[took_part]
    figure = _figure(9.6, 3.6)
    axes = figure.subplots(1, 2)
    for axis, name in zip(axes, ("scores", "weights"), strict=True):
        for colour, label, group in ((BENIGN, "benign", ~malicious), (MALICIOUS, "malicious", malicious)):
            values = tables[name][:, group]
            seen = ~np.isnan(values).all(axis=1)
            if not seen.any():
                continue
            if len(malicious) <= FEW:
                lines = axis.plot(rounds, values, color=colour, alpha=0.7, linewidth=1.2, marker=".", markersize=3)
                lines[0].set_label(label)
            else:
                low, middle, high = np.nanquantile(values[seen], (0, 0.5, 1), axis=1)
                axis.fill_between(rounds[seen], low, high, color=colour, alpha=0.2, linewidth=0)
                axis.plot(rounds[seen], middle, color=colour, label=label)
        axis.set(title=f"{name[:-1]} of each client", xlabel="round")
        axis.grid(alpha=0.3)
    flagged = np.argwhere(tables["flagged"] > 0)
    if len(malicious) <= FEW and len(flagged):
        marked = tables["scores"][flagged[:, 0], flagged[:, 1]]
        axes[0].scatter(rounds[flagged[:, 0]], marked, s=36, facecolors="none", edgecolors="black", linewidths=0.8)
        axes[0].scatter([], [], s=36, facecolors="none", edgecolors="black", linewidths=0.8, label="flagged")
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(loc="best", frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def importances(details: Mapping[str, np.ndarray], malicious: np.ndarray, path: Path) -> None:
    """Similarity of the clients' parameter importances, and how these are distributed (FDCR's Figure 1).

    Args:
        details: "importance_shares" [K, classes] with "importance_edges" [classes - 1], and, where there are not too
            many clients, "importance_similarity" [K, K].
        malicious: [K] bool, by row.
        path: the PNG to write.
    """
    similarity = details.get("importance_similarity")
    figure = _figure(9.6 if similarity is not None else 5.2, 3.9)
    axes = figure.subplots(1, 2 if similarity is not None else 1, squeeze=False)[0]
    if similarity is not None:
        image = axes[0].imshow(similarity, cmap="viridis", vmin=0, vmax=1)
        axes[0].set(title="cosine between importances", xlabel="client (row)", ylabel="client (row)")
        if len(malicious) <= FEW:
            for ticks in (axes[0].set_xticks(range(len(malicious))), axes[0].set_yticks(range(len(malicious)))):
                for tick, bad in zip(ticks, malicious, strict=True):
                    tick.label1.set_color(MALICIOUS if bad else "black")
        figure.colorbar(image, ax=axes[0])
    edges = [f"{edge:.0e}" for edge in details["importance_edges"]]
    names = [f"< {edges[0]}", *[f"< {edge}" for edge in edges[1:]], f"≥ {edges[-1]}"]
    for colour, label, group in ((BENIGN, "benign", ~malicious), (MALICIOUS, "malicious", malicious)):
        lines = axes[-1].plot(details["importance_shares"][group].T, color=colour, alpha=0.7, linewidth=1.2)
        if lines:
            lines[0].set_label(label)
    axes[-1].set_xticks(range(len(names)), names, rotation=60, fontsize=7)
    axes[-1].set(title="distribution of importances", ylabel="share of the parameters", ylim=(0, None))
    axes[-1].grid(alpha=0.3)
    axes[-1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)
