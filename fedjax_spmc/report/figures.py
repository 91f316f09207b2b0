"""Pictures as SVG inside the page: black ink becomes the page's own, so that they can be read on light and dark."""

import base64
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc import types
from fedjax_spmc.record import files, plots
from fedjax_spmc.registry import aggregators
from fedjax_spmc.report import read
from fedjax_spmc.report.estimates import Estimate
from fedjax_spmc.report.history import client_ids
from fedjax_spmc.report.read import Run
from fedjax_spmc.report.settings import (
    CONDITIONS,
    Setting,
    conditions_of,
    differing_fields,
    labels,
    short_name,
    value_text,
)

LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D1F")
"""Okabe and Ito's palette; yellow is darkened, and black is left to the ink."""
END_OF_ATTACK = "#808080"
LINE_STYLES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")
MAX_PANELS = 24
MAX_LINES = 28
MAX_CLIENTS = 200
"""Clients up to whose number the heat map of weights, a row per client, is drawn."""


Margins = tuple[float, float, float, float]
MARGINS: Margins = (0.62, 0.15, 0.35, 0.5)
MARGINS_FOR_NAMES: Margins = (1.05, 0.1, 0.35, 0.5)
"""With room for the names of clients on the left."""


class Picture(NamedTuple):
    """A picture of the page: markup (an svg or img element), a caption, and whether it takes the whole width."""

    markup: str
    caption: str
    wide: bool = False


def draw(
    paint: Callable[[Any], None], caption: str, width: float = 5.4, height: float = 3.3, margins: Margins = MARGINS
) -> Picture:
    """Paints on a fresh axis and returns it as SVG.

    Args:
        paint: takes a matplotlib axis.
        caption: below the picture; also what a screen reader says.
        width, height: inches at which 10 points are the size of text.
        margins: inches left, right, above and below the axis.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}):
        figure = Figure(figsize=(width, height))  # fixed margins: a layout engine would draw everything twice
        left, right, top, bottom = margins
        figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
        paint(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Picture(inline_svg(buffer.getvalue(), caption), caption)


def inline_svg(svg: str, caption: str) -> str:
    """An SVG file as an element of a page: unique ids, black as the page's text colour, named for screen readers."""
    body = svg[svg.index("<svg") :]
    mark = "s" + hashlib.sha256((caption + body).encode()).hexdigest()[:10]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style type=\"text/css\">.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{mark}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{mark}", body)
    body = re.sub(r' (?:d|x|y|points|transform)="[^"]*"', lambda m: re.sub(r"(\d\.\d\d)\d+", r"\1", m[0]), body)
    body = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", body)
    body = re.sub(r"(fill|stroke): (#0072b2|#d55e00)", lambda m: f"{m[1]}: var(--{m[2][1:]}, {m[2]})", body)
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', body)
    assert size is not None
    name = _attribute(caption)
    style = f'role="img" aria-label="{name}" style="width:{float(size[1]) / 72:.2f}in"'
    return body.replace(size[0], style, 1).replace("\n", "")


def with_unique_ids(page: str) -> str:
    """The page with new ids in every picture that it holds more than once: two runs may have the same partition."""
    seen: dict[str, int] = {}

    def renamed(match: re.Match[str]) -> str:
        mark = re.search(r' id="(s[0-9a-f]{10})', match[0])
        if mark is None:
            return match[0]
        seen[mark[1]] = seen.get(mark[1], 0) + 1
        return match[0] if seen[mark[1]] == 1 else match[0].replace(mark[1], f"{mark[1]}n{seen[mark[1]]}")

    return re.sub(r"<svg.*?</svg>", renamed, page, flags=re.DOTALL)


def named(picture: Picture, of: str) -> Picture:
    """The picture with what it is of in the name that a screen reader says, so that no two are named alike."""
    return picture._replace(markup=named_markup(picture.markup, of))


