"""Share of the computed local steps that are wasted on clients that have already ended, under `vmap`.

    python experiments/bench/count_waste.py [--seeds=16] [--beta=0.5] [--clients=10] [--examples=45000] [--json]

The partitions are those of runs with so many examples of ten classes (CIFAR-10's training images without the validation
split), batch 64. "Lockstep" runs all clients of all experiments in the program until the longest has ended; "lanes" is
what the simulator does on an accelerator (`fedjax_spmc/lanes.py`). On a CPU clients train one after another, and
nothing is wasted.
"""

import argparse
import json

import numpy as np

from fedjax_spmc import lanes
from fedjax_spmc.data import partition

BATCH, CLASSES = 64, 10


def computed_steps(steps: np.ndarray) -> int:
    """Lane-steps that the loops of `lanes.loop` compute for lanes of these lengths, the wasted ones among them."""
    ranked = np.sort(np.asarray(steps).ravel())[::-1]
    sizes = lanes.segment_sizes(len(ranked))
    ends = [int(ranked[size]) for size in sizes[1:]] + [int(ranked[0])]
    return sum(size * (end - start) for size, start, end in zip(sizes, [0, *ends[:-1]], ends, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--beta", type=float, default=0.5)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--examples", type=int, default=45000)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    labels = np.repeat(np.arange(CLASSES), arguments.examples // CLASSES)
    steps = np.array(
        [
            [len(part) // BATCH for part in partition.dirichlet(labels, arguments.clients, arguments.beta, rng)]
            for rng in map(np.random.RandomState, range(arguments.seeds))
        ]
    )
    wasted = {}
    for together in [count for count in (1, 4, 16, 64) if count <= arguments.seeds]:
        groups = [steps[i : i + together] for i in range(0, len(steps), together)]
        lockstep, packed = sum(one.size * one.max() for one in groups), sum(map(computed_steps, groups))
        wasted[together] = {"lockstep": 1 - steps.sum() / lockstep, "lanes": 1 - steps.sum() / packed}
    if arguments.json:
        print(json.dumps(wasted))
        return
    for together, shares in wasted.items():
        print(
            f"{together:>3} experiments in a program: lockstep wastes {100 * shares['lockstep']:4.1f} %, "
            f"lanes {100 * shares['lanes']:4.1f} %"
        )


if __name__ == "__main__":
    main()
