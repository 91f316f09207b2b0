"""Share of the computed local steps that are wasted on clients that have already ended, under `vmap`.

    python experiments/bench/count_waste.py [--seeds=16] [--beta=0.5] [--clients=10] [--examples=45000] [--json]

The partitions are those of runs with so many examples of ten classes (CIFAR-10's training images without the validation
split), batch 64. "Lockstep" runs all clients of all experiments in the program until the longest has ended; "lanes" is
what the simulator does on an accelerator (`fedjax_spmc/lanes.py`). On a CPU clients train one after another, and
nothing is wasted.
"""

import json
import sys
from collections.abc import Sequence

import numpy as np

from fedjax_spmc import lanes
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.data import partition
from fedjax_spmc.options import Option, Range

BATCH, CLASSES = 64, 10


def computed_steps(steps: np.ndarray) -> int:
    """Lane-steps that the loops of `lanes.loop` compute for lanes of these lengths, the wasted ones among them."""
    ranked = np.sort(np.asarray(steps).ravel())[::-1]
    sizes = lanes.segment_sizes(len(ranked))
    ends = [int(ranked[size]) for size in sizes[1:]] + [int(ranked[0])]
    return sum(size * (end - start) for size, start, end in zip(sizes, [0, *ends[:-1]], ends, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--seeds", int, 16, range=Range(1, 10**9)), "N", "partitions that are drawn")
    parser.flag(Option("--beta", float, 0.5, range=Range(1e-6, 10**9)), "N", "of the Dirichlet draws")
    parser.flag(Option("--clients", int, 10, range=Range(1, 10**9)), "N", "of an experiment")
    parser.flag(Option("--examples", int, 45000, range=Range(10, 10**9)), "N", "of all clients")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    labels = np.repeat(np.arange(CLASSES), flags["examples"] // CLASSES)
    steps = np.array(
        [
            [len(part) // BATCH for part in partition.dirichlet(labels, flags["clients"], flags["beta"], rng)]
            for rng in map(np.random.RandomState, range(flags["seeds"]))
        ]
    )
    wasted = {}
    for together in [count for count in (1, 4, 16, 64) if count <= flags["seeds"]]:
        groups = [steps[i : i + together] for i in range(0, len(steps), together)]
        lockstep, packed = sum(one.size * one.max() for one in groups), sum(map(computed_steps, groups))
        wasted[together] = {"lockstep": 1 - steps.sum() / lockstep, "lanes": 1 - steps.sum() / packed}
    if flags["json"]:
        print(json.dumps(wasted))
        return 0
    for together, shares in wasted.items():
        print(
            f"{together:>3} experiments in a program: lockstep wastes {100 * shares['lockstep']:4.1f} %, "
            f"lanes {100 * shares['lanes']:4.1f} %"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
