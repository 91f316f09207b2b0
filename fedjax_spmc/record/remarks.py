"""What must be known of a run before its numbers are believed: failed aggregations, rejected uploads, clients that
never train, an attack in which nobody took part, a model that knows no more than guessing, a defence that is not as
published.

The letters and the sentences are made here alone; progress, summary, sweep, `compare` and report show them. Without
them a run that kept its first model looks like a defence.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc import reading
from fedjax_spmc.flip.options import PRESETS
from fedjax_spmc.record.folder import RunFolder
from fedjax_spmc.types import Roster

MEANINGS = {
    "k": "in some rounds the aggregation failed and the global model was kept; never ranked where that were half of a"
    " run's rounds or more",
    "r": "uploads that were not finite were rejected",
    "t": "some clients never train, because their examples make no batch",
    "g": "in the last evaluated round the model is at chance, hardly better than guessing; never ranked",
    "n": "in some attack rounds, or in all, no attacker took part; never ranked where that were all",
    "f": "FLIP's clients search by another schedule, with fewer steps or for other triggers than in its code",
}
"""The letters of remarks and their meaning, as tables explain them."""
CHANCE = 0.1
"""A model is at chance where its accuracy, classes counting equally, is at most this share of the way from guessing to
always right, and at most twice that of guessing. One that predicts a single class is as good as guessing."""


class Facts(NamedTuple):
    """What the remarks are made of, exact over the rounds that the lines of `metrics.jsonl` speak of; None = not known,
    because an older version did not write it down, or because there is no result.

    The fields are keys of `summary.json` and columns of a sweep's table.

    Attributes:
        rounds_played: rounds up to the last line.
        aggregation_failed: rounds that kept the global model.
        non_finite: uploads that were rejected because they were not finite.
        malicious_clients: of all N.
        idle_clients: clients that never train, because their examples make no batch.
        idle_malicious: the malicious ones among them.
        attack_rounds: rounds on the attack's schedule.
        unattacked_rounds: those of them in which no attacking client took part, though some clients are malicious.
        at_chance: 1 where the model of the last evaluated round is at chance, else 0; see `CHANCE`. Not known where
            there are more classes than `evaluation.MOST_CLASSES`.
    """

    rounds_played: int | None = None
    aggregation_failed: int | None = None
    non_finite: int | None = None
    malicious_clients: int | None = None
    idle_clients: int | None = None
    idle_malicious: int | None = None
    attack_rounds: int | None = None
    unattacked_rounds: int | None = None
    at_chance: int | None = None


class Remark(NamedTuple):
    """A remark on a run.

    Attributes:
        letter: of `MEANINGS`.
        short: a few words, for a line of progress or a cell.
        sentence: in full.
        ranked: whether the run's numbers may still be called best.
    """

    letter: str
    short: str
    sentence: str
    ranked: bool = True


def facts_of(
    config: Mapping[str, Any],
    lines: Sequence[Mapping[str, Any]],
    malicious: np.ndarray,
    idle: np.ndarray | None = None,
) -> Facts:
    """The facts of a run.

    Args:
        config: fields by dotted path.
        lines: of `metrics.jsonl`, by round.
        malicious: [N] bool.
        idle: [N] bool, who never trains; None = as the lines tell it: who was drawn and never took part.
    """
    rounds = lines[-1]["round"] + 1 if lines else 0
    idle = _idle_in(lines, len(malicious)) if idle is None else idle
    return Facts(
        rounds_played=rounds,
        aggregation_failed=_total(lines, "aggregation_failed"),
        non_finite=_total(lines, "non_finite"),
        malicious_clients=int(malicious.sum()),
        idle_clients=None if idle is None else int(idle.sum()),
        idle_malicious=None if idle is None else int((idle & malicious).sum()),
        attack_rounds=_attack_rounds(config, rounds),
        unattacked_rounds=_unattacked_rounds(config, lines),
        at_chance=at_chance(lines[-1]) if lines else None,
    )


def at_chance(line: Mapping[str, Any]) -> int | None:
    """1 where the model of a line of `metrics.jsonl` is at chance, else 0, see `CHANCE`; None = the line does not tell.

    The accuracies of the classes are those without rejection. Classes that the test set does not ask count for nothing.
    """
    given = line.get("per_class")
    known = [rate for rate in given if type(rate) in (int, float)] if isinstance(given, list) else []
    if len(known) < 2:
        return None
    guess = 100 / len(known)
    return int(sum(known) / len(known) <= min(2 * guess, guess + CHANCE * (100 - guess)))


def remarks_ahead(config: configs.Config, malicious: np.ndarray, idle: np.ndarray) -> list[Remark]:
    """The remarks that can be made before the first round is played.

    Args:
        config: resolved.
        malicious, idle: [N] bool, see `facts_of`.
    """
    fields, rounds = configs.flatten(config), config.federation.rounds
    facts = facts_of(fields, [], malicious, idle)._replace(
        rounds_played=rounds, attack_rounds=_attack_rounds(fields, rounds), unattacked_rounds=None
    )
    return remarks_of(fields, facts)


def facts_of_summary(summary: Mapping[str, Any]) -> Facts:
    """The facts in a `summary.json` or in a row of a sweep's table."""
    found = {name: summary.get(name) for name in Facts._fields}
    return Facts(**{name: value if type(value) is int else None for name, value in found.items()})


