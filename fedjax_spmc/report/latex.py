"""Tables in LaTeX, in signs that pdflatex knows, and the document that shows them all."""

import unicodedata
from collections.abc import Sequence

from fedjax_spmc.report.tables import BEST, SECOND, Cell, Table

PACKAGES = r"\usepackage{graphicx}", r"\IfFileExists{booktabs.sty}{\usepackage{booktabs}}{}"
RULES = "".join(rf"\providecommand\{name}rule{{\hline}}" for name in ("top", "mid", "bottom"))
"""The lines of booktabs, and plain ones where a document has not loaded it."""
_GREEK = dict(zip(
    "αβγδεζηθλμπρστφχψω",
    ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "lambda", "mu", "pi", "rho", "sigma", "tau",
     "phi", "chi", "psi", "omega"),
    strict=True,
))  # fmt: skip
SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''",
    "−": r"$-$", "–": "--", "—": "---", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "≥": r"$\geq$",
    "≤": r"$\leq$", "→": r"$\to$", "…": r"\ldots{}", "“": "``", "”": "''", "’": "'",
    **{sign: rf"$\{name}$" for sign, name in _GREEK.items()},
}  # fmt: skip
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r ", "\u0327": "c "}


def text(words: str) -> str:
    """Text as LaTeX takes it, in ASCII alone: what has no command of its own stands as its number, U+4E2D."""
    return "".join(map(_sign, words))


def _sign(sign: str) -> str:
    if sign in SIGNS:
        return SIGNS[sign]
    if sign.isascii():
        return sign if sign.isprintable() else " "
    base, *marks = unicodedata.normalize("NFD", sign)
    if base.isascii() and len(marks) == 1 and marks[0] in _ACCENTS:
        return rf"\{_ACCENTS[marks[0]]}{{{base}}}"
    return f"U+{ord(sign):04X}"


def _label(words: str) -> str:
    """The first entry of a line: a bracket there would be read as an option of the line before."""
    made = text(words)
    return "{}" + made if made[:1] in ("[", "*") else made


def _cell(cell: Cell) -> str:
    value = text(cell.value())
    value = {BEST: rf"\textbf{{{value}}}", SECOND: rf"\underline{{{value}}}"}.get(cell.rank, value)
    marks = rf"\textsuperscript{{{cell.marks}}}" if cell.marks else ""
    small = " ".join(part for part in (cell.beside(), f"({cell.comparison()})" if cell.comparison() else "") if part)
    return value + marks + (rf" {{\scriptsize {text(small)}}}" if small else "")


def to_latex(table: Table) -> str:
    """A `table` environment with a caption and the label `tab:NAME`; it needs graphicx, booktabs makes it nicer."""
    num_labels, num_columns = len(table.label_columns), len(table.columns)
    caption = " ".join(part for part in (table.title + ".", table.introduction) if part)
    lines = [
        r"% needs \usepackage{graphicx}; \usepackage{booktabs} makes it nicer",
        RULES,
        r"\begin{table}[p]",
        rf"\caption{{{text(caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\resizebox{{\textwidth}}{{!}}{{\begin{{tabular}}{{{'l' * num_labels}{'r' * num_columns}}}",
        r"\toprule",
    ]
    if any(name for name, _ in table.groups):
        spans = [rf"\multicolumn{{{size}}}{{c}}{{{text(name)}}}" for name, size in table.groups]
        lines.append(" & ".join([""] * num_labels + spans) + r" \\")
    lines += [" & ".join(map(text, [*table.label_columns, *table.columns])) + r" \\", r"\midrule"]
    for index, (section, rows) in enumerate(table.sections()):
        if index:
            lines.append(r"\midrule")
        if section:
            lines.append(rf"\multicolumn{{{num_labels + num_columns}}}{{l}}{{\emph{{{text(section)}}}}} \\")
        for row in rows:
            lines.append(" & ".join([*map(_label, row.labels), *map(_cell, row.cells)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\footnotesize"]
    lines += [text(note) for note in [*table.notes, *table.legend()]]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def document(names: Sequence[str]) -> str:
    """A document that shows the tables of these names: `pdflatex all.tex` in their folder."""
    inputs = "\n".join(rf"\input{{{name}.tex}}\clearpage" for name in names)
    return "\n".join([r"\documentclass{article}", *PACKAGES, r"\begin{document}", inputs, r"\end{document}"]) + "\n"
