"""Plays a sweep on this machine: group after group, program after program, a row for every cell."""

import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from fedjax_spmc import data, numerics, parts, setup
from fedjax_spmc.errors import WorkdirError
from fedjax_spmc.metrics import PRINTED
from fedjax_spmc.reading import reason_of
from fedjax_spmc.record.environment import environment
from fedjax_spmc.record.progress import clock
from fedjax_spmc.starting import start_model
from fedjax_spmc.sweep import program as programs
from fedjax_spmc.sweep.plan import Cell, Group, Sweep, data_key, groups_of, program_key
from fedjax_spmc.sweep.player import Player
from fedjax_spmc.sweep.program import Layout
from fedjax_spmc.sweep.scratch import ProgramCells, Scratch, unfinished_programs
from fedjax_spmc.sweep.table import FAILED, FINISHED, Outcome, Table, failed_outcome
from fedjax_spmc.terminal import Lines

OnOutcome = Callable[[Outcome], None]
"""Is called with the outcome of each cell, as soon as it has ended."""
Log = Callable[[str], None]
"""Takes a line for the user."""
LOG_INTERVAL = 20.0
"""Seconds between two lines about a program in progress."""


class DatasetCache:
    """The data set of the last config that was asked for; only that one stays in memory."""

    def __init__(self) -> None:
        self._key = ""
        self._dataset: data.Dataset | None = None
        self._environments: dict[str, dict[str, Any]] = {}

    def get(self, config: Any) -> tuple[data.Dataset, dict[str, Any]]:
        """A config's data set, and the environment with it.

        Raises:
            DataError: it cannot be read.
        """
        key = data_key(config)
        if self._dataset is None or key != self._key:
            self._dataset = None
            self._key, self._dataset = key, setup.load_data(config)
            self._environments[key] = environment(self._dataset.info, self._dataset.fingerprint, config.precision)
        return self._dataset, self._environments[key] | {"numerics": numerics.facts(config.precision)}

    def environment(self, config: Any) -> dict[str, Any]:
        """The environment with a config's data, which are read if they never were."""
        key = data_key(config)
        known = self._environments[key] if key in self._environments else self.get(config)[1]
        return known | {"numerics": numerics.facts(config.precision)}


PlayGroups = Callable[[Sequence[Group], Collection[str], DatasetCache, OnOutcome, Log], None]
"""(groups, ids of their pending cells, cache, on_outcome, log) -> None: plays the pending cells of groups."""


@numerics.pinned()
def play(
    sweep: Sweep,
    cells: Sequence[Cell],
    table: Table,
    stream: TextIO | None,
    play_groups: PlayGroups | None = None,
) -> None:
    """Plays the cells that have no row yet; cells that failed are tried again.

    Args:
        sweep: what the cells are of.
        cells: from `plan.expand`.
        table: not begun yet.
        stream: where progress is printed; None prints nothing.
        play_groups: another engine in place of this machine.

    Raises:
        UserError: the data or the folder cannot be used; one sentence says why.
    """
    cache = DatasetCache()
    _check_data(cells, table, cache)
    table.begin()
    try:
        table.forget([cell.id for cell in cells if table.rows.get(cell.id, {}).get("status") == FAILED])
        pending = {cell.id for cell in cells} - table.rows.keys()
        for cell in cells:
            if cell.id in table.rows:
                table.measure_again(cell)

        log = Lines(stream).add

        def on_outcome(outcome: Outcome) -> None:
            row = table.record(outcome, sweep.keep_models)
            done = sum(cell.id in table.rows for cell in cells)
            log(f"cell {done} of {len(cells)}  {outcome.cell.title()}  {_row_text(row)}")

        if len(pending) < len(cells):
            log(f"goes on: {len(cells) - len(pending)} of {len(cells)} cells have their row in {table.path}")
        remaining = [group for group in groups_of(cells) if any(cell.id in pending for cell in group.cells)]
        if play_groups is not None:
            play_groups(remaining, pending, cache, on_outcome, log)
        else:
            for number, group in enumerate(remaining, 1):
                dataset, environment = cache.get(group.cells[0].config)
                log(f"group {number} of {len(remaining)}: {len(group.cells)} cells")
                play_group(group, pending, dataset, environment, table.path / "work", on_outcome, log)
        shutil.rmtree(table.path / "work", ignore_errors=True)
    finally:
        table.close()


def _check_data(cells: Sequence[Cell], table: Table, cache: DatasetCache) -> None:
    """Reads every data set once before anything is written: a missing one is told at once and not days later."""
    configs = {data_key(cell.config): cell.config for cell in cells if cell.id not in table.rows}
    known = {data_key(cell.config): table.rows[cell.id] for cell in cells if cell.id in table.rows}
    for key in reversed(configs):  # the first group's stays in memory
        dataset, _ = cache.get(configs[key])
        before = known.get(key, {}).get("fingerprint", dataset.fingerprint)
        if before != dataset.fingerprint:
            raise WorkdirError(
                f"workdir = {str(table.path)!r} holds rows on other data (fingerprint {before[:12]}, now "
                f"{dataset.fingerprint[:12]}): give another --workdir."
            )
    _check_starts(cells, table, cache)
    for cell in cells if len(table.rows) < len(cells) else ():
        if cell.id in table.rows:
            where = f"workdir = {str(table.path)!r}"
            numerics.check_same(table.recorded_numerics(cell), numerics.facts(cell.config.precision), where)


