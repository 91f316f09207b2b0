"""FDCR's Table 2 beside what comes out here: discrepancies with and without importances, CIFAR-10, two betas.

python experiments/fdcr_table2.py
python experiments/fdcr_table2.py --rounds=2 --seeds=0 --limit=2000  # a look
"""

import sys

from papers import main

if __name__ == "__main__":
    sys.exit(main(__doc__, [("fdcr_table2", "")], ("fdcr2",), "sweeps/fdcr_table2"))
