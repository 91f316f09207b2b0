"""SPMC's two halves apart and together, at 30 % malicious clients: the table of docs/spmc.md.

    python experiments/spmc_halves.py [--data=cifar10] [--seeds=0,1,2] [--rounds=12] [--cells=average,both]
                                      [--workdir=runs/spmc_halves] [--results=experiments/results/spmc_halves]

Plays every cell that the results do not hold yet, with every seed, keeps its small files (config, environment, metrics,
summary) and prints the report's table of all that is kept. A cell that was interrupted goes on where it stopped. On two
CPU cores a CIFAR-10 cell of 12 rounds takes 5 to 10 minutes.
"""

from cells import Cells, study

CELLS: Cells = {
    "average_1_epoch": ("fedavg", {"local.epochs": 1}),
    "average": ("fedavg", {}),
    "client_half": ("spmc", {"aggregator.name": "mean"}),
    "server_half": ("spmc", {"local.rule": "sgd"}),
    "both": ("spmc", {}),
    "both_benign": ("spmc", {"local.options.align": "benign"}),
    "both_reference": ("spmc,reference", {}),
}

if __name__ == "__main__":
    study(__doc__, "spmc_halves", CELLS, "", ("settings",))
