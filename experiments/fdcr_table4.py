"""FDCR's Table 4 beside what comes out here: fourteen methods, three data sets, two betas, two fractions.

python experiments/fdcr_table4.py
python experiments/fdcr_table4.py --rounds=2 --seeds=0 --limit=2000 --data=cifar10 --methods=fedavg,fdcr  # a look
"""

import sys

from papers import main

if __name__ == "__main__":
    sys.exit(main(__doc__, [("fdcr_table4", "")], ("fdcr4",), "sweeps/fdcr_table4"))
