"""SPMC's Table 2 beside what comes out here: eleven methods, three data sets, gamma 0.2 and 0.3.

python experiments/spmc_table2.py                                                          # the paper's settings
python experiments/spmc_table2.py --rounds=2 --seeds=0 --limit=2000 --data=cifar10 --methods=fedavg,spmc  # a look
"""

import sys

from papers import main

if __name__ == "__main__":
    sys.exit(main(__doc__, [("spmc_table2", "")], ("spmc2",), "sweeps/spmc_table2"))
