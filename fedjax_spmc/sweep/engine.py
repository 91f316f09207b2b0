"""Plays a sweep on this machine: group after group, load after load, a row for every cell."""

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from fedjax_spmc import data, setup
from fedjax_spmc.errors import WorkdirError
from fedjax_spmc.metrics import PRINTED
from fedjax_spmc.record.environment import environment
from fedjax_spmc.record.progress import clock
from fedjax_spmc.sweep import program as programs
from fedjax_spmc.sweep.plan import Cell, Group, Sweep, data_key, groups_of
from fedjax_spmc.sweep.player import Player
from fedjax_spmc.sweep.program import Layout
from fedjax_spmc.sweep.scratch import Load, Scratch, loads_in
from fedjax_spmc.sweep.table import FAILED, FINISHED, Outcome, Table, failed

Sink = Callable[[Outcome], None]
"""Takes what is left of a cell, as soon as it has ended."""
Log = Callable[[str], None]
"""Takes a line for the user."""
SAID_EVERY = 20.0
"""Seconds between two lines about a program in progress."""


class Data:
    """Reads the data of one config after another; only the last one stays in memory."""

    def __init__(self) -> None:
        self._key = ""
        self._held: data.Dataset | None = None
        self._environments: dict[str, dict[str, Any]] = {}

    def of(self, config: Any) -> tuple[data.Dataset, dict[str, Any]]:
        """A config's data set, and the environment with it.

        Raises:
            DataError: it cannot be read.
        """
        key = data_key(config)
        if self._held is None or key != self._key:
            self._held = None
            self._key, self._held = key, setup.load_data(config)
            self._environments[key] = environment(self._held.info, self._held.fingerprint)
        return self._held, self._environments[key]

    def environment(self, config: Any) -> dict[str, Any]:
        """The environment with a config's data, which are read if they never were."""
        key = data_key(config)
        return self._environments[key] if key in self._environments else self.of(config)[1]


def play(sweep: Sweep, cells: Sequence[Cell], table: Table, stream: TextIO | None, spread: Any = None) -> None:
    """Plays the cells that have no row yet; cells that failed are tried again.

    Args:
        sweep: what the cells are of.
        cells: from `plan.expand`.
        table: not begun yet.
        stream: where progress is printed; None prints nothing.
        spread: another engine in place of this machine: (groups, pending, loader, sink, log) -> None.

    Raises:
        UserError: the data or the folder cannot be used; one sentence says why.
    """
    loader = Data()
    _check_data(cells, table, loader)
    table.begin()
    try:
        table.forget([cell.id for cell in cells if table.rows.get(cell.id, {}).get("status") == FAILED])
        pending = {cell.id for cell in cells} - table.rows.keys()

        def log(text: str) -> None:
            if stream is not None:
                print(text, file=stream, flush=True)

        def sink(ended: Outcome) -> None:
            row = table.record(ended, sweep.keep_models)
            done = sum(cell.id in table.rows for cell in cells)
            log(f"cell {done} of {len(cells)}  {ended.cell.title()}  {_outcome(row)}")

        if len(pending) < len(cells):
            log(f"goes on: {len(cells) - len(pending)} of {len(cells)} cells have their row in {table.path}")
        left = [group for group in groups_of(cells) if any(cell.id in pending for cell in group.cells)]
        if spread is not None:
            spread(left, pending, loader, sink, log)
        else:
            for number, group in enumerate(left, 1):
                dataset, environment = loader.of(group.cells[0].config)
                log(f"group {number} of {len(left)}: {len(group.cells)} cells")
                play_group(group, pending, dataset, environment, table.path / "work", sink, log)
        shutil.rmtree(table.path / "work", ignore_errors=True)
    finally:
        table.close()


def _check_data(cells: Sequence[Cell], table: Table, loader: Data) -> None:
    """Reads every data set once before anything is written: a missing one is no news for the third day of a sweep."""
    configs = {data_key(cell.config): cell.config for cell in cells if cell.id not in table.rows}
    known = {data_key(cell.config): table.rows[cell.id] for cell in cells if cell.id in table.rows}
    for key in reversed(configs):  # the first group's stays in memory
        dataset, _ = loader.of(configs[key])
        before = known.get(key, {}).get("fingerprint", dataset.fingerprint)
        if before != dataset.fingerprint:
            raise WorkdirError(
                f"workdir = {str(table.path)!r} holds rows on other data (fingerprint {before[:12]}, now "
                f"{dataset.fingerprint[:12]}): give another --workdir."
            )


