"""FDCR's Table 3 beside what comes out here: averaging, FCDC, FPRA and both, two data sets, two betas.

python experiments/fdcr_table3.py
python experiments/fdcr_table3.py --rounds=2 --seeds=0 --limit=2000 --data=cifar10  # a look
"""

import sys

from papers import main

if __name__ == "__main__":
    sweeps = [("fdcr_table3", "fedavg"), ("fdcr_table3", "")]
    sys.exit(main(__doc__, sweeps, ("fdcr3",), "sweeps/fdcr_table3"))