def of_folder(
    folder: str | os.PathLike[str], config: configs.Config, lines: Sequence[Mapping[str, Any]]
) -> list[Remark]:
    """The remarks on the run in a folder, from its lines; `summary.json` alone knows of clients that were never drawn.

    Args:
        folder: of the run.
        config: resolved.
        lines: of its `metrics.jsonl`.

    Raises:
        WorkdirError: nothing says who was malicious.
    """
    kept, fields = RunFolder(folder, config, read_only=True), configs.flatten(config)
    malicious = np.asarray(kept.roster().malicious)
    try:
        summary = reading.json_object(kept.path / "summary.json")
    except (FileNotFoundError, reading.UnreadableError):  # the run goes on, or was killed
        summary = {}
    return remarks_of(fields, with_stated(facts_of(fields, lines, malicious), summary))


def with_stated(facts: Facts, summary: Mapping[str, Any]) -> Facts:
    """Facts of the lines alone, with what only the summary knows: clients that were never drawn and never train, and of
    kept lines without accuracies of classes whether the model is at chance."""
    stated = facts_of_summary(summary)
    if facts.at_chance is None:
        facts = facts._replace(at_chance=stated.at_chance)
    if stated.idle_clients is None:
        return facts
    return facts._replace(idle_clients=stated.idle_clients, idle_malicious=stated.idle_malicious)


def remarks_in(summary: Mapping[str, Any]) -> list[Remark]:
    """The remarks that a `summary.json` or a row of a sweep's table holds; none in those of older versions."""
    given = summary.get("remarks")
    whole = given if isinstance(given, list) else []
    return [Remark(**one) for one in whole if isinstance(one, dict) and one.keys() == set(Remark._fields)]


def remarks_of(config: Mapping[str, Any], facts: Facts) -> list[Remark]:
    """The remarks on a run, none where all is as it should be.

    Args:
        config: fields by dotted path.
        facts: of the run.
    """
    made = [_failed(facts), _rejected(facts), _idle(config, facts), _guesses(facts), _unattacked(config, facts)]
    made.append(_flip(config))
    return [remark for remark in made if remark is not None]


def in_progress(rounds: int, failed: int, rejected: int, chance: int | None = None) -> str:
    """What went wrong in the rounds so far, for the line of progress; "" where nothing did."""
    facts = Facts(rounds_played=rounds, aggregation_failed=failed, non_finite=rejected, at_chance=chance)
    made = (_failed(facts), _rejected(facts), _guesses(facts))
    return ", ".join(remark.short for remark in made if remark is not None)


def _failed(facts: Facts) -> Remark | None:
    failed, rounds = facts.aggregation_failed, facts.rounds_played
    if not failed or not rounds:
        return None
    short = f"{failed} of {rounds} aggregations failed"
    sentence = f"the aggregation failed in {failed} of {rounds} rounds, in which the global model was kept"
    if failed == rounds:
        sentence += ": the model is the one that the run began with, and R and V show no defence"
    return Remark("k", short, sentence + ".", ranked=2 * failed < rounds)


def _rejected(facts: Facts) -> Remark | None:
    if not facts.non_finite:
        return None
    words = "upload was" if facts.non_finite == 1 else "uploads were"
    short = f"{facts.non_finite} upload{'s' * (facts.non_finite > 1)} rejected"
    return Remark("r", short, f"{facts.non_finite} {words} not finite and rejected.")


def _guesses(facts: Facts) -> Remark | None:
    if not facts.at_chance:
        return None
    sentence = "in the last evaluated round the model is hardly better than guessing: R and V show no defence."
    return Remark("g", "at chance", sentence, ranked=False)


def _idle(config: Mapping[str, Any], facts: Facts) -> Remark | None:
    if not facts.idle_clients:
        return None
    one = facts.idle_clients == 1
    short = f"{facts.idle_clients} of {config['federation.num_clients']} clients never train{'s' * one}"
    reason = (
        f"fewer examples than local.batch_size = {config['local.batch_size']}, with local.drop_last = True"
        if config["local.drop_last"]
        else "no examples"
    )
    bad = f", {facts.idle_malicious} of them malicious" if facts.idle_malicious else ""
    return Remark("t", short, f"{short}{bad}: {'it has' if one else 'they have'} {reason}.")


