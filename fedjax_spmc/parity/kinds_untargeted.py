"""Attacks that craft uploads, against `attacks_untargeted*`: the vectors that other codes send of given updates."""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks import fang, min_max, min_sum, tailored
from fedjax_spmc.attacks._search import Direction, direction_of
from fedjax_spmc.attacks._updates import mean_of, squared_distances, std_of
from fedjax_spmc.attacks.alie import published_z
from fedjax_spmc.attacks.mimic import Followed, follow
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped

SEARCH_END = 2e-4
"""How far apart two searches may end, whose last trials may fall on either side of a bound."""
DIRECTIONS: dict[str, Direction] = {"unit_vec": "unit", "sign": "sign", "std": "std"}
SEARCHES = {
    "minmax": lambda updates, mask, direction, attackers, start: min_max.pushed(updates, mask, direction, start),
    "minsum": lambda updates, mask, direction, attackers, start: min_sum.pushed(updates, mask, direction, start),
    "krum_search": functools.partial(tailored.pushed, rule="multi_krum"),
    "trmean_search": functools.partial(tailored.pushed, rule="trimmed_mean"),
    "median_search": functools.partial(tailored.pushed, rule="median"),
}
"""The file's name of a search -> (updates, mask, direction, attackers, start) -> (vector, strength)."""


@functools.cache
def search_of(name: str) -> Any:
    """A search under jit, one object for all cases."""
    return jax.jit(
        lambda updates, mask, direction, attackers, start: SEARCHES[name](
            updates, mask, direction, attackers=attackers, start=start
        )
    )


class Case:
    """The benign updates of one case, in rows and columns enough for all cases of a file, so that each search is
    compiled once. Rows that are added are not known, and columns hold zeros."""

    def __init__(self, arrays: Arrays, name: str, shape: tuple[int, int]):
        benign = np.asarray(arrays[f"{name}/benign"], np.float32)
        self.count, self.size = benign.shape
        self.attackers = int(arrays[f"{name}/f"])
        self.updates = jnp.zeros(shape, jnp.float32).at[: self.count, : self.size].set(benign)
        self.mask = jnp.arange(shape[0]) < self.count

    @property
    def exact(self) -> tuple[jax.Array, jax.Array]:
        """Updates and mask without added columns."""
        return self.updates[:, : self.size], self.mask


