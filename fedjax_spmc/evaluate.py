"""Evaluates the saved model of a run folder on its test set.

python -m fedjax_spmc.evaluate WORKDIR [--data_dir=DIR] [--part=K] [--plugins=NAME,...] [--json]
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from fedjax_spmc import commands
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.startup import Imports
from fedjax_spmc.terminal import show


def evaluate(workdir: str, data_dir: str | None = None, part: int | None = None) -> dict[str, Any]:
    """A, ASR, ASR_all, R, V, R_all, V_all and per_class (percent) of the model in `workdir`.

    Who is malicious and what the trigger looks like is read from the run folder.

    Args:
        workdir: a run folder.
        data_dir: folder of prepared data sets, in place of the run's.
        part: of a trigger that malicious clients share out, show this part alone: the option `test_part` of `dba`.

    Raises:
        ConfigError: a part is given and the run's attack has none, or not so many.
    """
    with Imports():
        from fedjax_spmc import config as configs
        from fedjax_spmc import experiment, metrics, numerics
        from fedjax_spmc.record.folder import RunFolder
        from fedjax_spmc.starting import without_start

    result = experiment.load(workdir)
    config = result.config
    if data_dir is not None:
        config.data.data_dir = data_dir
    shown = config
    if part is not None:
        shown = configs.resolve(config)
        configs.set_field(shown, "attack.options.test_part", part)
        shown = configs.resolve(shown)
    folder = RunFolder(workdir, config, read_only=True)
    with numerics.pinned(config.precision):
        built = experiment.build(without_start(shown))
        folder.check_data(built.dataset.fingerprint, built.federation.held, "give the run's own data as --data_dir.")
        own = folder.read_attack(built.state.attack)
        counts = built.evaluate(result.variables, built.test, folder.roster(), own)
    backdoor = built.federation.attack.backdoor is not None
    return metrics.percentages(counts, backdoor, config.evaluation.confidence)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.make("evaluate")
    return run_command(parser, lambda flags: _evaluate(parser, flags), arguments)


def _evaluate(parser: Parser, flags: Flags) -> int:
    if len(flags.positional) != 1:
        raise parser.refusal(f"{len(flags.positional)} run folders are given, one is needed")
    with Imports():
        from fedjax_spmc import registry

    registry.load_plugins(flags["plugins"])
    values = evaluate(flags.positional[0], flags["data_dir"], flags["part"])
    if flags["json"]:
        show(json.dumps(values))
        return 0
    for name, value in values.items():
        shown = value if isinstance(value, list) else [value]
        show(f"{name:<10}" + " ".join("     -" if one is None else f"{one:6.2f}" for one in shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
