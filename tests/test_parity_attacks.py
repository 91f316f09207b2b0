"""Attacks on training and upload held against their golden files; a changed number is noticed."""

import numpy as np
import pytest

from fedjax_spmc.parity.kinds_chameleon import chameleon
from fedjax_spmc.parity.kinds_layers import layer_wise
from fedjax_spmc.parity.kinds_replacement import replacement


@pytest.fixture(scope="module")
def golden(shared):
    """name, case or cases -> their arrays."""

    def read(name, case):
        with np.load(shared / "golden" / f"{name}.npz") as file:
            return {key: file[key] for key in file.files if key.startswith(case)}

    return read


def verdicts(check, arrays):
    return [one.verdict for one in check(arrays, "a file")]


@pytest.mark.parametrize("case", ["plain", pytest.param("constrain", marks=pytest.mark.slow), "stop"])
def test_how_to_backdoor(golden, case):
    arrays = golden("attacks_replacement", f"howto/{case}/")
    assert verdicts(replacement, arrays) == ["passed", "passed"]
    changed = {"plain": ("canned", arrays[f"howto/{case}/canned"] + [0, 20, 0]), "constrain": ("alpha", np.array(0.71))}
    changed["stop"] = ("canned", np.maximum(arrays[f"howto/{case}/canned"], [2e-4, 0, 0]))
    name, value = changed[case]
    assert verdicts(replacement, arrays | {f"howto/{case}/{name}": value})[0] == "failed"


def test_critical_layers(golden):
    """Of one case; the walk over all files has the others."""
    assert verdicts(layer_wise, golden("attacks_lp", "a/")) == ["passed"] * 3


def test_another_simulated_server_is_another_list(golden):
    arrays = golden("attacks_lp", "a/")
    assert verdicts(layer_wise, arrays | {"a/f": np.array(1), "a/scale": np.array(0.9)})[1:] == ["failed", "failed"]


def test_the_square(golden):
    arrays = golden("attacks_lp", "stamp/")
    assert verdicts(layer_wise, arrays) == ["passed", "skipped"]


def test_chameleons_loss_and_triggers(golden):
    arrays = golden("attacks_chameleon", ("supcon/", "trigger/"))
    assert verdicts(chameleon, arrays) == ["skipped", "passed", "skipped", "passed"]
    changed = arrays | {
        "supcon/w6/weight": np.array(6.01),
        "trigger/cifar_1/stamped": arrays["trigger/cifar_2/stamped"],
    }
    assert verdicts(chameleon, changed) == ["skipped", "failed", "skipped", "failed"]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["round", "round_unfrozen"])
def test_a_round_of_chameleon_with_other_layers_frozen_is_noticed(golden, case):
    """As it is recorded it passes in the walk over all files."""
    arrays = golden("attacks_chameleon", (f"{case}/", "supcon/lonely", "trigger/cifar_1"))
    frozen = {f"{case}/freeze": 1 - arrays[f"{case}/freeze"]}
    assert verdicts(chameleon, arrays | frozen) == ["passed", "passed", "passed", "failed", "failed"]
