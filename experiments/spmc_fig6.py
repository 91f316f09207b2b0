"""SPMC's Figure 6: A and R over the rounds on CIFAR-10, gamma 0.2 and 0.3, all methods of Table 2 and on its cells.

python experiments/spmc_fig6.py
python experiments/spmc_fig6.py --rounds=2 --seeds=0 --limit=2000 --methods=fedavg,spmc  # a look
"""

import sys

from papers import main

if __name__ == "__main__":
    narrow = {"data.name": ["cifar10"]}
    sys.exit(main(__doc__, [("spmc_table2", "")], (), "sweeps/spmc_table2", narrow))
