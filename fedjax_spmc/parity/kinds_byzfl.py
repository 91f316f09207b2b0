"""Attacks that byzfl has too, in float64: against `attacks_byzfl*`, and beside the library itself where it is there."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import attacks
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.types import AttackContext, Roster, Upload, Variables

TOLERANCE = 1e-12
"""Of the largest number of a vector where that is above 1: a strength that is found may be ten million."""
UPLOADS = range(5, 21)
"""So many uploads a round beside the installed library."""
COLUMNS = 30

Rule = Callable[[np.ndarray, int], np.ndarray]
"""(updates [n, D], f) -> [D]."""


def mean(updates: Any, attackers: int) -> Any:
    """The mean."""
    del attackers
    return updates.mean(axis=0)


def trimmed_mean(updates: Any, attackers: int) -> Any:
    """The mean without the f smallest and the f largest of each number."""
    return jnp.sort(updates, axis=0)[attackers : len(updates) - attackers].mean(axis=0)


FIELDS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "ipm": ("ipm", {"epsilon": 2.0}, None),
    "alie": ("alie", {"z": 1.5}, None),
    "sign": ("sign_flip", {}, None),
    "mimic3": ("mimic", {"number": 3}, None),
    "optimal_ipm_trmean": ("ipm", {"optimise": True}, trimmed_mean),
    "optimal_alie_trmean": ("alie", {"optimise": True}, trimmed_mean),
    "optimal_alie_mean": ("alie", {"optimise": True}, mean),
}
"""The file's name of a vector -> our attack, its options, and the server's rule where the attack looks through it."""


def crafted(name: str, options: dict[str, Any], honest: np.ndarray, attackers: int, rule: Any = None) -> np.ndarray:
    """[D]: the update that attackers send beside honest ones [b, D], by the attack's own `craft`."""
    count, size = honest.shape
    total = count + attackers
    rows = jnp.zeros((total, size), honest.dtype).at[:count].set(honest)
    start, bad = jnp.zeros(size, honest.dtype), jnp.arange(total) >= count
    upload = Upload({"w": start}, {"w": rows}, jnp.ones(total), jnp.ones(total, bool), jnp.arange(total))
    ctx = AttackContext(
        variables=Variables({"w": start}, {}),
        roster=Roster(bad, jnp.int32(0), jnp.int32(0), jnp.int32(0)),
        client_ids=jnp.arange(total),
    )
    if rule is not None:
        ctx = ctx._replace(defend=lambda tried: ({"w": rule(tried.client_params["w"], attackers)}, None))
    attack = attacks.make(name, **options)
    assert attack.init is not None
    assert attack.craft is not None
    sent, _ = attack.craft(ctx, attack.init(ctx, root_key(0)), upload, root_key(0))
    return np.asarray(sent.client_params["w"])[-1]


@kind(r"attacks_byzfl.*")
def recorded(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The recorded vectors, then the installed library."""
    cases = [key.removesuffix("/honest") for key in arrays if key.endswith("/honest")]
    with jax.enable_x64(True):
        for field, (name, options, rule) in FIELDS.items():
            comparison = Comparison(f"byzfl {field}", TOLERANCE)
            found = [case for case in cases if f"{case}/{field}" in arrays]
            for case in found:
                honest, attackers = np.asarray(arrays[f"{case}/honest"], np.float64), int(arrays[f"{case}/f"])
                ours = crafted(name, options, honest, attackers, rule)
                _add(comparison, f"{case}/{field}", ours, arrays[f"{case}/{field}"])
            if found:
                yield comparison.outcome(source)
    yield from beside_the_library()


def installed() -> tuple[Any, str]:
    """The library byzfl, or None and why it is not there."""
    try:
        import byzfl  # pyright: ignore[reportMissingImports]
    except Exception as error:  # an installed library may fail for want of another one
        missing = isinstance(error, ModuleNotFoundError) and error.name == "byzfl"
        reason = "it is not installed" if missing else f"it cannot be imported: {error}"
        return None, " ".join(reason.split())[:200]
    return byzfl, ""


def beside_the_library() -> Iterator[Outcome]:
    """Made-up uploads, 5 to 20 a round, to our attacks and to those of the installed byzfl."""
    byzfl, reason = installed()
    if byzfl is None:
        yield skipped("byzfl, installed", "byzfl", reason)
        return
    rng = np.random.default_rng(0)
    comparisons = {field: Comparison(f"byzfl, installed: {field}", TOLERANCE) for field in FIELDS}
    with jax.enable_x64(True):
        for uploads in UPLOADS:
            attackers = (uploads - 1) // 4
            honest = rng.normal(size=(uploads - attackers, COLUMNS)) + rng.normal(size=COLUMNS)[None]
            for field, (name, options, rule) in FIELDS.items():
                theirs = _theirs(byzfl, field, attackers)(honest)
                ours = crafted(name, options, honest, attackers, rule)
                _add(comparisons[field], f"{field} of {uploads} uploads", ours, theirs)
    for comparison in comparisons.values():
        yield comparison.outcome("byzfl")


def _add(comparison: Comparison, name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    scale = max(1.0, float(np.abs(theirs).max(initial=0.0)))
    comparison.add(name, ours / scale, np.asarray(theirs) / scale)


def _theirs(byzfl: Any, field: str, attackers: int) -> Any:
    """The library's attack of one field."""
    searching = {"f": attackers, "pre_agg_list": []}
    return {
        "ipm": lambda: byzfl.InnerProductManipulation(2.0),
        "alie": lambda: byzfl.ALittleIsEnough(1.5),
        "sign": lambda: byzfl.SignFlipping(),
        "mimic3": lambda: byzfl.Mimic(3),
        "optimal_ipm_trmean": lambda: byzfl.Optimal_InnerProductManipulation(byzfl.TrMean(attackers), **searching),
        "optimal_alie_trmean": lambda: byzfl.Optimal_ALittleIsEnough(byzfl.TrMean(attackers), **searching),
        "optimal_alie_mean": lambda: byzfl.Optimal_ALittleIsEnough(byzfl.Average(), **searching),
    }[field]()
