"""Runs that differ only in their seed are one setting: its numbers are means over seeds with a bootstrap interval."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc.config import belongs_to_method, presets
from fedjax_spmc.errors import UserError
from fedjax_spmc.metrics import LAST_ROUNDS
from fedjax_spmc.record.remarks import MEANINGS
from fedjax_spmc.report.estimates import Estimate, bootstrap, estimate
from fedjax_spmc.report.read import DIVERGED, FAILED, FINISHED, UNFINISHED, Run

MARKS = {
    "o": "oracle: the aggregator was told who is malicious, or clients where the trigger is; never ranked",
    "s": "a single seed: no interval; never ranked",
    "u": "unfinished: the mean of the last five evaluated rounds so far; never ranked",
    "m": "the mean is over fewer than five rounds, as no more were evaluated",
    "x": "not all seeds count: some runs are unfinished, failed or diverged, the mean is over the others",
    "f": "failed or diverged: no seed finished",
    "c": "in some seeds ASR is above the threshold in the last round: the lifespan may be longer",
    "j": "CIFAR-10 was decoded from JPEG-coded copies: not to be compared to the digit with published accuracies",
    **MEANINGS,
}
"""Marks of cells in a table and their meaning, in the order of the legend."""


class Setting(NamedTuple):
    """Runs of one config under several seeds.

    Attributes:
        config: flat, without the seed and without fields that do not touch the numbers.
        runs: one per seed, by seed.
        counted: those that the means are over: the finished ones, or the unfinished where none is.
    """

    config: dict[str, Any]
    runs: list[Run]
    counted: list[Run]

    def estimate(self, name: str) -> Estimate:
        """One of `Run.numbers` over the seeds."""
        return estimate([run.numbers[name] for run in self.counted])

    def marks(self) -> str:
        """Letters of `MARKS`."""
        states = [run.status for run in self.runs]
        found = {
            "o": any(run.oracle for run in self.runs),
            "s": len(self.counted) == 1,
            "u": bool(self.counted) and self.counted[0].status == UNFINISHED,
            "m": any(run.status == FINISHED and run.numbers["mean_of"] < LAST_ROUNDS for run in self.counted),
            "x": bool(self.counted) and len(self.counted) < len(self.runs),
            "f": not self.counted and any(state in (FAILED, DIVERGED) for state in states),
            "j": any("JPEG" in run.note for run in self.runs),
        } | dict.fromkeys((remark.letter for run in self.counted for remark in run.remarks), True)
        return "".join(letter for letter in MARKS if found.get(letter))

    def ranked(self) -> bool:
        """Whether its numbers may be called best: two finished seeds or more, and sound."""
        return self.sound() and "s" not in self.marks()

    def sound(self) -> bool:
        """Whether its numbers speak of its method: a seed has finished, no oracle, no remark against it."""
        against = any(not remark.ranked for run in self.counted for remark in run.remarks)
        return bool(self.counted) and not set(self.marks()) & set("ouf") and not against

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(rounds, mean, low, high) over the seeds, all [rounds]; low and high NaN below two seeds."""
        series = [run.series(name) for run in self.counted if run.lines]
        if not series:
            return np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0)
        rounds = np.unique(np.concatenate([one[0] for one in series]))
        values = np.full((len(series), len(rounds)), np.nan)
        for row, (at, known) in zip(values, series, strict=True):
            row[np.searchsorted(rounds, at)] = known
        whole = ~np.isnan(values).any(axis=0)  # a round that some seeds have not reached would jump
        low, high = bootstrap(values[:, whole])
        return rounds[whole], values[:, whole].mean(axis=0), low, high


def num_seeds(setting: Setting) -> str:
    """How many seeds lie behind the numbers."""
    return str(len(setting.counted) or len(setting.runs))


def rounds_played(setting: Setting) -> str:
    """How many rounds lie behind the numbers, of how many."""
    wanted = setting.config["federation.rounds"]
    played = sorted({run.lines[-1]["round"] + 1 for run in setting.counted if run.lines})
    if not played or played == [wanted]:
        return str(wanted) if setting.counted else f"0 of {wanted}"
    return f"{played[0]}–{played[-1]} of {wanted}" if len(played) > 1 else f"{played[0]} of {wanted}"


