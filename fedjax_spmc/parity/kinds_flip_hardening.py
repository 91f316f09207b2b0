"""FLIP's schedule against `flip_hardening`: batch by batch, with the recorded draws and the canned triggers."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import local_rules, training
from fedjax_spmc.flip.inversion import Triggers
from fedjax_spmc.flip.memory import Memory, PairDraws, empty
from fedjax_spmc.flip.options import Options
from fedjax_spmc.flip.searching import Own, universal_samples
from fedjax_spmc.flip.sequential import BOTH_WAYS, NOTHING, ONE_WAY, UNIVERSAL, Client, Draws, Event, one_batch, start
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.parity.recorded_nets import below
from fedjax_spmc.types import Array, Batch, ClientData, Context, Model, Params, PRNGKey, Stats, Variables

EXACT, SCORES, WEIGHTS, SUMS = 0.0, 1e-4, 1e-6, 1e-2
CLASSES = 10
CODE = Options(schedule="reference", pair_key="reference", rollback_other=True, margin=0.0)


class Family(NamedTuple):
    """What one of the code's modules sets: batch size, the model's learning rate, the client's options."""

    batch_size: int
    learning_rate: float
    options: Options


FAMILIES = {
    "mnist": Family(64, 0.01, CODE._replace(universal_steps=400, pair_steps=200, short_steps=50, size_limit=98.0)),
    "fmnist": Family(
        128,
        0.01,
        CODE._replace(universal_steps=600, pair_steps=400, short_steps=100, fraction=0.6, size_limit=98.0),
    ),
    "cifar": Family(
        128,
        0.001,
        CODE._replace(
            universal_steps=600,
            pair_steps=200,
            short_steps=50,
            shorten_one_way=True,
            more_than=5,
            universal_samples=5,
            fraction=0.9,
            threshold=0.85,
            size_limit=768.0,
        ),
    ),
}
NAMES = {NOTHING: "", UNIVERSAL: "warm", BOTH_WAYS: "sym", ONE_WAY: "asym"}


def linear_model(shape: tuple[int, ...]) -> Model:
    """The files' network: one linear layer over the channel-major pixels."""

    def apply(params: Params, stats: Stats, inputs: Array, train: bool, key: Any, valid: Any = None) -> Any:
        del train, key, valid
        flat = inputs.transpose(0, 3, 1, 2).reshape(len(inputs), -1)
        return flat @ params["weight"].T + params["bias"][None], stats

    def init(key: PRNGKey) -> Variables:
        raise NotImplementedError  # weights are recorded

    return Model(init, apply, (("weight",), ("bias",)), CLASSES, jax.ShapeDtypeStruct(shape, jnp.float32))


class Given(NamedTuple):
    """What a batch is given of the file.

    Attributes:
        batch: padded.
        draws: that lead to the recorded choices.
        triggers: the canned ones.
    """

    batch: Batch
    draws: Draws
    triggers: Triggers


def given(found: Mapping[str, np.ndarray], call: Mapping[str, np.ndarray], events: Any, index: int, size: int) -> Given:
    """Of one event. Among equal gains, which of them the code takes first is its sort's business: the recorded one."""
    event = events[index]
    rows = np.asarray(event["batch_idx"], np.int32)
    missing = size - len(rows)
    inputs = np.pad(channels_last(found["X"])[rows], ((0, missing), (0, 0), (0, 0), (0, 0)))
    labels = np.pad(np.asarray(found["Y"])[rows], (0, missing), constant_values=-1)
    valid = np.arange(size) < len(rows)
    batch = Batch(jnp.asarray(inputs), jnp.asarray(labels, jnp.int32), jnp.zeros(size, jnp.int32), jnp.asarray(valid))
    rand, choices = list(event.get("rand", [])), list(event.get("choices", []))
    source, target, tie = np.zeros(CLASSES), np.zeros(CLASSES), np.zeros((CLASSES, CLASSES))
    if rand and rand[0] < CODE.random_pair:
        source[np.ravel(choices.pop(0))[0]] = 1
        target[np.ravel(choices.pop(0))[0]] = 1
    elif rand and "source" in event:
        tie[event["source"], event["target"]] = 1
    stamps = np.ones((2, size))
    for way, picked in enumerate(choices):
        stamps[way, np.asarray(picked, int)] = 0
    numbers = (jnp.asarray(x, jnp.float32) for x in (rand[0] if rand else 1.0, source, target, tie))
    canned = Triggers(
        jnp.asarray(call["mask"][index][:, 0], jnp.float32), jnp.asarray(channels_last(call["pattern"][index]))
    )
    return Given(batch, Draws(PairDraws(*numbers), jnp.asarray(stamps, jnp.float32)), canned)


