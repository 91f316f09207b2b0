"""FDCR's Table 1 beside what comes out here: 2-means, DBSCAN and FINCH, two data sets, two betas.

python experiments/fdcr_table1.py
python experiments/fdcr_table1.py --rounds=2 --seeds=0 --limit=2000 --data=cifar10  # a look
"""

import sys

from papers import main

if __name__ == "__main__":
    sys.exit(main(__doc__, [("fdcr_table1", "")], ("fdcr1",), "sweeps/fdcr_table1"))