def play_group(
    group: Group,
    pending: Collection[str],
    dataset: data.Dataset,
    environment: Mapping[str, Any],
    work: Path | None,
    sink: Sink,
    log: Log,
) -> int:
    """Plays the pending cells of a group on the devices of this machine.

    Args:
        group: all of its cells.
        pending: ids of the cells that have no row yet; others are left alone.
        dataset: the group's data.
        environment: as `environment.json`.
        work: where loads in progress are kept; None keeps none.
        sink: takes what is left of each cell.
        log: takes lines for the user.

    Returns:
        How many programs were compiled.

    Raises:
        WorkdirError: what must be kept cannot be written.
    """

    def fail(cells: Sequence[Cell], error: Exception) -> None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
        for cell in cells:
            sink(failed(cell, environment, reason))

    left = [cell for cell in group.cells if cell.id in pending]
    try:
        player = Player(group, dataset, environment)
    except Exception as error:
        fail(left, error)
        return 0
    for cell in left:
        if cell.id in player.refused:
            sink(failed(cell, environment, player.refused[cell.id]))
    left = [cell for cell in left if cell.id not in player.refused]
    if not left:
        return 0
    layout, first = _interrupted(group, left, dataset.fingerprint, work)
    if layout is None:
        layout = programs.layout_of(group.cells[0].config, len(left), jax.local_devices())
    fitted = False
    while left:
        cells = left  # a program that cannot be compiled fails them all
        try:
            layout, fitted = layout if fitted else player.fit(layout, left[0]), True
            cells = (first or left)[: layout.lanes]
            load = Load(
                group=group.key,
                ids=tuple(cell.id for cell in cells),
                axis=layout.axis,
                devices=len(layout.devices),
                batch=layout.batch,
                fingerprint=dataset.fingerprint,
            )
            scratch = Scratch(work, load)
            try:
                ended = player.play(cells, layout, scratch, _progress(log, cells))
                for one in ended:
                    if one.cell.id in pending:
                        sink(one)
                scratch.remove()
            finally:
                scratch.close()
        except WorkdirError:
            raise
        except Exception as error:  # a rule of the user's may raise anything; the other cells have their turn
            if programs.is_out_of_memory(error) and layout.batch > 1:
                layout = layout._replace(batch=layout.batch // 2)
                first, fitted = [], False
                log(f"out of memory: goes on with {layout.lanes} experiments per program")
                continue
            fail([cell for cell in cells if cell.id in pending], error)
        played = {cell.id for cell in cells}
        left = [cell for cell in left if cell.id not in played]
        first = []
    return player.compiled


def _interrupted(
    group: Group, left: Sequence[Cell], fingerprint: str, work: Path | None
) -> tuple[Layout | None, list[Cell]]:
    """The layout and the cells of a load of this group that was interrupted; (None, []) without one."""
    by_id = {cell.id: cell for cell in group.cells}
    devices = jax.local_devices()
    for load in loads_in(work) if work is not None else ():
        mine = load.group == group.key and load.fingerprint == fingerprint and set(load.ids) <= by_id.keys()
        mine = mine and load.batch <= (group.cells[0].config.sweep.experiment_batch or load.batch)
        if mine and load.devices <= len(devices) and any(cell.id in load.ids for cell in left):
            layout = Layout(tuple(devices[: load.devices]), load.axis, load.batch)
            return layout, [by_id[one] for one in load.ids]
    return None, []


def _progress(log: Log, cells: Sequence[Cell]) -> Callable[[int], None]:
    """Takes the number of rounds played and says, now and then, how far a program is."""
    rounds, start, told, first = cells[0].config.federation.rounds, time.monotonic(), time.monotonic(), 0

    def report(done: int) -> None:
        nonlocal told, first
        now = time.monotonic()
        first = first or done  # a load that was interrupted does not begin with round 1
        if now - told >= SAID_EVERY and done < rounds:
            left = (now - start) / (done - first + 1) * (rounds - done)
            log(f"round {done} of {rounds}  {len(cells)} experiments  {clock(left)} left in this program")
            told = now

    return report


def _outcome(row: Mapping[str, Any]) -> str:
    if row["status"] != FINISHED:
        return f"{row['status']}: {row['error']}"
    percents = "  ".join(f"{name} {row[name]:5.2f}" for name in PRINTED[:4] if row[name] is not None)
    return f"{percents}  {row['seconds']:.1f} s"