def player(family: Family, shape: tuple[int, ...]) -> Any:
    """One batch of a client, compiled: (client, carry, given, step, first visit, classes) -> the same behind it."""
    model = linear_model(shape)
    hyper = {"learning_rate": family.learning_rate, "momentum": 0.5, "beta2": 0.9, "weight_decay": 0.0}
    rule = local_rules.make("sgd")

    def trainer(variables: Variables, batch: Batch) -> Any:
        ctx = Context(model, variables, variables, hyper, 1, jnp.int32(0))
        data = ClientData(lambda step, key: batch, jnp.int32(1), jnp.int32(0))
        return training.step_of_sgd(rule, ctx, variables, (), data, root_key(0), training.Hooks())

    @jax.jit
    def play(client: Client, carry: Any, of: Given, step: Array, first: Array, mine: Array) -> Any:
        after, made, event = one_batch(
            family.options, shape, first, mine, client, of.batch, step, of.draws, lambda search, batch: of.triggers
        )
        moved = trainer(Variables(carry[0], {}), made)[0](step, carry)
        carry = jax.tree.map(lambda new, old: jnp.where(event.trained, new, old), moved, carry)
        return after, carry, made, event

    def fresh(params: Params) -> Any:
        like = Batch(jnp.zeros((1, *shape)), jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
        return trainer(Variables(params, {}), like)[1]

    return play, fresh


@kind(r"flip_hardening.*")
def schedules(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """All calls of all families."""
    for name in dict.fromkeys(one.split("/")[0] for one in arrays):
        found = below(arrays, name)
        if name not in FAMILIES:
            yield skipped(f"hardening {name}", source, "a module of another name than those of FLIP's code")
            continue
        family, shape = FAMILIES[name], channels_last(found["X"]).shape[1:]
        play = player(family, shape)
        memory = empty(CLASSES, shape, family.options)
        params = {"weight": jnp.asarray(found["fc_w0"]), "bias": jnp.asarray(found["fc_b0"])}
        for call in sorted({one.split("/")[0] for one in found if one.startswith("call")}):
            of = below(found, call)  # it goes on with the weights of the call before
            memory, params, compared = of_call(found, of, family, play, memory, params, f"hardening {name} {call}")
            yield from (one.outcome(source) for one in compared)


def of_call(
    found: Mapping[str, np.ndarray],
    call: Mapping[str, np.ndarray],
    family: Family,
    play: Any,
    memory: Memory,
    params: Params,
    title: str,
) -> tuple[Memory, Params, list[Comparison]]:
    """One call for a client: memory and weights behind it, and what was compared."""
    events = json.loads(str(call["events_json"]))
    exact, scores = Comparison(f"{title}, events", EXACT), Comparison(f"{title}, scores", SCORES)
    weights, sums = Comparison(f"{title}, weights", WEIGHTS), Comparison(f"{title}, stamped batches", SUMS)
    shape = channels_last(found["X"]).shape[1:]
    one, fresh = play
    client, carry = start(memory, shape), fresh(params)
    inputs, labels = jnp.asarray(channels_last(found["X"])), jnp.asarray(found["Y"], jnp.int32)
    own = Own(labels, jnp.bincount(labels, length=CLASSES), lambda at: inputs[at])
    mine = own.counts > 0
    order = np.concatenate([np.asarray(row) for row in call["perms"]])
    taken = 0
    for index, event in enumerate(events):
        rows = np.asarray(event["batch_idx"])
        exact.add(f"order of batch {index}", rows, order[taken : taken + len(rows)])
        taken += len(rows)
        of = given(found, call, events, index, family.batch_size)
        client, carry, made, ours = one(client, carry, of, jnp.int32(index), ~memory.visited, mine)
        compare_event(exact, event, ours, of.batch, index)
        if event.get("kind") == NAMES[UNIVERSAL]:
            searched = universal_samples(family.options, own, jnp.asarray([event["target"]], jnp.int32))
            exact.add(f"n_x {index}", int(searched.share.sum()), event["n_x"])
        compare_memory(exact, sums, event, client.memory, index)
        for name, seen, theirs in (
            ("warm", client.memory.warm, call["mat_warm"]),
            ("diff", client.memory.gain, call["mat_diff"]),
        ):
            scale = np.maximum(np.abs(bounded(theirs[index])), 1)  # sizes of 36,000 have no more digits in float32
            scores.add(f"mat_{name} {index}", bounded(seen) / scale, bounded(theirs[index]) / scale)
        if event.get("xadv_sum") is not None:
            total = np.asarray(made.inputs, np.float64)[: len(rows)].sum()
            sums.add(f"sum of batch {index}", total, event["xadv_sum"])
        for what in ("warm", "sym", "asym"):
            if f"example_{what}/event" in call and int(call[f"example_{what}/event"]) == index:
                theirs = channels_last(call[f"example_{what}/x_adv"])
                sums.add(f"batch {index}", np.asarray(made.inputs)[: len(rows)], theirs)
    weights.add("fc_w", carry[0]["weight"], call["fc_w"])
    weights.add("fc_b", carry[0]["bias"], call["fc_b"])
    return client.memory, carry[0], [exact, scores, sums, weights]


def compare_event(exact: Comparison, event: Mapping[str, Any], ours: Event, clean: Batch, index: int) -> None:
    """What the batch was used for."""
    search, labels = ours.search, np.asarray(clean.labels)
    kind_of = int(search.kind)
    exact.add(f"kind {index}", NAMES[kind_of], event.get("kind", ""))
    exact.add(f"trained {index}", bool(ours.trained), bool(event.get("trained", False)))
    exact.add(f"skipped {index}", bool(ours.oversized), bool(event.get("skipped", False)))
    if kind_of == NOTHING:
        return
    known = np.asarray(search.begun.known)
    of_source, of_target = ((labels == int(one)).sum() for one in (search.source, search.target))
    ours_of = {
        "source": int(search.source),
        "target": int(search.target),
        "steps": int(search.steps),
        "cost": round(float(search.cost), 9),
        "init_ndim": (4 if known.all() else 0) if kind_of == BOTH_WAYS else 3 if known[0] else 0,
    }
    if kind_of != UNIVERSAL:
        ours_of["n_x"] = int(of_source + of_target) if kind_of == BOTH_WAYS else int(of_source)
    if kind_of == BOTH_WAYS:
        ours_of["n_src"] = int(of_source)
    for name, value in ours_of.items():
        exact.add(f"{name} {index}", value, event[name])
    if not bool(ours.trained):
        return
    picked = list(event.get("choices", []))
    picked = picked[-2:] if kind_of == BOTH_WAYS else picked[-1:]
    for way, rows in zip((ours.first, ours.second), picked, strict=False):
        exact.add(f"stamped {index}", np.flatnonzero(way), np.sort(np.asarray(rows)))


def compare_memory(exact: Comparison, sums: Comparison, event: Mapping[str, Any], memory: Memory, index: int) -> None:
    """Which pairs have one or two triggers, and the sums of their masks."""
    recorded = event.get("mask_keys") or []
    if not recorded:
        return
    has, sizes = (np.asarray(x).reshape(CLASSES, CLASSES) for x in (memory.has, memory.triggers.sizes()))
    ours = {
        f"{low}-{high}": (3 + int(has[high, low]), sizes[low, high] + sizes[high, low] * has[high, low])
        for low in range(CLASSES)
        for high in range(low + 1, CLASSES)
        if has[low, high]
    }
    theirs = {name: (ndim, total) for name, ndim, total in recorded}
    exact.add(f"pairs with a trigger {index}", np.array(sorted(ours)), np.array(sorted(theirs)))
    for name in ours.keys() & theirs.keys():
        exact.add(f"triggers of {name} {index}", ours[name][0], theirs[name][0])
        sums.add(f"mask of {name} {index}", ours[name][1], theirs[name][1])


def bounded(scores: Any) -> np.ndarray:
    """With -1e9 for no gain yet."""
    scores = np.asarray(scores, np.float64)
    return np.where(np.isinf(scores), -1e9, scores)
