"""Cost of Neurotoxin's mask: a round of the attack with it, beside the same round without.

    python experiments/bench/bench_mask.py [--config=configs/neurotoxin_small.py:kept] [--repeats=15] [--json]

The config's attack must name `neurotoxin`. Both programs begin in the same state, behind one round of the attack, so
that there is an update of the round before to make the mask of. A repetition plays the round once with either, in turn;
the ratio is the median of the repetitions' own ratios.
Exit codes: 0 done, 2 bad input (one sentence says what).
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config.files import read_config
from fedjax_spmc.options import Option, Range
from fedjax_spmc.terminal import show


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser("", __doc__)
    parser.flag(Option("--config", str, "configs/neurotoxin_small.py:kept"), "FILE[:PRESETS]", "whose attack rounds")
    parser.flag(Option("--repeats", int, 15, range=Range(1, 1000)), "N", "repetitions")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, lambda flags: _measure(parser, flags), arguments)


def _measure(parser: Parser, flags: Flags) -> int:
    from fedjax_spmc import config as configs

    config, _ = read_config(flags["config"])
    names = config.attack.name if isinstance(config.attack.name, (tuple, list)) else (config.attack.name,)
    if "neurotoxin" not in names:
        raise parser.refusal(f"--config = {flags['config']} is not allowed: its attack.name must name neurotoxin")
    configs.set_field(config, "model.start", None)
    configs.set_field(config, "attack.schedule.first", 0)
    plays = {"masked": attack_round(config)}
    rest = tuple(name for name in names if name != "neurotoxin")
    options = configs.kept_options(config, "attack", rest)
    configs.set_field(config, "attack.name", rest)
    configs.replace_options(config, "attack", options)
    plays["plain"] = attack_round(config)
    times: dict[str, list[float]] = {name: [] for name in plays}
    for _ in range(flags["repeats"]):
        for name, play in plays.items():
            start = time.perf_counter()
            play()
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    ratio = statistics.median(a / b for a, b in zip(times["masked"], times["plain"], strict=True))
    if flags["json"]:
        show(json.dumps({"seconds": seconds, "ratio": ratio}))
    else:
        show(f"a round: {seconds['plain']:.3f} s, with the mask {seconds['masked']:.3f} s, {100 * (ratio - 1):+.1f} %")
    return 0


def attack_round(config: Any) -> Callable[[], Any]:
    """Plays an attack round of a config, always the same one; compiled already."""
    import jax

    from fedjax_spmc import config as configs
    from fedjax_spmc import experiment
    from fedjax_spmc.rounds import make_round

    built = experiment.build(configs.resolve(config))
    play = make_round(built.federation, built.arrays, built.sizes)
    state, _ = play(built.state, built.key)

    def again() -> Any:
        return jax.block_until_ready(play(state, built.key))

    again()
    return again


if __name__ == "__main__":
    sys.exit(main())