def _check_starts(cells: Sequence[Cell], table: Table, cache: DatasetCache) -> None:
    """Reads every saved model that cells begin with; rows that are there must have begun with the same.

    Raises:
        ConfigError: one cannot be used; the field is named.
        WorkdirError: a row began with another one.
    """
    sums: dict[tuple[str, str], str] = {}
    done = all(cell.id in table.rows for cell in cells)
    for cell in cells:
        if done or cell.config.model.start is None:
            continue
        key = program_key(cell.config), cell.config.model.start
        if key not in sums:
            info = cache.get(cell.config)[0].info
            saved = start_model(cell.config, parts.model_of(cell.config, info), info.tokenizer)
            assert saved is not None
            sums[key] = saved.sha256
        before = table.rows.get(cell.id, {}).get("start_sha256")
        if before is not None and before != sums[key]:
            raise WorkdirError(
                f"workdir = {str(table.path)!r} holds rows that began with another file (model.start = "
                f"{cell.config.model.start!r}, sha256 {before[:12]}, now {sums[key][:12]}): give another --workdir."
            )


def play_group(
    group: Group,
    pending: Collection[str],
    dataset: data.Dataset,
    environment: Mapping[str, Any],
    work: Path | None,
    on_outcome: OnOutcome,
    log: Log,
) -> int:
    """Plays the pending cells of a group on the devices of this machine.

    Args:
        group: all of its cells.
        pending: ids of the cells that have no row yet; others are left alone.
        dataset: the group's data.
        environment: as `environment.json`.
        work: where programs in progress are kept; None keeps none.
        on_outcome: called with the outcome of each cell.
        log: called with lines for the user.

    Returns:
        How many programs were compiled.

    Raises:
        WorkdirError: what must be kept cannot be written.
    """

    def fail(cells: Sequence[Cell], error: Exception) -> None:
        for cell in cells:
            on_outcome(failed_outcome(cell, environment, reason_of(error, named=True, longest=500)))

    remaining = [cell for cell in group.cells if cell.id in pending]
    try:
        player = Player(group, dataset)
    except Exception as error:
        fail(remaining, error)
        return 0
    for cell in remaining:
        if cell.id in player.refused:
            on_outcome(failed_outcome(cell, environment, player.refused[cell.id]))
    remaining = [cell for cell in remaining if cell.id not in player.refused]
    if not remaining:
        return 0
    layout, first = _interrupted_program(group, remaining, dataset.fingerprint, work)
    if layout is None:
        layout = programs.layout_of(group.cells[0].config, len(remaining), jax.local_devices())
    fitted = False
    while remaining:
        cells = remaining  # a program that cannot be compiled fails them all
        try:
            layout, fitted = layout if fitted else player.fit_to_memory(layout, remaining[0]), True
            cells = (first or remaining)[: layout.lanes]
            program_cells = ProgramCells(
                group=group.key,
                ids=tuple(cell.id for cell in cells),
                axis=layout.axis,
                devices=len(layout.devices),
                batch=layout.batch,
                fingerprint=dataset.fingerprint,
                held_sha256=player.held_sha256,
                starts=tuple(player.start_sha256(cell) for cell in cells),
            )
            facts = {**environment["data"], "held_sha256": player.held_sha256}
            scratch = Scratch(work, program_cells, {**environment, "data": facts}, log)
            try:
                for outcome in player.play(cells, layout, scratch, _progress(log, cells)):
                    if outcome.cell.id in pending:
                        on_outcome(outcome)
                scratch.remove()
            finally:
                scratch.close()
        except WorkdirError:
            raise
        except Exception as error:  # a rule of the user's may raise anything; the other cells have their turn
            if numerics.is_out_of_memory(error) and layout.batch > 1:
                layout = layout._replace(batch=layout.batch // 2)
                first, fitted = [], False
                log(f"out of memory: goes on with {layout.lanes} experiments per program")
                continue
            fail([cell for cell in cells if cell.id in pending], error)
        played = {cell.id for cell in cells}
        remaining = [cell for cell in remaining if cell.id not in played]
        first = []
    return player.compiled


def _interrupted_program(
    group: Group, remaining: Sequence[Cell], fingerprint: str, work: Path | None
) -> tuple[Layout | None, list[Cell]]:
    """The layout and the cells of a program of this group that was interrupted; (None, []) without one."""
    by_id = {cell.id: cell for cell in group.cells}
    devices = jax.local_devices()
    for found in unfinished_programs(work) if work is not None else ():
        same = found.group == group.key and found.fingerprint == fingerprint and set(found.ids) <= by_id.keys()
        fits = found.devices <= len(devices)
        fits = fits and found.batch <= (group.cells[0].config.sweep.experiment_batch or found.batch)
        if same and fits and any(cell.id in found.ids for cell in remaining):
            layout = Layout(tuple(devices[: found.devices]), found.axis, found.batch)
            return layout, [by_id[name] for name in found.ids]
    return None, []


def _progress(log: Log, cells: Sequence[Cell]) -> Callable[[int], None]:
    """A function that takes the number of rounds played and logs, now and then, how far a program is."""
    rounds, start, last_log, first = cells[0].config.federation.rounds, time.monotonic(), time.monotonic(), 0

    def report(done: int) -> None:
        nonlocal last_log, first
        now = time.monotonic()
        first = first or done  # a program that was interrupted does not begin with round 1
        if now - last_log >= LOG_INTERVAL and done < rounds:
            seconds = (now - start) / (done - first + 1) * (rounds - done)
            log(f"round {done} of {rounds}  {len(cells)} experiments  {clock(seconds)} left in this program")
            last_log = now

    return report


def _row_text(row: Mapping[str, Any]) -> str:
    if row["status"] != FINISHED:
        return f"{row['status']}: {row['error']}"
    percents = "  ".join(f"{name} {row[name]:5.2f}" for name in PRINTED[:4] if row[name] is not None)
    return f"{percents}  {row['seconds']:.1f} s" + "".join(f"  note: {one['sentence']}" for one in row["remarks"])