def mean_of(setting: Setting) -> str:
    """Over how many of the last evaluated rounds the means are."""
    found = sorted({int(value) for run in setting.counted if (value := run.numbers["mean_of"]) >= 0})
    if not found:
        return "–"
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def comparable_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which runs of one setting must agree: all that touch the numbers, but for the seed.

    Thresholds of lifespans do not: every run's are computed for those of all.
    """
    touching = {*configs.result_fields(config), "evaluation.confidence"} - {"seed"}
    return {path: config[path] for path in sorted(touching)}


def group(runs: Sequence[Run]) -> tuple[list[Setting], list[str]]:
    """Settings in a fixed order, and sentences about runs of one experiment that were found twice."""
    by_key: dict[str, list[Run]] = {}
    for run in runs:
        by_key.setdefault(json.dumps(comparable_fields(run.config), sort_keys=True, default=str), []).append(run)
    settings, notes = [], []
    for members in by_key.values():
        by_seed: dict[int, Run] = {}
        for run in members:
            other = by_seed.get(run.config["seed"])
            if other is not None:
                run, left_out = (run, other) if _completeness(run) > _completeness(other) else (other, run)
                notes.append(f"{left_out.name} is the same experiment as {run.name} and counts once.")
            by_seed[run.config["seed"]] = run
        kept = [by_seed[seed] for seed in sorted(by_seed)]
        finished = [run for run in kept if run.status == FINISHED]
        unfinished = [run for run in kept if run.status == UNFINISHED and run.lines]
        settings.append(Setting(comparable_fields(kept[0].config), kept, finished or unfinished))
    return sorted(settings, key=_order), notes


def _completeness(run: Run) -> tuple[bool, int, bool]:
    return run.status == FINISHED, len(run.lines), run.has_model()


def _order(setting: Setting) -> tuple[Any, ...]:
    config = setting.config
    names = list(presets.methods())
    method = method_of(config)
    place = names.index(method) if method in names else len(names)
    first = (config["data.name"], config["attack.malicious_fraction"], config["partition.beta"])
    return (*map(str, first), place, method, json.dumps(config, sort_keys=True, default=str))


def method_of(config: Mapping[str, Any]) -> str:
    """The name of the method: its preset's, or the local rule's and the aggregator's."""
    return presets.method_name(config["local.rule"], config["aggregator.name"])


def method_names(settings: Sequence[Setting]) -> list[str]:
    """A name for each setting's method: the preset's, and the options in which it differs from others of this name."""
    return told_apart(settings, [method_of(one.config) for one in settings], belongs_to_method)


def differing_fields(settings: Sequence[Setting]) -> list[str]:
    """The fields in which settings differ, but for those that the name of the method implies."""
    paths = sorted({path for one in settings for path in one.config})
    implied = {"local.rule", "aggregator.name"}
    seen = {path: {json.dumps(one.config.get(path), default=str) for one in settings} for path in paths}
    return [path for path in paths if len(seen[path]) > 1 and path not in implied]


