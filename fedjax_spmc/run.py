"""Runs one experiment: flags only, everything else is in `experiment.py`.

    python -m fedjax_spmc.run --config=CONFIG[:PRESETS] [--config.FIELD=VALUE ...] [--workdir=DIR]
    python -m fedjax_spmc.run --workdir=DIR [--config.FIELD=VALUE ...]      # goes on with the run there
    python -m fedjax_spmc.run --list[=GROUP] [--config.plugins=NAME,...]

Exit codes: 0 finished, 2 bad input (one sentence says what), 3 training stopped being finite, 130 interrupted.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_spmc import commands
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.paths import expanded
from fedjax_spmc.startup import Imports
from fedjax_spmc.terminal import note, show


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = commands.make("run")
    return run_command(parser, lambda flags: _run(parser, flags), arguments)


def _run(parser: Parser, flags: Flags) -> int:
    with Imports():
        from fedjax_spmc import config as configs
        from fedjax_spmc import registry
        from fedjax_spmc.config.files import read_config, use_compilation_cache
        from fedjax_spmc.config.listing import listing

    if flags["list"] is not None:
        registry.load_plugins(_plugins(flags))
        show(listing(flags["list"]))
        return 0
    if flags["config"] is not None:
        config, label = read_config(flags["config"])
    elif flags["workdir"] is not None:
        with Imports():
            from fedjax_spmc.record.result import read_config as recorded_config

        config, label = configs.editable_copy(recorded_config(expanded(flags["workdir"], "workdir"))), ""
    else:
        raise ConfigError(
            f"--config is missing: {parser.examples[0]} is an example, `fedjax-spmc list configs` has all; a run that "
            "was begun goes on with --workdir=DIR alone."
        )
    for notice in configs.override(config, flags.overrides):
        note(notice)
    config = configs.resolve(config)
    workdir = expanded(flags["workdir"] or f"runs/{label}-{short_hash(config)}", "workdir")
    use_compilation_cache(config)

    with Imports():
        from fedjax_spmc import devices, experiment

    devices.use_cores(config.federation.devices)
    experiment.run(config, workdir, stream=sys.stderr)
    show(summary_text(workdir))
    return 0


def _plugins(flags: Flags) -> tuple[str, ...]:
    """The plug-ins that a command line names, in its config too."""
    from fedjax_spmc import config as configs
    from fedjax_spmc.config.files import read_config

    config = configs.default_config() if flags["config"] is None else read_config(flags["config"])[0]
    configs.override(config, [(path, value) for path, value in flags.overrides if path == "plugins"])
    return tuple(configs.FIELDS["plugins"].check(config.plugins))


def short_hash(config: Any) -> str:
    """Names a config's default run folder: eight hex digits over the fields that touch the numbers."""
    from fedjax_spmc import config as configs

    flat = {path: value for path, value in configs.flatten(config).items() if path not in configs.CHANGEABLE_FIELDS}
    return hashlib.sha256(json.dumps(flat, sort_keys=True, default=str).encode()).hexdigest()[:8]


def summary_text(workdir: Path) -> str:
    """The text at the end of a run: the summary as a small table, and the paths of the results."""
    from fedjax_spmc.metrics import PRINTED, mean_of_last

    summary = json.loads((workdir / "summary.json").read_text())
    lines = ["  ".join(["percent               ", *[f"{name:>7}" for name in PRINTED]])]
    for title, suffix in ((mean_of_last(summary["mean_of"]), ""), ("last round", "_last")):
        values = [summary[name + suffix] for name in PRINTED]
        cells = [f"{'-':>7}" if value is None else f"{value:7.2f}" for value in values]
        lines.append("  ".join([f"{title:<22}", *cells]))
    note = f" (data: {summary['data_note']})" if summary["data_note"] else ""
    mark = (
        " ORACLE: the aggregator was told who is malicious, or clients where the trigger is."
        if summary["oracle"]
        else ""
    )
    lines.append(f"{summary['status']} after {summary['rounds']} rounds{note}.{mark}")
    lines += _measured_text(summary)
    lines += [f"note: {remark['sentence']}" for remark in summary["remarks"]]
    roster = json.loads((workdir / "roster.json").read_text())
    lines.append(f"malicious clients: {len(roster['malicious'])} of {roster['num_clients']}")
    lines.append(f"run folder: {workdir}   curves: {workdir / 'curves.png'}")
    return "\n".join(lines)


def _measured_text(summary: Mapping[str, Any]) -> list[str]:
    """What next tokens are measured by, what was rejected, and how long the backdoor outlived an attack that has ended;
    each where there is any."""
    from fedjax_spmc import durability

    def percent(name: str) -> str:
        return "-" if summary[name] is None else f"{summary[name]:.2f}"

    lines = []
    if summary["perplexity"] is not None:
        lines.append(f"next token: top-3 accuracy {percent('A_top3')}  perplexity {percent('perplexity')}")
    if summary["confidence"] > 0:
        lines.append(
            f"rejected below evaluation.confidence = {summary['confidence']}: {percent('rejected_clean')} % of clean, "
            f"{percent('rejected_triggered')} % of triggered predictions; without rejection "
            f"A {percent('A_without_rejection')}  ASR {percent('ASR_without_rejection')}"
        )
    if summary["asr_after"] is not None:
        lines.append(f"ASR after the attack: {percent('asr_after')} on average")
        if summary["lifespan_resolution"] > 1:
            lines[-1] += f"; rounds are counted in steps of up to {summary['lifespan_resolution']}"
    for threshold in summary["lifespan_thresholds"] if summary["asr_after"] is not None else ():
        values = {name: summary[durability.name_at(name, threshold)] for name in durability.PER_THRESHOLD}
        rounds = "  ".join(f"{words} {values[name]}" for name, words in durability.WORDS.items())
        at_least = "  (censored: it is still above at the end)" if values["censored"] else ""
        lines.append(f"rounds that ASR > {threshold:g} % outlived the attack: {rounds}{at_least}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