def named_markup(markup: str, of: str) -> str:
    """See `named`."""
    return re.sub(r'(aria-label|alt)="', lambda m: f"{m[0]}{_attribute(of)}: ", markup, count=1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def png(content: bytes, caption: str, css: str = "") -> str:
    """A PNG as an img element."""
    name = _attribute(caption)
    return f'<img class="{css}" alt="{name}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


class Panel(NamedTuple):
    """Curves that can be compared: settings alike in everything but the method; the legend says (label, key)."""

    title: str
    pictures: list[Picture]
    legend: list[tuple[str, str]]


def curves(settings: Sequence[Setting]) -> tuple[list[Panel], int]:
    """Curves over the rounds, one panel for each set of conditions, and how many panels were left out.

    A panel has A and R_all (SPMC's Figure 6, FDCR's Figure 3); ASR with a line at the attack's last round where the
    rounds go on after it; and, where anybody was flagged, TPR and FPR.
    """
    ordered = _by_conditions(settings)
    made = [_panel(words, members) for words, members in ordered[:MAX_PANELS]]
    return made, max(0, len(ordered) - MAX_PANELS)


def headline(settings: Sequence[Setting]) -> Panel | None:
    """The one picture that comes first: ASR over the rounds, or A where there is no backdoor, of the settings under the
    conditions that most have; None where nothing was played."""
    for words, members in _by_conditions(settings)[:1]:
        for metric, title in (("ASR", "attack success rate ASR"), ("A", "accuracy A")):
            known = {index: one.curve(metric) for index, one in enumerate(members[:MAX_LINES])}
            known = {index: curve for index, curve in known.items() if (~np.isnan(curve[1])).any()}
            if known:
                caption = f"{title} over the rounds{f', {words}' if words else ''}"
                ends = sorted({end for one in members if (end := _end_of_attack(one)) is not None})
                picture = draw(lambda axis, k=known, t=title, e=ends: _plot_curves(axis, k, t, e), caption, height=2.7)
                names = labels(members, CONDITIONS)[:MAX_LINES]
                return Panel(words, [picture], [(name, _legend_key(index)) for index, name in enumerate(names)])
    return None


def _by_conditions(settings: Sequence[Setting]) -> list[tuple[str, list[Setting]]]:
    """The settings that were played, by conditions in words; those that most have come first."""
    drawn = [setting for setting in settings if any(run.lines for run in setting.counted)]
    axes = [path for path in CONDITIONS if path in differing_fields(drawn)]
    panels: dict[tuple[str, ...], list[Setting]] = {}
    for setting in drawn:
        conditions = {path: setting.config[path] for path in axes} | conditions_of(setting.config)
        words = [f"{short_name(path)} = {value_text(value)}" for path, value in conditions.items()]
        panels.setdefault(tuple(words), []).append(setting)
    return [(", ".join(words), members) for words, members in sorted(panels.items(), key=lambda pair: -len(pair[1]))]


def _panel(title: str, members: Sequence[Setting]) -> Panel:
    names = labels(members, CONDITIONS)
    lines = members[:MAX_LINES]
    more = f"; {len(members) - MAX_LINES} more settings are not drawn" if len(members) > MAX_LINES else ""
    made = []
    wanted = {"A": "accuracy A", "R_all": "robustness R_all"}
    ends = sorted({end for setting in members if (end := _end_of_attack(setting)) is not None})
    if ends:
        wanted["ASR"] = "attack success rate ASR"
    if any(name in ("tpr", "fpr") and setting.curve(name)[1].any() for name in ("tpr", "fpr") for setting in members):
        wanted |= {"tpr": "malicious clients that were flagged (TPR)", "fpr": "benign clients that were flagged (FPR)"}
    for metric, words in wanted.items():
        known = {index: setting.curve(metric) for index, setting in enumerate(lines)}
        known = {index: curve for index, curve in known.items() if (~np.isnan(curve[1])).any()}
        if known:
            caption = f"{words} over the rounds{f', {title}' if title else ''}: mean over seeds and 95 % interval{more}"
            lines_at = ends if metric == "ASR" else []
            if lines_at:
                caption += f"; grey: the last round of the attack ({', '.join(map(str, ends))})"
            paint = lambda axis, known=known, words=words, at=lines_at: _plot_curves(axis, known, words, at)  # noqa: E731
            made.append(draw(paint, caption))
    return Panel(title, made, [(label, _legend_key(index)) for index, label in enumerate(names[:MAX_LINES])])


def style_of(index: int, kinds: Sequence[str]) -> tuple[str, str]:
    """Colour, and one of the line styles or markers, of the line or the dots of a panel's INDEXth setting."""
    return LINE_COLOURS[index % len(LINE_COLOURS)], kinds[index // len(LINE_COLOURS) % len(kinds)]


def _legend_key(index: int) -> str:
    """A piece of a panel's line, for its legend."""
    colour, style = style_of(index, LINE_STYLES)
    dashes = {"-": "none", "--": "7 3", ":": "2 3", "-.": "7 3 2 3"}[style]
    paint = f"stroke:{_on_page(colour)};stroke-width:2.5;stroke-dasharray:{dashes}"
    line = f'<line x1="0" y1="5" x2="28" y2="5" style="{paint}"/>'
    return f'<svg class="key" viewBox="0 0 28 10" aria-hidden="true">{line}</svg>'


def dot_key(colour: str, marker: str = "o") -> str:
    """A dot of a picture, or another of `MARKERS`, or a cross, for its legend."""
    shapes = {"s": "M10 1H18V9H10Z", "^": "M14 1L18 9H10Z", "D": "M14 0L19 5L14 10L9 5Z", "x": "M10 1L18 9M18 1L10 9"}
    shape = '<circle cx="14" cy="5" r="4"' if marker == "o" else f'<path d="{shapes[marker]}"'
    paint = f"fill:none;stroke:{_on_page(colour)};stroke-width:2" if marker == "x" else f"fill:{_on_page(colour)}"
    return f'<svg class="key" viewBox="0 0 28 10" aria-hidden="true">{shape} style="{paint}"/></svg>'


def _on_page(colour: str) -> str:
    """A colour as a page has it, which is lighter where the page is dark."""
    return re.sub("(#0072b2|#d55e00)", lambda m: f"var(--{m[1][1:]}, {m[1]})", colour.lower())


def plot_estimates(
    axis: Any, places: np.ndarray, estimates: Sequence[Estimate], colour: str, marker: str = "o"
) -> None:
    """Dots at the means, at heights `places`, and lines over the intervals where there are any."""
    axis.plot([one.mean for one in estimates], places, linestyle="none", marker=marker, markersize=4, color=colour)
    axis.hlines(places, [one.low for one in estimates], [one.high for one in estimates], color=colour, linewidth=1.3)


def _end_of_attack(setting: Setting) -> int | None:
    """The last round of the attack, counted from 1, where rounds after it were evaluated."""
    last = setting.config["attack.schedule.last"]
    played = max((run.lines[-1]["round"] for run in setting.counted if run.lines), default=-1)
    return None if last is None or last >= played else last + 1


def _plot_curves(axis: Any, known: dict[int, Any], words: str, lines_at: Sequence[int] = ()) -> None:
    for end in lines_at:
        axis.axvline(end, color=END_OF_ATTACK, linewidth=1.2)
    for index, (rounds, mean, low, high) in known.items():
        colour, style = style_of(index, LINE_STYLES)
        marker = "." if len(rounds) < 30 else None
        axis.plot(rounds, mean, color=colour, linestyle=style, marker=marker, linewidth=1.5)
        if not np.isnan(low).all():
            axis.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.set(xlabel="round", ylabel="percent", ylim=(-2, 102), title=words)
    plots.whole_rounds(axis)
    axis.grid(alpha=0.3)


def run_pictures(run: Run) -> list[Picture]:
    """A run's own pictures: scores, weights, the heat map of weights, detection, and its aggregator's own."""
    if not run.lines:
        return []
    rounds, _ = run.series("A")
    scores, weights, flagged = (read.by_client(run, name) for name in ("scores", "weights", "flagged"))
    made = []
    if np.nan_to_num(scores).any():

        def paint_scores(axis: Any) -> None:
            plots.draw_clients(axis, rounds, scores, run.malicious, flagged)
            axis.set_title("score")

        made.append(draw(paint_scores, "score of each client over the rounds (V_k for FDCR); rings: flagged"))
    if not np.isnan(weights).all():

        def paint_weights(axis: Any) -> None:
            plots.draw_clients(axis, rounds, weights, run.malicious)
            axis.set_title("weight α")

        made.append(draw(paint_weights, "weight of each client over the rounds"))
        if len(run.malicious) <= MAX_CLIENTS:
            height = min(1.6 + 0.22 * len(run.malicious), 9)
            paint = lambda axis: _heat_map(axis, rounds, weights, run.malicious)  # noqa: E731
            caption = "weights of the clients over the rounds, malicious rows in orange"
            made.append(draw(paint, caption, height=height, margins=MARGINS_FOR_NAMES))
    if (flagged > 0).any():
        made.append(draw(lambda axis: _detection(axis, run), "share of the clients that were flagged, by kind"))
    return made + _detail_pictures(run)


def _heat_map(axis: Any, rounds: np.ndarray, weights: np.ndarray, malicious: np.ndarray) -> None:
    grid = np.ma.masked_invalid(weights.T)
    image = axis.imshow(grid, cmap="viridis", aspect="auto", interpolation="nearest")  # over the range that there is
    step = max(1, len(rounds) // 8)
    axis.set_xticks(range(0, len(rounds), step), rounds[::step])
    if len(malicious) <= plots.MAX_NAMED_CLIENTS:
        names = [f"{k} malicious" if bad else str(k) for k, bad in enumerate(malicious)]
        axis.set_yticks(range(len(malicious)), names, fontsize=8)
        plots.mark_malicious(axis.get_yticklabels(), malicious)
    else:
        for client in np.flatnonzero(malicious):
            axis.plot([-0.5], [client], marker=">", color=plots.MALICIOUS, markersize=4, clip_on=False)
    axis.set(xlabel="round", ylabel="client", title="weight α")
    axis.figure.colorbar(image, ax=axis)


def _detection(axis: Any, run: Run) -> None:
    for name, colour, label in (
        ("tpr", plots.MALICIOUS, "of the malicious (TPR)"),
        ("fpr", plots.BENIGN, "of the benign (FPR)"),
    ):
        rounds, values = run.series(name)
        axis.plot(rounds, values, color=colour, marker=".", markersize=4, linewidth=1.3, label=label)
    axis.set(xlabel="round", ylabel="percent", ylim=(-4, 104), title="flagged")
    plots.whole_rounds(axis)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)


def _detail_pictures(run: Run) -> list[Picture]:
    """The pictures that the run's aggregator declares of its details."""
    details = {} if run.folder is None else files.read_arrays(run.folder / "details.npz")
    malicious = run.malicious[client_ids(run.lines[-1])]
    made = []
    for one in _declared_pictures(run.config["aggregator.name"]) if details else ():
        if one.fits(details, len(malicious)):
            paint = lambda axis, one=one: plots.draw_details(axis, one, details, malicious)  # noqa: E731
            margins = (0.62, 0.1, 0.35, 0.8) if one.edges else MARGINS
            made.append(draw(paint, one.caption, height=3.9, margins=margins))
    return made


def _declared_pictures(aggregator: str) -> tuple[types.Picture, ...]:
    """The pictures of a rule with its options at their defaults; none of a plug-in's rule, which is not known here."""
    return aggregators.make(aggregator).pictures if aggregator in aggregators.names() else ()


def partition(counts: np.ndarray, malicious: np.ndarray) -> Picture:
    """Training examples by client and class: counts [N, classes]."""
    height = min(1.6 + 0.28 * len(counts), 11)
    paint = lambda axis: plots.draw_partition(axis, counts, malicious)  # noqa: E731
    return draw(paint, "training examples by client and class", width=6.2, height=height, margins=(1.5, 0.1, 0.35, 0.5))
