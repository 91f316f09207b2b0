"""The metrics of short runs are the kept ones, bit for bit, on the kind of machine on which those were made."""

import pytest

from tests import kept_numbers

KEPT = kept_numbers.kept("numbers.json")


@pytest.fixture(autouse=True)
def same_machine():
    """Bits of another machine say nothing: XLA compiles for the processor at hand."""
    here = kept_numbers.machine()
    other = [name for name, value in KEPT["made_on"].items() if here[name] != value]
    if other:
        pytest.skip(f"the numbers were kept on another machine ({', '.join(other)} differ)")


def check(data, method):
    kept = KEPT["runs"][data][method]
    played = kept_numbers.play(data, method)
    assert [{name: line[name] for name in old} for line, old in zip(played, kept, strict=True)] == kept


@pytest.mark.parametrize(
    "method",
    # One is enough for the inner loop: at the tests' quick compilation a run takes about ten seconds.
    [method if method == "spmc" else pytest.param(method, marks=pytest.mark.slow) for method in kept_numbers.METHODS],
)
@pytest.mark.usefixtures("small_cache")
def test_digits(method):
    check("digits", method)


@pytest.mark.slow
@pytest.mark.parametrize("method", kept_numbers.METHODS)
def test_cifar10(method, shared, small_cache, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(shared / "data"))
    check("cifar10", method)
