"""Sweeps: many experiments around one config, those that differ only in arrays in one compiled program.

    python -m fedjax_spmc.sweep --config=configs/sweeps/digits.py --workdir=sweeps/digits

In a notebook:

    from fedjax_spmc import sweep
    rows = sweep.run(sweep.Sweep(base, grid={"method": ["fedavg", "spmc"]}, seeds=range(3)), "sweeps/mine")

plan.py makes cells and groups, program.py the one program of a group, player.py plays it, table.py keeps the results.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any, TextIO

from fedjax_spmc.startup import Imports

if TYPE_CHECKING:
    from fedjax_spmc.sweep.plan import Cell, Group, Sweep, as_sweep, expand, groups_of


def __getattr__(name: str) -> Any:
    """What `plan` has is imported when it is asked for: the command's help needs none of it, and no JAX."""
    if name in PLANNED:
        return getattr(importlib.import_module("fedjax_spmc.sweep.plan"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def run(
    sweep: "Sweep | Any", workdir: str | os.PathLike[str], stream: TextIO | None = None, engine: str = "local"
) -> list[dict[str, Any]]:
    """Plays a sweep, or goes on with the one in `workdir`.

    Args:
        sweep: a `Sweep`, or a mapping of its fields.
        workdir: where `results.jsonl` and the cells' folders go.
        stream: where progress is printed; None prints nothing.
        engine: "local" for the devices of this machine, "ray" for a Ray cluster.

    Returns:
        The rows of the sweep's cells, in the order of the grid.

    Raises:
        UserError: (a ValueError) a cell, the data or the workdir cannot be used; one sentence says why.
    """
    with Imports():
        from fedjax_spmc.sweep import engine as local
        from fedjax_spmc.sweep.plan import as_sweep, expand
        from fedjax_spmc.sweep.table import Table

    checked = as_sweep(sweep)
    cells = expand(checked)
    table = Table(workdir)
    play_groups = None
    if engine == "ray":
        from fedjax_spmc.sweep.engine_ray import make_play_groups

        play_groups = make_play_groups(table.path)
    local.play(checked, cells, table, stream, play_groups)
    return [table.rows[cell.id] for cell in cells if cell.id in table.rows]


PLANNED = ("Cell", "Group", "Sweep", "as_sweep", "expand", "groups_of")
__all__ = ["Cell", "Group", "Sweep", "as_sweep", "expand", "groups_of", "run"]
