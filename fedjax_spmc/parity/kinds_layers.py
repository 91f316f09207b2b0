"""Layer-wise poisoning against `attacks_lp`: which layers are critical, what a simulated Krum lets through, the upload.

The files' triggers are the attacker's input, not its work: of them the one for CIFAR-10 is compared.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc.attacks import _layers, triggers
from fedjax_spmc.attacks._success import backdoor_of
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.parity.recorded_nets import below, named, small_net, stacked, variables_of
from fedjax_spmc.types import Array, AttackContext, Batch, Model, Variables

TARGET, SIDE = 5, 5
ROW, COLUMN = 2, 3
"""Where the square begins."""
PERCENT = 1e-4
"""Tolerance of a success in percent; a hit more or less among 1000 examples is 0.1."""
BRIGHTEST = "no trigger here depends on the image's largest value; how many rows are poisoned is a number here"


def square(shape: tuple[int, ...]) -> triggers.Trigger:
    """The white square on normalised images [H, W, C], as `badnets` makes it of pixels."""
    pixels = tuple((c, ROW + i, COLUMN + j) for c in range(shape[-1]) for i in range(SIDE) for j in range(SIDE))
    return triggers.chosen("spmc_code", pixels, 1.0, "normalized", shape)


def context_of(model: Model) -> AttackContext:
    """What the attacker tests with."""
    trigger = square(model.input.shape)

    def backdoor(batch: Batch) -> Batch:
        wanted = jnp.full_like(batch.labels, TARGET)
        return batch._replace(inputs=triggers.stamp(batch.inputs, trigger), labels=wanted)

    return AttackContext(model=model, backdoor=backdoor)


def batch_of(images: np.ndarray, labels: Any) -> Batch:
    """All examples as one batch."""
    count = len(images)
    return Batch(
        jnp.asarray(channels_last(images)),
        jnp.asarray(labels, jnp.int32),
        jnp.arange(count, dtype=jnp.int32),
        jnp.ones(count, bool),
    )


def names_of(order: np.ndarray, ranks: Any, length: Any) -> np.ndarray:
    """The names of a list of layers, in its order."""
    return order[np.argsort(np.asarray(ranks))][: int(length)]


def critical(found: Mapping[str, np.ndarray], title: str) -> Iterator[Comparison]:
    """A case: analysis, shortening, the search of the scale, the upload."""
    start = below(found, "global")
    model = small_net(start, channels_last(found["x"]).shape[1:])
    ctx, batch = context_of(model), batch_of(found["x"], found["y"])
    broadcast, benign, malicious = (variables_of(model, below(found, name)) for name in ("global", "benign", "bad"))
    recorded = below(found, "clients")
    count = len(next(iter(recorded.values())))
    others = stacked(model, [{name: array[i] for name, array in recorded.items()} for i in range(count)])
    scale = float(found["scale"])

    @jax.jit
    def run() -> dict[str, Any]:
        def tested(variables: Variables) -> Array:
            return backdoor_of(ctx, variables, lambda number: batch, 1, root_key(0))[1]

        change, success = _layers.changes(tested, malicious, benign)
        ranks = _layers.ranks_of(change)
        lengths = {
            name: _layers.enough(tested, ranks, malicious, benign, float(found[tau]) * success)
            for name, tau in (("layers", "tau"), ("start", "mode10_tau"))
        }
        center = jax.tree.map(lambda rows: rows.mean(axis=0), others)
        mask = jnp.ones(count, bool)
        accepted = _layers.taken_by("krum", others, mask, broadcast.params, 1, int(found["f"]))

        def made(length: Array, strength: Array | float) -> Variables:
            return _layers.crafted(broadcast.params, malicious.params, center, ranks < length, strength)

        def let_through(length: Array) -> Array:
            return accepted(made(length, 1.0))

        total = len(ranks)
        lengths["picked"] = _layers.shrunk(let_through, lengths["start"], total, "reference")
        lengths["grown"] = _layers.shrunk(let_through, jnp.int32(0), total, "grow")
        lam = _layers.searched_scale(lambda strength: accepted(made(lengths["start"], strength)))
        sent = made(lengths["picked"], scale)
        return {"change": change, "bsr_bad": success, "ranks": ranks, "lengths": lengths, "lam": lam, "sent": sent}

    ours = run()
    order = np.asarray(list(named(broadcast.params)))
    successes, lists, upload = Comparison(title, PERCENT), Comparison(f"{title}, lists"), Comparison(f"{title}, upload")
    successes.add("bsr_bad", ours["bsr_bad"], found["bsr_bad"])
    places = [list(order).index(name) for name in found["keys"]]
    successes.add("change", np.asarray(ours["change"])[places], found["change"])
    for name, length in ours["lengths"].items():
        lists.add(name, names_of(order, ours["ranks"], length), found[name])
    lists.add("lam", ours["lam"], found["lam"])
    sent = ours["sent"]
    for name, value in (named(sent.params) | named(sent.stats)).items():
        upload.add(f"crafted/{name}", value, found[f"crafted/{name}"])
    yield from (successes, lists, upload)


def stamps(found: Mapping[str, np.ndarray], source: str) -> Iterator[Outcome]:
    """The trigger for CIFAR-10 on one picture."""
    comparison, picture = Comparison("lp stamp"), channels_last(found["input"])
    ours = triggers.stamp(jnp.asarray(picture)[None], square(picture.shape))[0]
    comparison.add("square_cifar", ours, channels_last(found["square_cifar"]))
    yield comparison.outcome(source)
    yield skipped("lp stamp, others", source, BRIGHTEST)


@kind(r"attacks_lp.*")
def layer_wise(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Every case of a file."""
    for case in dict.fromkeys(name.split("/")[0] for name in arrays):
        found = below(arrays, case)
        if case == "stamp":
            yield from stamps(found, source)
            continue
        for comparison in critical(found, f"lp {case}"):
            yield comparison.outcome(source)
