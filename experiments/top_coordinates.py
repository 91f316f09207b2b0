"""How stable the coordinates are that training moves most: what Neurotoxin's mask of the last update rests on.

    python experiments/top_coordinates.py --config=configs/neurotoxin_small.py:start --start=runs/neurotoxin_small_start
    python experiments/top_coordinates.py --config=configs/digits.py:fedavg --rounds=20 --seeds=0,1

Plays clean rounds of a config, whose attack is taken out. Of n coordinates, those s n that a round's aggregated update
moves most in magnitude are compared with those of 1, 5, 20 and 50 rounds before: how many of them are the same, in
percent, for several shares s. Two sets drawn at random would have 100 s percent in common.

Prints a Markdown table: the mean over all such pairs of rounds of a seed, then the mean over seeds and its 95 %
bootstrap interval. `--json` keeps each seed's means.
Exit codes: 0 done, 2 bad input (one sentence says what), 3 training stopped being finite.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from cells import seeds_of

from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config.files import read_config
from fedjax_spmc.options import Option, Range
from fedjax_spmc.paths import file_to_write
from fedjax_spmc.terminal import show

SHARES = (0.01, 0.05, 0.1, 0.5)
"""s: what the ratios 0.99, 0.95, 0.9 and 0.5 leave out."""
LAGS = (1, 5, 20, 50)
"""Rounds between the two updates of a pair."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser("", __doc__)
    parser.flag(Option("--config", str, "configs/neurotoxin_small.py:start"), "FILE[:PRESETS]", "whose rounds")
    parser.flag(Option("--rounds", int, 60, range=Range(2, 10**6)), "N", "rounds of each seed")
    parser.flag(Option("--seeds", str, "0,1,2,3,4"), "N,...", "each plays the rounds once")
    parser.flag(Option("--start", str, None, optional=True), "MODEL", "run folder or file that the rounds begin with")
    parser.flag(Option("--json", str, None, optional=True), "FILE", "keeps what each seed gave")
    return run_command(parser, lambda flags: _measure(parser, flags), arguments)


def _measure(parser: Parser, flags: Flags) -> int:
    from fedjax_spmc import config as configs

    kept = None if flags["json"] is None else file_to_write(flags["json"], "--json")
    config, _ = read_config(flags["config"])
    for path, value in {
        "attack.name": "none",
        "attack.options": {},
        "attack.schedule.first": 0,
        "attack.schedule.last": None,
        "federation.rounds": flags["rounds"],
        "model.start": flags["start"],
    }.items():
        configs.set_field(config, path, value)
    found = []
    for seed in seeds_of(parser, flags["seeds"]):
        config.seed = seed
        found.append({"seed": seed, **overlaps(config)})
        show(json.dumps(found[-1]))
    if kept is not None:
        asked = {name: flags[name] for name in ("config", "rounds", "start")}
        kept.write_text(json.dumps({**asked, "seeds": found}, indent=1) + "\n")
    show(table(found))
    return 0


def overlaps(config: Any) -> dict[str, float]:
    """Plays a config's rounds: "SHARE LAG" -> percent of the coordinates moved most that two rounds have in common."""
    import jax

    from fedjax_spmc import config as configs
    from fedjax_spmc import experiment, numerics
    from fedjax_spmc.attacks._masks import masks
    from fedjax_spmc.errors import DivergedError
    from fedjax_spmc.rounds import make_round

    @jax.jit
    def most_moved(now: Any, before: Any) -> list[Any]:
        update = jax.tree.map(lambda a, b: a - b, now, before)
        return [jax.tree.map(lambda small: ~small, masks(update, 1 - share, "global")) for share in SHARES]

    resolved = configs.resolve(config)
    with numerics.pinned(resolved.precision):
        built = experiment.build(resolved)
        play, state = make_round(built.federation, built.arrays, built.sizes), built.state
        rounds: list[list[np.ndarray]] = []
        for _ in range(resolved.federation.rounds):
            state, _report = play(state, built.key)
            if int(state.diverged) >= 0:
                raise DivergedError(f"Training stopped being finite in round {int(state.diverged)}.", int(state.round))
            sets = jax.device_get(most_moved(state.variables.params, state.previous.params))
            rounds.append([np.packbits(np.concatenate([x.ravel() for x in jax.tree.leaves(one)])) for one in sets])
    return {
        f"{share:g} {lag}": float(np.mean([common(a[i], b[i]) for a, b in zip(rounds[lag:], rounds, strict=False)]))
        for i, share in enumerate(SHARES)
        for lag in LAGS
        if lag < len(rounds)
    }


def common(one: np.ndarray, other: np.ndarray) -> float:
    """Percent of the members of `one` that are in `other`: packed bits."""
    return 100 * int(np.bitwise_count(one & other).sum()) / int(np.bitwise_count(one).sum())


def table(found: Sequence[dict[str, float]]) -> str:
    """Markdown: a line per share, a column per lag."""
    from fedjax_spmc.report.estimates import estimate

    lags = [lag for lag in LAGS if f"{SHARES[0]:g} {lag}" in found[0]]
    lines = [
        "| moved most | by chance | " + " | ".join(f"{lag} before" for lag in lags) + " |",
        "|---" * (2 + len(lags)) + "|",
    ]
    for share in SHARES:
        means = [estimate(one[f"{share:g} {lag}"] for one in found) for lag in lags]
        cells = [f"{one.mean:.1f} [{one.low:.1f}, {one.high:.1f}]" for one in means]
        lines.append(f"| {100 * share:g} % | {100 * share:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