def _unattacked(config: Mapping[str, Any], facts: Facts) -> Remark | None:
    """Nobody attacked, or fewer than one must expect of the sampling: see `_expects_attackers`."""
    fraction = config["attack.malicious_fraction"]
    if not _has_attack(config) or fraction == 0 or not facts.rounds_played:
        return None
    tail = "nobody attacks, and R and V show no defence."
    if facts.malicious_clients == 0:
        clients = config["federation.num_clients"]
        sentence = f"attack.malicious_fraction = {fraction} makes none of {clients} clients malicious: {tail}"
        return Remark("n", "no malicious client", sentence, ranked=False)
    if facts.attack_rounds == 0:
        first, rounds = config["attack.schedule.first"], facts.rounds_played
        sentence = f"none of the {rounds} rounds is an attack round (attack.schedule.first = {first}): {tail}"
        return Remark("n", "no attack round", sentence, ranked=False)
    missed, planned = facts.unattacked_rounds, facts.attack_rounds
    if not missed or not planned or (2 * missed < planned and not _expects_attackers(config)):
        return None
    short = f"no attacker in {missed} of {planned} attack rounds"
    sentence = f"no attacker took part in {missed} of {planned} attack rounds"
    if missed == planned:
        return Remark("n", short, f"{sentence}: {tail}", ranked=False)
    return Remark("n", short, sentence + ".")


def _flip(config: Mapping[str, Any]) -> Remark | None:
    """How FLIP's clients search, where that is not as its code does."""
    if config["local.rule"] != "flip":
        return None
    options = {name: config[f"local.options.{name}"] for name in ("preset", "schedule", "triggers")}
    if options == {"preset": "reference", "schedule": "reference", "triggers": "inverted"}:
        return None
    preset = PRESETS[options["preset"]]
    steps = {name: config.get(f"local.options.{name}") or preset[name] for name in preset}
    pairs = f" for {steps['pairs']} pairs a round" if options["schedule"] == "parallel" else ""
    searches = f"{steps['universal_steps']} universal steps and {steps['pair_steps']}{pairs}"
    words = {"inverted": searches, "noise": "random patterns, no search", "none": "no trigger, no search"}
    short = f"FLIP: preset {options['preset']}, schedule {options['schedule']}, triggers {options['triggers']}"
    return Remark("f", short, f"{short}: {words[options['triggers']]}.")


def _expects_attackers(config: Mapping[str, Any]) -> bool:
    """Whether an attacker is to be expected in every attack round; else in more than half of them."""
    everybody = config["federation.clients_per_round"] == config["federation.num_clients"]
    return everybody or config.get("sampling.options.attackers", "drawn") != "drawn"


def _has_attack(config: Mapping[str, Any]) -> bool:
    names = config["attack.name"]
    return set(names if isinstance(names, (tuple, list)) else [names]) != {"none"}


def _attack_rounds(config: Mapping[str, Any], rounds: int) -> int:
    """Rounds on the attack's schedule among the first `rounds`."""
    return int(on_schedule(config, np.arange(rounds)).sum())


def on_schedule(config: Mapping[str, Any], rounds: Any) -> np.ndarray:
    """Which of `rounds` are on the attack's schedule: bool, shaped like `rounds`."""
    if not _has_attack(config):
        return np.zeros(np.shape(rounds), bool)
    first, last, every = (config[f"attack.schedule.{name}"] for name in ("first", "last", "every"))
    numbers: Any = {"first": first, "last": np.iinfo(np.int32).max if last is None else last, "every": every}
    return np.asarray(Roster(round=rounds, **numbers, malicious=None).attack_round())  # pyright: ignore


def _unattacked_rounds(config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> int | None:
    """Their sum; of lines that do not count them it is told where each speaks of one round alone."""
    total, before = 0, -1
    for line in lines:
        counted = line.get("unattacked_rounds")
        if counted is None:
            attacking, participating = line.get("attacking"), line.get("participating")
            if attacking is None or participating is None or line["round"] != before + 1:
                return None
            took_part = np.any(np.array(attacking, bool) & np.array(participating, bool))
            counted = int(on_schedule(config, line["round"]) and not took_part)
        total, before = total + counted, line["round"]
    return total


def _idle_in(lines: Sequence[Mapping[str, Any]], num_clients: int) -> np.ndarray | None:
    """[N] bool: who was drawn and never took part; None where the lines do not say who took part."""
    drawn, trained = np.zeros((2, num_clients), bool)
    for line in lines:
        if not isinstance(line.get("participating"), list) or not isinstance(line.get("client_ids"), list):
            return None
        rows, here = np.array(line["client_ids"], int), np.array(line["participating"], bool)
        drawn[rows] = True
        trained[rows[here]] = True
    return drawn & ~trained


def _total(lines: Sequence[Mapping[str, Any]], name: str) -> int | None:
    counts = [count for line in lines if type(count := line.get(name)) is int]
    return sum(counts) if len(counts) == len(lines) else None
