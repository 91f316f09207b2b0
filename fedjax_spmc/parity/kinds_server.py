"""Server rules against `spmc_server_*`: one row for each tag of a file, see `tags` and `layout`."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_spmc import aggregators
from fedjax_spmc.keys import root_key
from fedjax_spmc.one_round import average_stats
from fedjax_spmc.parity import tags
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, failed, kind, skipped
from fedjax_spmc.parity.layout import join, layout_of, split, unequal_counters, upload_of
from fedjax_spmc.parity.tags import Tag
from fedjax_spmc.reading import reason_of
from fedjax_spmc.types import Aggregator, Upload, Verdict


class Aggregated(NamedTuple):
    """Results of one call of our rule: the evaluated and the broadcast model as state vectors, the rest as it is."""

    evaluated: np.ndarray
    broadcast: np.ndarray
    params: Any
    stats: Any
    verdict: Verdict
    state: Any


@functools.cache
def _rule(name: str, **options: Any) -> Aggregator:
    """A rule under jit, one object for all files, so that equal shapes are compiled once."""
    return _jitted(aggregators.make(name, **options))


def _jitted(rule: Aggregator) -> Aggregator:
    return rule._replace(aggregate=jax.jit(rule.aggregate))


class Case:
    """One tag on one file: our rule for it, and its calls."""

    def __init__(self, name: str, tag: Tag, arrays: Arrays):
        self.name, self.tag, self.arrays = name, tag, arrays
        self.layout = layout_of(arrays, tag.buffers)
        made = None if tag.rule is None else _jitted(tag.rule(arrays, self.layout, name))
        self.rule = made or _rule(tag.name, **tag.options)

    def aggregate(self, upload: Upload, old_stats: Any, state: Any) -> Aggregated:
        """One call of our rule."""
        if self.tag.prepare is not None:
            upload = self.tag.prepare(self.arrays, self.layout, self.name, upload)
        params, verdict, state = self.rule.aggregate(upload, state, root_key(0))
        stats = average_stats(upload, upload.participating, verdict, old_stats)
        evaluated, broadcast = (join(p, stats, self.layout) for p in (self.rule.evaluated(params, state), params))
        return Aggregated(evaluated, broadcast, params, stats, verdict, state)

    def first(self, absent_rows: bool = False) -> Aggregated:
        """The first call, from the recorded models."""
        upload = upload_of(self.arrays, self.layout, absent_rows)
        state = self.rule.init(upload.global_params, len(self.arrays["client_state"]))
        if self.tag.state is not None:
            state = self.tag.state(self.arrays, self.layout, self.name, state)
        return self.aggregate(upload, split(self.arrays["global_state"], self.layout)[1], state)

    def has_second(self) -> bool:
        """Whether there is a second call to compare; the large files hold only the first."""
        return self.tag.second_round and "client_state_round2" in self.arrays

    def second(self, first: Aggregated) -> Aggregated:
        """The second call: from our own model and state after the first."""
        upload = upload_of(self.arrays, self.layout, second=True)._replace(global_params=first.params)
        return self.aggregate(upload, first.stats, first.state)


@kind(r"spmc_server_(toy|cnn)_.*")
def server_rules(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Every tag of a file: compared, or skipped with the reason."""
    known = tags.merged()
    found = dict.fromkeys(name.split("__")[0] for name in arrays if "__" in name)
    for name in found:
        if name in known:
            try:
                yield check(Case(name, known[name], arrays), source)
            except Exception as error:  # one row must not cost the others of the file
                yield failed(f"server {name}", source, reason_of(error, named=True))
    unknown = [name for name in found if name not in known]
    if unknown:
        yield skipped("server rules", source, f"no rule of ours yet for {', '.join(unknown)}")


def check(case: Case, source: str) -> Outcome:
    """The row of one case."""
    reason = case.tag.skip(case.arrays, source) if case.tag.skip is not None else ""
    if not reason and case.tag.buffers:
        reason = unequal_counters(case.arrays, case.layout)
    fault = reference_fault(case.arrays, case.name)
    if reason or fault:
        return _skip(case, source, fault or reason)
    return _compare(case, source)


