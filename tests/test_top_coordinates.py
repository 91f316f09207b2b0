"""The overlap of the coordinates that rounds move most, experiments/top_coordinates.py."""

import sys

import numpy as np
import pytest

from tests import small
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))
import top_coordinates


def test_common_counts_members():
    one, other = (np.packbits(np.isin(np.arange(11), members)) for members in ([0, 3, 9, 10], [3, 4, 10, 5]))
    assert top_coordinates.common(one, other) == 50
    assert top_coordinates.common(one, one) == 100


def test_shares_of_a_run(small_cache):
    """Of half of the coordinates two rounds have more in common than of a hundredth, and never all."""
    found = top_coordinates.overlaps(small.config(3, "fedavg", attack__name="none"))
    assert set(found) == {f"{share:g} 1" for share in top_coordinates.SHARES}
    assert found["0.01 1"] < found["0.5 1"] < 100
    assert top_coordinates.table([{"seed": 0, **found}]).count("\n") == 1 + len(top_coordinates.SHARES)


@pytest.mark.parametrize("seeds", ["a", "1,", ""])
def test_bad_seeds(seeds, capsys):
    assert top_coordinates.main([f"--seeds={seeds}"]) == 2
    assert "--seeds" in capsys.readouterr().err
