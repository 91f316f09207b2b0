"""Evaluates the saved model of a run folder on its test set.

python -m fedjax_spmc.evaluate WORKDIR [--data_dir=DIR] [--json]
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.run import guarded


def evaluate(workdir: str, data_dir: str | None = None) -> dict[str, Any]:
    """A, ASR, ASR_all, R, V, R_all, V_all and per_class (percent) of the model in `workdir`."""
    import jax

    from fedjax_spmc import experiment, metrics, setup

    result = experiment.load(workdir)
    config = result.config
    if data_dir is not None:
        config.data.data_dir = data_dir
    with jax.default_matmul_precision(config.precision):
        built = setup.build(config, setup.load_data(config))
        counts = built.evaluate(result.variables, built.test, built.state.attack)
    return metrics.percentages(counts, backdoor=built.federation.attack.backdoor is not None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return guarded(lambda: _main(list(sys.argv[1:] if arguments is None else arguments)))


def _main(arguments: list[str]) -> int:
    usage = "usage: python -m fedjax_spmc.evaluate WORKDIR [--data_dir=DIR] [--json]"
    folders = [word for word in arguments if not word.startswith("-")]
    flags = {word.partition("=")[0]: word.partition("=")[2] for word in arguments if word.startswith("-")}
    if {"--help", "-h"} & flags.keys():
        print(__doc__)
        return 0
    for flag in flags:
        if flag not in ("--data_dir", "--json"):
            raise ConfigError(f"{flag} is no flag of this command; {usage}.")
    if len(folders) != 1:
        raise ConfigError(f"{len(folders)} run folders are given, one is needed; {usage}.")
    values = evaluate(folders[0], flags.get("--data_dir"))
    if "--json" in flags:
        print(json.dumps(values))
        return 0
    for name, value in values.items():
        shown = value if isinstance(value, list) else [value]
        print(f"{name:<10}" + " ".join("     -" if one is None else f"{one:6.2f}" for one in shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
