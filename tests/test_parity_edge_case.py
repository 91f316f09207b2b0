"""The attacker of "Attack of the Tails" and the networks of FLIP's code, held against their golden files."""

import numpy as np
import pytest

from fedjax_spmc.parity.kinds_edge_case import edge_cases
from fedjax_spmc.parity.kinds_networks import networks


@pytest.fixture(scope="module")
def recorded(shared):
    with np.load(shared / "golden" / "attacks_edge_case.npz") as file:
        return {name: file[name] for name in file.files}


def verdicts(recorded, case, **changed):
    found = {name: array for name, array in recorded.items() if name.startswith(f"{case}/")}
    assert found
    found |= {f"{case}/{name.replace('__', '/')}": value for name, value in changed.items()}
    return [one.verdict for one in edge_cases(found, "a file")]


def test_models_and_uploads(recorded):
    """Of one case; the walk over all files has the others."""
    assert verdicts(recorded, "pgd") == ["passed", "passed"]


@pytest.mark.slow
def test_settings_are_the_files(recorded):
    """Another radius is another model; another number of examples another upload."""
    assert verdicts(recorded, "pgd", eps=np.array(0.11), own=np.array(501)) == ["failed", "failed"]


@pytest.mark.slow
def test_other_settings_are_other_numbers(recorded):
    assert verdicts(recorded, "pgd", every=np.array(1)) == ["failed", "failed"]
    assert verdicts(recorded, "pgd_linf", eps=np.array(0.0005)) == ["failed", "failed"]
    assert verdicts(recorded, "prox", prox=np.array(0)) == ["failed", "failed"]
    assert verdicts(recorded, "blackbox", total=np.array(3401)) == ["passed", "failed"]


def test_networks_of_flip(shared):
    with np.load(shared / "golden" / "flip_misc.npz") as file:
        arrays = {name: file[name] for name in file.files if name.split("/")[0] in ("mnistnet", "resnet18")}
    assert [one.verdict for one in networks(arrays, "a file")] == ["passed", "passed"]
    arrays["mnistnet/logprob"] = arrays["mnistnet/logprob"] + 1e-5
    arrays["resnet18/param_sizes"] = arrays["resnet18/param_sizes"] + 1
    assert [one.verdict for one in networks(arrays, "a file")] == ["failed", "failed"]