@kind(r"attacks_untargeted.*")
def untargeted(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Every case of the file: ALIE, min-max, min-sum, the tailored searches, both of Fang's, and mimic."""
    names = [key.removesuffix("/benign") for key in arrays if key.endswith("/benign")]
    shapes = [arrays[f"{name}/benign"].shape for name in names]
    attackers = max((int(arrays[f"{name}/f"]) for name in names), default=0)
    shape = (max((b for b, _ in shapes), default=1) + attackers, max((d for _, d in shapes), default=1))
    cases = {name: Case(arrays, name, shape) for name in names}
    seen = {f"{name}/{field}" for name in names for field in ("benign", "f")}
    yield from little_is_enough(arrays, source, cases, seen)
    for search in SEARCHES:
        yield from searched(arrays, source, cases, search, seen)
    yield from fang_krum(arrays, source, cases, seen)
    yield from fang_trimming(arrays, source, cases, seen)
    yield from mimicked(arrays, source, seen)
    unknown = sorted(set(arrays) - seen)
    if unknown:
        yield skipped("untargeted", source, f"nothing here is called {', '.join(unknown[:5])}")


def taken(arrays: Arrays, names: Sequence[str], seen: set[str]) -> bool:
    """Whether a file has all of these arrays; they then count as compared."""
    there = all(name in arrays for name in names)
    seen.update(names if there else ())
    return there


def little_is_enough(arrays: Arrays, source: str, cases: dict[str, Case], seen: set[str]) -> Iterator[Outcome]:
    """The vector with the file's own z, and the paper's z of some n and f."""
    vectors, numbers = Comparison("untargeted lie"), Comparison("untargeted alie z")
    compared = False
    for name, case in cases.items():
        if taken(arrays, [f"{name}/lie", f"{name}/lie_z"], seen):
            ours = mean_of(*case.exact) + jnp.float32(arrays[f"{name}/lie_z"]) * std_of(*case.exact)
            vectors.add(f"{name}/lie", ours, arrays[f"{name}/lie"])
            compared = True
    if compared:
        yield vectors.outcome(source)
    published = {key: found for key in arrays if (found := re.fullmatch(r"\w+/z_(\d+)_(\d+)", key))}
    for key, found in published.items():
        numbers.add(key, published_z(int(found[1]), int(found[2])), arrays[key])
    seen.update(published)
    if published:
        yield numbers.outcome(source)


def searched(arrays: Arrays, source: str, cases: dict[str, Case], search: str, seen: set[str]) -> Iterator[Outcome]:
    """One kind of search, in every direction and from every start that the file has."""
    comparison, compared = Comparison(f"untargeted {search}"), False
    for name, case in cases.items():
        for key in arrays:
            found = re.fullmatch(rf"{re.escape(name)}/{search}/(unit_vec|sign|std)_(\d+(?:\.\d+)?)", key)
            if found is None:
                continue
            direction = direction_of(case.updates, case.mask, DIRECTIONS[found[1]])
            start = jnp.float32(found[2])
            vector, strength = search_of(search)(case.updates, case.mask, direction, jnp.int32(case.attackers), start)
            slack = SEARCH_END * float(jnp.abs(direction).max())
            comparison.add(key, vector[: case.size], arrays[key], slack)
            seen.add(key)
            if taken(arrays, [f"{key}_lam"], seen):
                comparison.add(f"{key}_lam", strength, arrays[f"{key}_lam"], SEARCH_END)
            compared = True
    if compared:
        yield comparison.outcome(source)


def fang_krum(arrays: Arrays, source: str, cases: dict[str, Case], seen: set[str]) -> Iterator[Outcome]:
    """The first lambda and the upload that Krum takes; both lengths follow from the first lambda."""
    comparison, compared = Comparison("untargeted fang_krum"), False
    for name, case in cases.items():
        fields = [f"{name}/fang_krum/{field}" for field in ("lambda0", "update", "update_lam")]
        if not taken(arrays, fields, seen):
            continue
        updates, mask = case.exact
        first = fang.first_lambda(updates, mask, squared_distances(updates, mask), case.attackers)
        vector, strength = fang.through_krum(updates, mask, case.attackers)
        for field, ours in zip(fields, (first, vector, strength), strict=True):
            comparison.add(field, ours, arrays[field])
        compared = True
    if compared:
        yield comparison.outcome(source)


def fang_trimming(arrays: Arrays, source: str, cases: dict[str, Case], seen: set[str]) -> Iterator[Outcome]:
    """What the code sends to a trimmed mean, of its own draws, with all benign updates known and with some."""
    comparison, compared = Comparison("untargeted fang_trmean"), False
    for name, case in cases.items():
        fields = [f"{name}/fang_trmean/{field}" for field in ("full_draws", "full", "partial", "zero_share")]
        if not taken(arrays, fields, seen):
            continue
        draws = jnp.asarray(arrays[fields[0]].T, jnp.float32)
        full = fang.beyond(*case.exact, draws, "benign", fixed=False)
        comparison.add(fields[1], full, arrays[fields[1]])
        comparison.add(fields[2], fang.beyond(*case.exact, draws, "own", fixed=False), arrays[fields[2]])
        comparison.add(fields[3], (np.asarray(full) == 0).mean(), arrays[fields[3]])
        compared = True
    if compared:
        yield comparison.outcome(source)


def mimicked(arrays: Arrays, source: str, seen: set[str]) -> Iterator[Outcome]:
    """Whom mimic copies in each round, the direction that it learns and the running mean."""
    comparison, compared = Comparison("untargeted mimic"), False
    follow_once = jax.jit(follow, static_argnames="pick")
    for name in [key.removesuffix("/z0") for key in arrays if key.endswith("/z0")]:
        fields = [f"{name}/{field}" for field in ("z0", "gradients", "warmup", "argmax", "picks", "z", "mu")]
        if not taken(arrays, fields, seen):
            continue
        z0, rounds, warmup, largest, picks, axes, means = (arrays[field] for field in fields)
        axis = jnp.asarray(z0, jnp.float32)
        own, clients = Followed(jnp.int32(0), axis, jnp.zeros_like(axis), jnp.int32(-1)), jnp.arange(rounds.shape[1])
        pick = "most" if bool(largest) else "least"
        for t, gradients in enumerate(rounds):
            updates, mask = jnp.asarray(gradients, jnp.float32), jnp.ones(len(gradients), bool)
            row, own = follow_once(own, updates, mask, clients, jnp.int32(warmup), pick=pick)
            comparison.add(f"{name}/picks of round {t}", row, picks[t])
            comparison.add(f"{name}/z of round {t}", own.axis, axes[t])
            comparison.add(f"{name}/mu of round {t}", own.mean, means[t])
        compared = True
    if compared:
        yield comparison.outcome(source)