def value_text(value: Any) -> str:
    """A field's value for a reader."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return str(value)


@functools.cache
def paper_config(rule: str, aggregator: str, variant: str, clients: int, per_round: int) -> dict[str, Any] | None:
    """The config in which a paper, or with variant "reference" its authors' code, runs a method; flat.

    None where there is none: a pair that cannot be made, or a part of a plug-in.
    """
    method = presets.method_name(rule, aggregator)
    try:
        known = method in presets.methods()
        made = presets.make_config(
            ",".join(word for word in (method if known else "fedavg", variant) if word),
            federation__num_clients=clients,
            federation__clients_per_round=per_round,
        )
        if not known:
            for path, value in {"local.rule": rule, "aggregator.name": aggregator, "aggregator.options": {}}.items():
                configs.set_field(made, path, value)
        flat = configs.flatten(configs.with_chosen_options(configs.resolve(made)))
    except UserError:
        return None
    return {path: list(value) if isinstance(value, tuple) else value for path, value in flat.items()}


def departures(config: Mapping[str, Any], variant: str = "") -> dict[str, Any]:
    """Path -> value of the fields in which a setting departs from the paper's, or its code's, with its method."""
    names = ("local.rule", "aggregator.name", "federation.num_clients", "federation.clients_per_round")
    rule, aggregator, clients, per_round = (config[name] for name in names)
    paper = paper_config(rule, aggregator, variant, clients, per_round)
    if paper is None:
        paper = paper_config("sgd", "mean", variant, clients, per_round) or {}
        config = {path: value for path, value in config.items() if not configs.option_at(path)[0]}
    own = comparable_fields(config)
    missing = object()
    return {
        path: own[path]
        for path in own
        if (path in paper or configs.option_at(path)[0] == configs.PRE)  # no paper's method has pre-aggregators
        and json.dumps(own[path], default=str) != json.dumps(paper.get(path, missing), default=str)
    }


def conditions_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The departures from the paper that are not the method's: what must be equal where methods are compared.

    The authors' code trains averaging for one epoch and everything else for ten: that belongs to their averaging.
    """
    own = departures(config)
    if "local.epochs" not in departures(config, variant_of(config)):
        own.pop("local.epochs", None)
    return {path: value for path, value in own.items() if not belongs_to_method(path)}


def variant_of(config: Mapping[str, Any]) -> str:
    """ "reference" where a setting is nearer to the authors' code than to the paper, else ""."""
    return "reference" if len(departures(config, "reference")) < len(departures(config)) else ""


CONDITIONS = ("data.name", "attack.malicious_fraction", "partition.beta", "federation.rounds")
"""Fields that are named wherever settings differ in them; others only where they depart from the paper's."""


SHORT_NAMES = {"data.name": "data", "attack.malicious_fraction": "γ", "partition.beta": "β", "attack.name": "attack"}


def short_name(path: str) -> str:
    """A field's name in labels."""
    section, option = configs.option_at(path)
    return SHORT_NAMES.get(path, option if section == configs.PRE else path.rpartition(".")[2])


def labels(settings: Sequence[Setting], leave_out: Iterable[str] = ()) -> list[str]:
    """A name for each setting: the method, and the fields that distinguish it from the paper's and other settings."""
    always = {path for path in differing_fields(settings) if path in CONDITIONS}
    by_data: dict[str, list[Setting]] = {}
    for setting in settings:
        by_data.setdefault(setting.config["data.name"], []).append(setting)
    # A field in which only data sets differ need not be named beside the name of the data set.
    within = {name: always | set(differing_fields(members)) for name, members in by_data.items()}
    implied = {*leave_out, "local.rule", "aggregator.name"}
    named = []
    for setting in settings:
        variant = variant_of(setting.config)
        own = departures(setting.config, variant)
        paths = sorted(within[setting.config["data.name"]], key=lambda path: (path not in CONDITIONS, path))
        shown = [path for path in paths if path not in implied and (path in CONDITIONS or path in own)]
        method = method_of(setting.config) + (":reference" if variant else "")
        named.append(", ".join([method, *_words(setting.config, shown)]))
    return told_apart(settings, named, lambda path: path not in implied)


def told_apart(settings: Sequence[Setting], names: Sequence[str], wanted: Callable[[str], bool]) -> list[str]:
    """The names, and behind one that several settings share the wanted fields in which these differ."""
    by_name: dict[str, list[Setting]] = {}
    for setting, name in zip(settings, names, strict=True):
        by_name.setdefault(name, []).append(setting)
    apart = {name: list(filter(wanted, differing_fields(members))) for name, members in by_name.items()}
    return [
        ", ".join([name, *_words(setting.config, apart[name])]) for setting, name in zip(settings, names, strict=True)
    ]


def _words(config: Mapping[str, Any], paths: Iterable[str]) -> list[str]:
    return [f"{short_name(path)}={value_text(config[path])}" for path in paths if path in config]


def parts_of_attack(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the attacks that a setting is made of, in their order."""
    name = config["attack.name"]
    return (name,) if isinstance(name, str) else tuple(name)
