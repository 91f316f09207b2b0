"""Does FDCR work when the server does not know who is malicious? The tables of docs/fdcr.md.

    python experiments/fdcr_question.py [--data=cifar10] [--seeds=0,1,2] [--rounds=12] [--cells=badnets]
                                        [--workdir=runs/fdcr_question] [--results=experiments/results/fdcr_question]

Plays every cell that the results do not hold yet: Fisher (authors, batch, per_sample) x malicious augmentation (frozen,
live) x attack (badnets, dba) with the leak off, plain averaging under the same attacks, and "leak" (authors' Fisher,
frozen, badnets, leak on), each with every seed; 3 of 10 clients are malicious, Dirichlet 0.5, the trigger and poison
fraction of the released code. `--cells` takes names of cells, or words that a name must hold one of. Keeps its small
files (config, environment, metrics, summary) and prints the report's tables of all that is kept. A cell that was
interrupted goes on where it stopped. A CIFAR-10 cell of 12 rounds takes 6 to 9 minutes of one CPU core.
"""

from typing import Any

from cells import study

FISHERS = ("authors", "batch", "per_sample")
AUGMENTATIONS = ("frozen", "live")
ATTACKS = ("badnets", "dba")


def cell(method: str, augmentation: str, attack: str, leak: bool = False) -> tuple[str, dict[str, Any]]:
    """A preset and the fields on top of it; `method` is a Fisher, or "averaging"."""
    fields = {"attack.name": attack, "attack.options.augmentation": augmentation}
    if method == "averaging":
        return "fedavg", fields | {"attack.poison_fraction": 0.5, "attack.trigger": "fdcr_code"}
    return "fdcr,reference", fields | {
        "local.options.fisher_kind": method,
        "aggregator.options.oracle_fisher_noise": leak,
    }


CELLS = {
    f"{method}-{augmentation}-{attack}": cell(method, augmentation, attack)
    for attack in ATTACKS
    for augmentation in AUGMENTATIONS
    for method in ("averaging", *FISHERS)
}
CELLS["authors-frozen-badnets-leak"] = cell("authors", "frozen", "badnets", leak=True)

if __name__ == "__main__":
    study(__doc__, "fdcr_question", CELLS, "badnets", ("settings", "detection"))
