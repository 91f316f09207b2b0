"""The pictures of a run folder. Figures are built without pyplot, so that nothing global is touched."""

import io
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_spmc.record import files
from fedjax_spmc.types import Picture

if typing.TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"A": "#0072B2", "ASR": "#D55E00", "R": "#009E73", "V": "#CC79A7"}
"""Okabe and Ito's palette: told apart with any colour vision."""
BENIGN, MALICIOUS = "#0072B2", "#D55E00"
CELL_TEXT_COLOUR = "#111111"
"""Of text on light cells. A report turns plain black into the page's own ink, which is light on a dark page."""
MAX_PANELS, MAX_COLUMNS = 24, 6
"""Panels of a picture of several runs, and how many of them stand side by side."""
MAX_NAMED_CLIENTS = 40
"""Up to so many clients, each gets a line or a name of its own."""


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that notebooks show: those of pyplot they know by themselves."""

        def _repr_png_(self) -> bytes:
            return _png(self)

    return Shown(figsize=(width, height), layout="constrained")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _save(figure: "Figure", path: Path) -> None:
    """Writes a figure as a PNG, atomically.

    Raises:
        OSError: it cannot be written; the file is named.
    """
    files.replace(path, _png(figure))


def whole_rounds(axis: Any) -> None:
    """Rounds are whole numbers: so are the ticks of the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """A, ASR, R and V over the rounds, one panel per run, of the first `MAX_PANELS` runs.

    Args:
        runs: title -> history (lines of `metrics.jsonl`).
        path: the PNG to write.
    """
    _save(curves_figure(runs), path)


def curves_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """The picture of `curves`; a notebook shows it as it is."""
    shown = list(runs.items())[:MAX_PANELS]
    columns = min(len(shown), MAX_COLUMNS)
    rows = -(-len(shown) // columns)
    figure = _figure(4.8 * columns, 3.6 * rows)
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.remove()
    for axis, (title, history) in zip(axes, shown, strict=False):
        rounds = [line["round"] + 1 for line in history]
        for name, colour in COLOURS.items():
            values = [np.nan if line[name] is None else line[name] for line in history]
            if not np.all(np.isnan(values)):
                axis.plot(rounds, values, color=colour, label=name, marker="." if len(rounds) < 30 else None)
        axis.set(title=title, xlabel="round", ylim=(-2, 102))
        whole_rounds(axis)
        axis.grid(alpha=0.3)
    for axis in axes[::columns]:
        axis.set_ylabel("percent")
    axes[columns - 1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def partition(counts: np.ndarray, malicious: np.ndarray, path: Path) -> None:
    """Training examples by client and class; malicious clients are marked.

    Args:
        counts: [N, classes] examples.
        malicious: [N] bool.
        path: the PNG to write.
    """
    num_clients, num_classes = counts.shape
    figure = _figure(min(3 + 0.5 * num_classes, 14), min(1.6 + 0.32 * num_clients, 12))
    draw_partition(figure.subplots(), counts, malicious)
    _save(figure, path)


def draw_partition(axis: Any, counts: np.ndarray, malicious: np.ndarray) -> None:
    """Draws the table of `partition` on an axis."""
    num_clients, num_classes = counts.shape
    image = axis.imshow(counts, cmap="Blues", aspect="auto", vmin=0)
    if num_clients <= MAX_NAMED_CLIENTS and num_classes <= 20:
        top = max(1, counts.max())
        for client in range(num_clients):
            for label in range(num_classes):
                colour = "white" if counts[client, label] > 0.6 * top else CELL_TEXT_COLOUR
                axis.text(label, client, str(counts[client, label]), ha="center", va="center", color=colour, fontsize=7)
        axis.set_yticks(
            range(num_clients),
            [f"{k}{' malicious' if malicious[k] else ''}  ({counts[k].sum()})" for k in range(num_clients)],
            fontsize=8,
        )
        mark_malicious(axis.get_yticklabels(), malicious)
        axis.set_xticks(range(num_classes))
    axis.set(xlabel="class", ylabel="client (examples)", title="training examples by client and class")
    axis.figure.colorbar(image, ax=axis)


def mark_malicious(labels: Sequence[Any], malicious: np.ndarray) -> None:
    """Colours the labels of an axis that belong to malicious clients."""
    for label, bad in zip(labels, malicious, strict=True):
        label.set_color(MALICIOUS if bad else "black")


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
    draw_clients(axes[0], rounds, tables["scores"], malicious, tables["flagged"])
    draw_clients(axes[1], rounds, tables["weights"], malicious)
    for axis, name in zip(axes, ("score", "weight"), strict=True):
        axis.set_title(f"{name} of each client")
    _save(figure, path)


def draw_clients(
    axis: Any, rounds: np.ndarray, values: np.ndarray, malicious: np.ndarray, flagged: np.ndarray | None = None
) -> None:
    """Draws a number of every client over the rounds; of more than 40 the median and the range of either kind.

    Args:
        axis: of a figure.
        rounds: [R], from 1.
        values: [R, N], NaN where a client did not take part.
        malicious: [N] bool.
        flagged: [R, N], above 0 where the client was flagged; None marks none.
    """
    for colour, label, group in ((BENIGN, "benign", ~malicious), (MALICIOUS, "malicious", malicious)):
        seen = ~np.isnan(values[:, group]).all(axis=1)
        if not seen.any():
            continue
        if len(malicious) <= MAX_NAMED_CLIENTS:
            style: dict[str, Any] = {"color": colour, "alpha": 0.7, "linewidth": 1.2, "markersize": 3}
            lines = axis.plot(
                rounds, values[:, group], marker="." if len(rounds) < MAX_NAMED_CLIENTS else None, **style
            )
            lines[0].set_label(label)
        else:
            low, middle, high = np.nanquantile(values[seen][:, group], (0, 0.5, 1), axis=1)
            axis.fill_between(rounds[seen], low, high, color=colour, alpha=0.2, linewidth=0)
            axis.plot(rounds[seen], middle, color=colour, label=label)
    if flagged is not None and len(malicious) <= MAX_NAMED_CLIENTS and (flagged > 0).any():
        marked = np.argwhere(flagged > 0)
        ring: dict[str, Any] = {"s": 36, "facecolors": "none", "edgecolors": "black", "linewidths": 0.8}
        axis.scatter(rounds[marked[:, 0]], values[marked[:, 0], marked[:, 1]], **ring)
        axis.scatter([], [], label="flagged", **ring)
    axis.set_xlabel("round")
    whole_rounds(axis)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="best", frameon=False, fontsize=8)


def details(pictures: Sequence[Picture], arrays: Mapping[str, np.ndarray], malicious: np.ndarray, path: Path) -> None:
    """The pictures that a rule declares of its details, side by side.

    Args:
        pictures: that fit the arrays, one at least.
        arrays: the rule's details of a round.
        malicious: [K] bool, by row.
        path: the PNG to write.
    """
    figure = _figure(4.4 * len(pictures) + 0.8, 3.9)
    for axis, picture in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True):
        draw_details(axis, picture, arrays, malicious)
    _save(figure, path)


