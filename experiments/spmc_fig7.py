"""SPMC's Figure 7: where the final models of SPMC and DnC look, with and without the trigger; CIFAR-10, gamma 0.3.

python experiments/spmc_fig7.py
python experiments/spmc_fig7.py --rounds=2 --limit=2000  # a look
"""

import sys

from papers import main

if __name__ == "__main__":
    narrow = {"data.name": ["cifar10"], "method": ["dnc", "spmc"], "attack.malicious_fraction": [0.3]}
    sys.exit(main(__doc__, [("spmc_table2", "")], (), "sweeps/spmc_table2", narrow, seeds=(0,), models=True))
