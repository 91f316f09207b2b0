"""The commands: what each takes, for its help, its refusals, and `fedjax-spmc COMMAND`. No work is done here.

Only what reads a command line is imported, so that help comes at once.
"""

import textwrap
from collections.abc import Callable
from typing import NamedTuple

from fedjax_spmc import startup
from fedjax_spmc.command import Parser, program
from fedjax_spmc.nearest import either
from fedjax_spmc.options import Option, Range
from fedjax_spmc.startup import Imports

WIDTH = 110
"""Of the words of a help."""
COUNT = Range(0, 10**6)
GROUPS = (
    "data", "partitions", "models", "rules", "aggregators", "pre-aggregators", "attacks", "sampling", "presets",
    "fields", "configs",
)  # fmt: skip
"""What can be listed."""


def _text(name: str) -> Option:
    return Option(name, str, None, optional=True)


def _run(parser: Parser) -> None:
    parser.flag(_text("--config"), "CONFIG[:PRESETS]", "a config's name or file, and presets by name")
    parser.flag(_text("--workdir"), "DIR", "the run folder (default: named by the config)")
    parser.flag(
        Option("--list", str, None, choices=("all", *GROUPS)),
        "GROUP",
        f"prints what a config can name; of one group: {', '.join(GROUPS)}",
        bare="all",
    )


def _demo(parser: Parser) -> None:
    parser.flag(Option("--workdir", str, "runs/demo"), "DIR", "where runs and report go")


def _sweep(parser: Parser) -> None:
    parser.flag(_text("--config"), "CONFIG[:ARG]", "a sweep's name or file, and its argument")
    parser.flag(_text("--workdir"), "DIR", "the sweep's folder (default: named by the config)")
    parser.flag(Option("--engine", str, "local", choices=("local", "ray")), "NAME", "local or ray")
    parser.switch("--dry-run", "prints the plan and plays nothing")
    parser.switch("--estimate", "with --dry-run: measures how long it takes")


def _report(parser: Parser) -> None:
    parser.positional("RUN_OR_SWEEP", "run folders, sweep folders, or folders that hold any of these")
    parser.flag(Option("--out", str, "report"), "DIR", "where the report goes; it must be new, empty, or a report")
    parser.flag(Option("--tables", tuple, ()), "NAME,...", "papers' tables that are shown whatever was run")
    parser.flag(Option("--columns", tuple, ()), "NAME,...", "the columns of tables that have any of them, A,ASR,V say")
    parser.flag(
        Option("--spread", str, "interval", choices=("interval", "std")),
        "KIND",
        "beside a mean: its bootstrap interval, or ± the standard deviation over the seeds",
    )
    parser.flag(Option("--details", int, 8, range=COUNT), "N", "how many runs get pictures of their own")
    parser.flag(_text("--data_dir"), "DIR", "folder of prepared data sets")
    parser.flag(_text("--title"), "TEXT", "of the page")


def _compare(parser: Parser) -> None:
    parser.positional("WORKDIR", "run folders")
    parser.flag(_text("--png"), "FILE", "draws the curves")
    _plugins(parser)


def _evaluate(parser: Parser) -> None:
    parser.positional("WORKDIR", "a run folder")
    parser.flag(_text("--data_dir"), "DIR", "folder of prepared data sets")
    _plugins(parser)
    part = Option("--part", int, None, optional=True, range=COUNT)
    parser.flag(part, "K", "one attacker's part of dba's trigger")
    parser.switch("--json", "prints one line of JSON")


def _parity(parser: Parser) -> None:
    parser.flag(_text("--golden"), "DIR", "recorded outputs of the authors' code (*.npz)")
    parser.switch("--torch", "plain torch loops beside the simulator")
    parser.flag(_text("--reference"), "DIR", "your clone of the authors' repository (WenddHe0119/SPMC)")
    parser.switch("--json", "prints JSON")


def _data(parser: Parser) -> None:
    parser.positional("COMMAND", "list, or prepare and the NAME of a data set")
    parser.flag(
        _text("--data_dir"),
        "DIR",
        "folder of prepared data sets (default: $TFDS_DATA_DIR, then ~/tensorflow_datasets)",
    )


def _plugins(parser: Parser) -> None:
    parser.flag(Option("--plugins", tuple, ()), "NAME,...", "modules to import first, for runs that do not name them")


def _list(parser: Parser) -> None:
    parser.positional("GROUP", f"one of {', '.join(GROUPS)} (default: all)")
    parser.flag(Option("--plugins", tuple, ()), "NAME,...", "modules to import first, whose parts are listed too")


class Command(NamedTuple):
    """One of the commands.

    Attributes:
        summary: what it does, in a line.
        module: whose `main` it is.
        flags: adds them to a parser.
        more: further paragraphs of its help.
        examples: command lines behind the command's name, two at least.
        overrides: whether `--config.FIELD=VALUE` is taken.
        resumes: whether it goes on with its work when it is given again.
    """

    summary: str
    module: str
    flags: Callable[[Parser], None]
    more: str
    examples: tuple[str, ...]
    overrides: bool = False
    resumes: bool = False


