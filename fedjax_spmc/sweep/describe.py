"""The plan of a sweep as text: cells, groups, experiments per program; and its memory and time."""

import math
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.data.pipeline import ClientIndices
from fedjax_spmc.record.progress import clock
from fedjax_spmc.sweep import program as programs
from fedjax_spmc.sweep.engine import DatasetCache
from fedjax_spmc.sweep.plan import Cell, Group, Sweep, common_fields, fields_text, groups_of
from fedjax_spmc.sweep.player import Player
from fedjax_spmc.sweep.program import CLIENTS, Layout

TIMED_STEPS = 600
"""Local steps of clients that are played to time a round, about; the time of a whole round is extrapolated from these
and a quarter of them."""


def plan_lines(sweep: Sweep, cells: Sequence[Cell], estimate: bool = False) -> Iterator[str]:
    """The plan, line by line. Without `estimate` no data is read and nothing is compiled."""
    groups, devices = groups_of(cells), jax.local_devices()
    settings = len({fields_text(cell.fields) for cell in cells})
    yield (
        f"{len(cells)} cells ({settings} settings x {len(sweep.seeds)} seeds) in {len(groups)} groups, one program "
        f"each; {len(devices)} x {devices[0].device_kind}"
    )
    cache, total = DatasetCache(), 0.0
    for number, group in enumerate(groups, 1):
        layout = programs.layout_of(group.cells[0].config, len(group.cells), devices)
        text = f"group {number:>{len(str(len(groups)))}}  {len(group.cells):>4} cells  "
        if not estimate:
            text += _lanes_text(layout, exact=False)
        else:
            dataset, _ = cache.get(group.cells[0].config)
            seconds, needed, layout = _measure(Player(group, dataset), group, layout)
            total += seconds
            memory = "memory unknown" if needed is None else f"{needed / 2**20:,.0f} MiB a device"
            text += f"{_lanes_text(layout, exact=True)}  {memory}  about {clock(seconds)}"
        yield f"{text}  {fields_text(common_fields(group))}"
    if estimate:
        yield f"about {clock(total)} in all, without the time to compile"


def _lanes_text(layout: Layout, exact: bool) -> str:
    if layout.axis == CLIENTS:
        return f"1 experiment per program, its clients over {len(layout.devices)} devices"
    open_ended = layout.devices[0].platform != "cpu" and not exact
    return f"{'up to ' if open_ended else ''}{layout.lanes} experiment{'s' * (layout.lanes > 1)} per program"


def _measure(player: Player, group: Group, layout: Layout) -> tuple[float, int | None, Layout]:
    """Seconds of all rounds of all cells, bytes on each device, and the layout that fits.

    The compiled program plays a round in which every client has a small share of its data, once more with a larger
    one, and a round is taken to be linear in the local steps.
    """
    cells = [cell for cell in group.cells if cell.id not in player.refused]
    if not cells:
        return 0.0, None, layout
    layout = player.fit_to_memory(layout, cells[0])
    run = player.program(layout, cells[0])
    states, lanes = player.stacked(cells[: layout.lanes], layout)
    states = programs.place(layout, states, stacked=True)
    shared = player.shared(layout)
    batch = group.cells[0].config.local.batch_size
    sizes = np.asarray(lanes.indices.sizes)
    steps = group.cells[0].config.local.epochs * float((sizes // batch).sum())
    share = min(1.0, TIMED_STEPS * layout.lanes / max(1.0, steps))

    def timed(share: float, evaluate: bool) -> tuple[float, float]:
        nonlocal states  # the program writes on them: each round goes on where the one before ended
        few = np.where(sizes >= batch, np.maximum(np.ceil(sizes * share), batch), sizes).astype(np.int32)
        placed = programs.place(layout, jnp.asarray(few), stacked=True)
        short = lanes._replace(indices=ClientIndices(lanes.indices.rows, placed))
        flag = programs.place(layout, jnp.asarray(evaluate), stacked=False)
        states = jax.block_until_ready(run(states, short, shared, flag).states)  # once before: the first call is slow
        start = time.perf_counter()
        states = jax.block_until_ready(run(states, short, shared, flag).states)
        return float((few // batch).sum()), time.perf_counter() - start

    (few, short), (many, long) = timed(share / 4, False), timed(share, False)
    _, evaluated = timed(share / 4, True)
    step_seconds = max(0.0, (long - short) / (many - few)) if many > few else 0.0
    round_seconds = max(short + step_seconds * (float((sizes // batch).sum()) - few), short)
    config = group.cells[0].config
    rounds, evaluations = config.federation.rounds, math.ceil(config.federation.rounds / config.federation.eval_every)
    programs_played = math.ceil(len(cells) / layout.lanes)
    seconds = programs_played * (rounds * round_seconds + evaluations * max(0.0, evaluated - short))
    return seconds, player.memory(layout, cells[0]), layout
