"""Runs the notebooks in docs/ and keeps what their cells print and draw.

    python experiments/notebook.py            # writes docs/*.ipynb anew
    python experiments/notebook.py NAME       # docs/NAME.ipynb alone

No Jupyter is needed: a cell is Python, and its last expression is shown as a notebook shows it.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.terminal import show

DOCS = Path(__file__).resolve().parent.parent / "docs"


def executed(content: Mapping[str, Any], replaced: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A notebook with the outputs of its cells, run in order in one namespace.

    Args:
        content: of the file.
        replaced: text of the cells -> what is run in its place, "ROUNDS = 12" -> "ROUNDS = 2"; each must occur.
    """
    space: dict[str, Any] = {"__name__": "__main__"}
    waiting, cells = set(replaced or {}), []
    for cell in content["cells"]:
        if cell["cell_type"] != "code":
            cells.append(cell)
            continue
        source = "".join(cell["source"])
        for old, new in (replaced or {}).items():
            waiting -= {old} if old in source else set()
            source = source.replace(old, new)
        cells.append({**cell, "outputs": _outputs(source, space)})
    if waiting:
        raise ValueError(f"no cell has {', '.join(sorted(waiting))}")
    return {**content, "cells": cells}


def _outputs(source: str, space: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), space)
        value = (
            eval(compile(ast.Expression(last.value), "<cell>", "eval"), space) if isinstance(last, ast.Expr) else None
        )
    made: list[dict[str, Any]] = []
    if printed.getvalue():
        made.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = [base64.b64encode(value._repr_png_()).decode()]
        made.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data})
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.positional("NAME", "notebooks in docs/, without their ending (default: all)")
    return run_command(parser, _write, arguments)


def _write(flags: Flags) -> int:
    for path in sorted(DOCS.glob("*.ipynb")):
        if not flags.positional or path.stem in flags.positional:
            made = executed(json.loads(path.read_text(encoding="utf-8")))
            path.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            show(f"docs/{path.name} is written anew")
    return 0


if __name__ == "__main__":
    sys.exit(main())