def reference_fault(arrays: Arrays, tag: str) -> str:
    """Why the reference itself fails on a case, or "": it raised, or every number that it gave is NaN."""
    if f"{tag}__error" in arrays:
        return f"the reference raises {str(arrays[f'{tag}__error'])[:80]}"
    outputs = [arrays[name] for name in arrays if name.startswith(f"{tag}__global") or name == f"{tag}__weights"]
    # A few NaN among numbers are no failure of the reference but a damaged file: they are compared, and fail.
    return "the reference gives NaN" if outputs and all(np.isnan(one).all() for one in outputs) else ""


def _skip(case: Case, source: str, reason: str) -> Outcome:
    """The row of a case that cannot be compared: ours must be finite all the same, or raise with a reason."""
    name = f"server {case.name}"
    try:
        first = case.first()
        models = [first, case.second(first)] if case.has_second() else [first]
    except ValueError as error:
        return skipped(name, source, f"{reason}; ours raises ValueError: {error}")
    if not all(np.isfinite(one.evaluated).all() for one in models):
        return Outcome(name, source, 1, float("inf"), None, "failed", f"{reason}; ours is not finite either")
    return skipped(name, source, f"{reason}; ours is finite")


def _compare(case: Case, source: str) -> Outcome:
    comparison = Comparison(f"server {case.name}")
    arrays, tag, layout = case.arrays, case.name, case.layout
    first = case.first()
    # A counter that is a leaf's neighbour is nobody's; elsewhere the reference truncates it.
    slack = np.where(layout.counters, np.inf if case.tag.buffers else 1.0, 0.0)
    _add_model(comparison, case, first, slack)
    _add_weights(comparison, case, first.verdict, "")
    if case.tag.compare is not None:
        case.tag.compare(comparison, arrays, layout, tag, first.evaluated, first.verdict)
    if case.has_second():
        second = case.second(first)
        comparison.add("global_round2", second.evaluated, arrays[f"{tag}__global_round2"], slack)
        _add_weights(comparison, case, second.verdict, "_round2")
    if len(arrays["online_clients"]) < len(arrays["client_state"]):
        beside = case.first(absent_rows=True)
        comparison.add("the same beside absent rows", beside.evaluated, first.evaluated, slack)
    return comparison.outcome(source)


def _add_model(comparison: Comparison, case: Case, ours: Aggregated, slack: np.ndarray) -> None:
    """The files hold different forms of the new model; every form that is there is compared, and one must be."""
    arrays, tag = case.arrays, case.name
    stride = int(arrays["sample_stride"]) if "sample_stride" in arrays else 1
    full = ours.evaluated.astype(np.float64)
    forms = {
        "global": (full, slack),
        "global_sample": (full[::stride], slack[::stride]),
        "global_norm_and_sum": (np.array([np.linalg.norm(full), full.sum()]), 0.0),
        "client0_after": (ours.broadcast, slack),
        "client0_after_sample": (ours.broadcast[::stride], slack[::stride]),
    }
    present = [name for name in forms if f"{tag}__{name}" in arrays]
    if "global" not in present and "global_sample" not in present:
        raise KeyError(f"array '{tag}__global' is missing")
    for name in present:
        if name != "global_norm_and_sum" or case.tag.norm_and_sum:
            comparison.add(name, forms[name][0], arrays[f"{tag}__{name}"], forms[name][1])


def _add_weights(comparison: Comparison, case: Case, verdict: Verdict, suffix: str) -> None:
    """The weights returned, and those of the final average, which name their clients."""
    arrays, tag = case.arrays, case.name
    if not case.tag.weights:
        return
    weights = np.asarray(verdict.weights)
    if f"{tag}__weights{suffix}" in arrays:
        comparison.add(f"weights{suffix}", weights, arrays[f"{tag}__weights{suffix}"])
    if f"{tag}__aggregated_weights{suffix}" in arrays:
        recorded = arrays[f"{tag}__aggregated_weights{suffix}"]
        online = np.asarray(arrays[f"online_clients{suffix}"])
        if len(recorded) < len(online):
            by_id = np.zeros(len(arrays["client_state"]))
            np.add.at(by_id, np.asarray(arrays[f"{tag}__aggregated_ids{suffix}"]), recorded)
            recorded = by_id[online]
        comparison.add(f"aggregated_weights{suffix}", weights, recorded)
