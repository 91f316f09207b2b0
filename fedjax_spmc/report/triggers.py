"""Pictures of FLIP on the report page: the triggers that a client has found, their sizes, A and ASR over confidence."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_spmc.record import files
from fedjax_spmc.report.figures import MARGINS, Picture, draw
from fedjax_spmc.report.history import over_confidence
from fedjax_spmc.report.read import Run

GAP = 2
"""Pixels between two pictures of a row."""
COLOURS = {"A": "#0072B2", "ASR": "#D55E00"}


def pictures(run: Run) -> list[Picture]:
    """What can be drawn of a run; nothing of runs without FLIP that reject nothing."""
    rule = {} if run.folder is None else files.read_arrays(run.folder / "rule.npz")
    attack = {} if run.folder is None else files.read_arrays(run.folder / "attack.npz")
    made = []
    if run.config["local.rule"] == "flip" and _is_of_flip(rule):
        made += [*_found(run, rule, attack), _sizes(rule)]
    if run.config["local.rule"] == "flip" or run.config["evaluation.confidence"] > 0:
        made += _over_confidence(run)
    return made


def _is_of_flip(rule: Mapping[str, np.ndarray]) -> bool:
    warm = rule.get("warm")
    return warm is not None and warm.ndim == 2 and warm.shape[0] == warm.shape[1] and "client_id" in rule


def true_trigger(attack: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
    """Mask and value [H, W, C] of the attack's pixel trigger, from `attack.npz`; None where it has none."""
    for name, mask in attack.items():
        value = attack.get(f"{name.removesuffix('mask')}value")
        if name.split(".")[-1] == "mask" and mask.ndim == 3 and value is not None and value.shape == mask.shape:
            return mask, value
    return None


def _found(run: Run, rule: Mapping[str, np.ndarray], attack: Mapping[str, np.ndarray]) -> list[Picture]:
    """Mask times pattern of each class towards the attacker's target, beside the true trigger."""
    masks, patterns, has = (rule.get(name) for name in ("masks", "patterns", "has"))
    target, classes = run.config.get("attack.target_label"), len(rule["warm"])
    if masks is None or patterns is None or has is None or not isinstance(target, int) or target >= classes:
        return []
    shown: list[tuple[str, np.ndarray]] = []
    true = true_trigger(attack)
    if true is not None and true[0].shape == patterns.shape[-3:]:
        mask, value = true
        top = float(np.abs(value[mask > 0]).max()) if (mask > 0).any() else 1.0
        shown.append(("true", np.clip(mask * value / (top or 1.0), 0, 1)))
    if has.ndim == 1:
        ways = [("any", (target,))]
    else:
        ways = [(str(source), (source, target)) for source in range(classes) if source != target]
    shown += [(name, masks[at][..., None] * patterns[at]) for name, at in ways if has[at]]
    if len(shown) == (true is not None):
        return []
    caption = (
        f"triggers towards class {target} that client {int(rule['client_id'])} has found, mask times pattern, by the"
        f" class that they turn{'; first the true one' if true is not None else ''}"
    )
    width = min(1.2 + 0.75 * len(shown), 9.0)
    return [draw(lambda axis: _row(axis, shown), caption, width=width, height=1.5, margins=(0.1, 0.1, 0.1, 0.4))]


def _row(axis: Any, shown: list[tuple[str, np.ndarray]]) -> None:
    height, width, channels = shown[0][1].shape
    step = width + GAP
    canvas = np.ones((height, step * len(shown) - GAP, channels))
    for i, (_, picture) in enumerate(shown):
        canvas[:, i * step : i * step + width] = np.clip(picture, 0, 1)
    image = canvas if channels == 3 else canvas[..., 0]
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    axis.set_xticks([i * step + width / 2 - 0.5 for i in range(len(shown))], [name for name, _ in shown], fontsize=8)
    axis.set_yticks([])
    axis.tick_params(length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def _sizes(rule: Mapping[str, np.ndarray]) -> Picture:
    """The matrix of sizes, by source and target."""
    warm = rule["warm"]

    def paint(axis: Any) -> None:
        grid = np.ma.masked_where(~(warm > 0), warm)
        image = axis.imshow(grid, cmap="viridis_r", interpolation="nearest", vmin=0)
        if len(warm) <= 20:
            axis.set_xticks(range(len(warm)))
            axis.set_yticks(range(len(warm)))
        axis.set(xlabel="to class", ylabel="from class", title="pixels of a mask")
        axis.figure.colorbar(image, ax=axis)

    caption = (
        f"sizes of the triggers that client {int(rule['client_id'])} has found, by pair of classes; blank: none yet"
    )
    return draw(paint, caption, height=3.9, margins=MARGINS)


def _over_confidence(run: Run) -> list[Picture]:
    """A and ASR of the last evaluated round over the confidence below which predictions are rejected."""
    columns = over_confidence(run.lines[-1]) if run.lines else {}
    if not columns:
        return []

    def paint(axis: Any) -> None:
        for name, colour in COLOURS.items():
            if not np.isnan(columns[name]).all():
                axis.plot(columns["confidence"], columns[name], color=colour, linewidth=1.5, label=name)
        axis.axvline(run.config["evaluation.confidence"], color="#808080", linewidth=1.2)
        axis.set(xlabel="confidence", ylabel="percent", ylim=(-2, 102), xlim=(0, 1), title="with rejection")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)

    caption = "A and ASR of the last round over the confidence below which predictions are rejected; grey: the run's"
    return [draw(paint, caption)]