COMMANDS: dict[str, Command] = {
    "run": Command(
        "Runs one experiment, or goes on with it.",
        "fedjax_spmc.run",
        _run,
        "The same command goes on from the last finished round, and so does --workdir=DIR alone. Exit codes: 0 "
        "finished, 2 bad input (one sentence says what), 3 training stopped being finite, 130 interrupted.",
        (
            "--config=digits:fedavg --workdir=runs/fedavg",
            "--config=configs/cifar10.py:spmc,reference --config.federation.rounds=12 --config.attack.name=dba",
        ),
        overrides=True,
        resumes=True,
    ),
    "demo": Command(
        "Plays averaging, SPMC and DnC under one attack, on digits of the package, and reports.",
        "fedjax_spmc.demo",
        _demo,
        "It takes a minute or two; at its end: a table, a sentence on each method, a report and the next command. The "
        "same command goes on where it was stopped. Exit codes as those of run.",
        ("--workdir=runs/demo", "--workdir=runs/other --config.seed=1"),
        overrides=True,
        resumes=True,
    ),
    "sweep": Command(
        "Plays many experiments around one config: a grid and seeds.",
        "fedjax_spmc.sweep.__main__",
        _sweep,
        "Exit codes: 0 every cell finished, 1 a cell failed or diverged, 2 bad input, 130 interrupted.",
        (
            "--config=sweeps/digits --workdir=sweeps/digits",
            "--config=configs/sweeps/spmc_table2.py --config.federation.rounds=12 --dry-run --estimate",
        ),
        overrides=True,
        resumes=True,
    ),
    "report": Command(
        "Turns run folders into one page and the papers' tables.",
        "fedjax_spmc.report.__main__",
        _report,
        "Written are `index.html`, one page that needs no network, and `tables/*.csv` (long, and wide: `*.wide.csv`), "
        "`*.md`, `*.tex` (`all.tex` is a document that shows them). Folders that "
        "hold runs or sweeps at any depth are taken, also kept results without models. --tables knows spmc2, fdcr1, "
        "fdcr2, fdcr3, fdcr4. --out must be new, empty, or a report, which is replaced.",
        ("runs/fedavg runs/spmc --out=report", "sweeps/digits --details=0 --title='Digits, two fractions'"),
    ),
    "compare": Command(
        "Puts finished runs side by side: a table of A, ASR, R, V and a picture of the curves.",
        "fedjax_spmc.compare",
        _compare,
        "A picture holds 24 runs; of more folders it shows the first.",
        ("runs/fedavg runs/spmc", "runs/fedavg runs/spmc --png=curves.png"),
    ),
    "evaluate": Command(
        "Evaluates the saved model of a run folder on its test set.",
        "fedjax_spmc.evaluate",
        _evaluate,
        "",
        ("runs/spmc", "runs/spmc --data_dir=~/tensorflow_datasets --json"),
    ),
    "parity": Command(
        "Compares numbers with those of the public references.",
        "fedjax_spmc.parity.__main__",
        _parity,
        "Without a flag: --golden, the folder `golden` in FEDJAX_SPMC_SHARED, else in ../shared. --torch plays rounds "
        "of averaging and of SPMC beside plain torch loops. --reference imports the server rules and the aligned "
        "training of a clone at run time. What is being compared is said on standard error. Exit codes: 0 all that ran "
        "passed, 1 a check failed or none ran, 2 bad input.",
        ("--golden=../shared/golden", "--torch --json"),
    ),
    "data": Command(
        "Says which data sets there are and where, and prepares them.",
        "fedjax_spmc.data.__main__",
        _data,
        "`list` says where each is. `prepare NAME` downloads one, once (extra `prepare`: TensorFlow). Exit codes: 0 "
        "done, 1 the download failed, 2 bad input.",
        ("list", "prepare cifar10 --data_dir=~/tensorflow_datasets"),
    ),
    "list": Command(
        "Lists what a config can name: parts with their papers and options, presets, fields, configs.",
        "fedjax_spmc.listing",
        _list,
        "",
        ("attacks", "aggregators --plugins=my_rules"),
    ),
}
"""By the name behind `fedjax-spmc`."""


def make(name: str) -> Parser:
    """The parser of a command."""
    command = COMMANDS[name]
    doc = f"{command.summary}\n\n{textwrap.fill(command.more, WIDTH)}".strip()
    examples = command.examples
    parser = Parser(
        name, doc, command.overrides, command.resumes, examples, lambda word: _advice(name, command.overrides, word)
    )
    command.flags(parser)
    return parser


def with_flag(flag: str) -> list[str]:
    """The commands that know a flag."""
    return [name for name in COMMANDS if flag in make(name).flags()]


def _advice(name: str, overrides: bool, word: str) -> str:
    """What may be meant by a word that a command does not take; "" where nobody can tell."""
    flag, equals, value = word.partition("=")
    bare = flag.lstrip("-")
    if flag.startswith("--") and with_flag(flag):
        return f"it is a flag of {program()} {either(with_flag(flag))}."
    if not overrides:
        return ""
    if bare in ("config", "workdir", "list") and not flag.startswith("--"):
        return f"did you mean --{bare}{equals}{value}?"
    if bare == "seeds" and name == "run":
        return "several seeds are a sweep (`fedjax-spmc sweep`), one is --config.seed."
    with Imports():
        startup.ready()
        from fedjax_spmc.config import FIELDS, presets
        from fedjax_spmc.config.files import shipped
        from fedjax_spmc.config.likely import likely

    if bare in ("preset", "presets", "method"):
        return f"presets stand behind the config's name and a colon, --config=CONFIG:{value or 'fedavg'}."
    if flag.startswith("--") or equals:
        path = bare.removeprefix("config.")
        meant = [path] if path in FIELDS else likely(path, FIELDS)
        return f"did you mean {either([f'--config.{one}{equals}{value}' for one in meant])}?" if meant else ""
    if word.strip(",:") in presets.descriptions():
        return (
            f"presets stand behind the config's name and a colon, without a space: --config=CONFIG:{word.strip(',:')}."
        )
    file = word.partition(":")[0]
    return f"did you mean --config={word}?" if file in shipped() or file.endswith(".py") else ""