def draw_details(axis: Any, picture: Picture, arrays: Mapping[str, np.ndarray], malicious: np.ndarray) -> None:
    """Draws one of the pictures of a rule's details; `malicious` is [K] bool, by row."""
    if picture.edges:
        _draw_lines(axis, picture, arrays, malicious)
    else:
        _draw_matrix(axis, picture, arrays[picture.array], malicious)


def _draw_matrix(axis: Any, picture: Picture, matrix: np.ndarray, malicious: np.ndarray) -> None:
    image = axis.imshow(matrix, cmap="viridis")  # over the range that there is
    axis.set(title=picture.title, xlabel="client (row)", ylabel="client (row)")
    if len(malicious) <= MAX_NAMED_CLIENTS:
        for ticks in (axis.set_xticks(range(len(malicious))), axis.set_yticks(range(len(malicious)))):
            mark_malicious([tick.label1 for tick in ticks], malicious)
    axis.figure.colorbar(image, ax=axis)


def _draw_lines(axis: Any, picture: Picture, arrays: Mapping[str, np.ndarray], malicious: np.ndarray) -> None:
    edges = [f"{edge:.0e}" for edge in arrays[picture.edges]]
    names = [f"< {edges[0]}", *[f"< {edge}" for edge in edges[1:]], f"≥ {edges[-1]}"]
    for colour, label, group in ((BENIGN, "benign", ~malicious), (MALICIOUS, "malicious", malicious)):
        lines = axis.plot(arrays[picture.array][group].T, color=colour, alpha=0.7, linewidth=1.2)
        if lines:
            lines[0].set_label(label)
    axis.set_xticks(range(len(names)), names, rotation=60, fontsize=7)
    axis.set(title=picture.title, ylabel=picture.label, ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
