"""Milliseconds per call of every aggregator, and of a plain NumPy statement of it beside it.

    python experiments/bench/bench_aggregators.py [--rules=median,krum] [--sizes=10,100,1000] [--repeats=5] [--json]

The uploads are SimpleCNN-sized (92,626 numbers each; --tiny takes 482). Ours are compiled, with all that the package
does around a rule: the guard, the verdict, any pytree. At K = 100 (--peer-size) the plain statement of
`plain_rules.py` runs in turn with ours in one process; the medians are compared, and `gap` is the largest difference
between the two models. `temp MB` is what the compiled program holds beside its input (K x D numbers) and output, as the
compiler reports it. A size is left out where one call is expected to take more than --limit seconds.
Rules that train or evaluate on the server (256 images, batches of 64, one epoch) have no plain statement.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import plain_rules

from fedjax_spmc import aggregators, models, registry, trees
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.keys import root_key
from fedjax_spmc.options import Option, Range
from fedjax_spmc.types import Aggregator, Model, Params, ServerData, Upload


class Row(NamedTuple):
    """One measurement; times in milliseconds."""

    rule: str
    clients: int
    ms: float
    temp_mb: float
    plain_ms: float | None = None
    ratio: float | None = None
    gap: float | None = None


def make_model(tiny: bool) -> Model:
    if tiny:
        return models.make("mlp", hidden=(8,), image_shape=(4, 4, 3))
    return models.make("simple_cnn")


def make_upload(model: Model, num_clients: int) -> Upload:
    """Clients around a common step, as far apart as after a round of local training; a tenth of them far off."""
    rng = np.random.default_rng(0)
    params = model.init(root_key(0)).params
    common = jax.tree.map(lambda x: 0.01 * rng.standard_normal(x.shape, np.float32), params)
    factor = np.where(np.arange(num_clients) % 10 == 9, 5.0, 1.0).astype(np.float32)

    def rows(leaf: Any, step: Any) -> Any:
        noise = 0.01 * rng.standard_normal((num_clients, *leaf.shape), np.float32)
        moved = trees.column(jnp.asarray(factor), jnp.asarray(noise)) * (step[None] + noise)
        return leaf[None] + moved

    return Upload(
        global_params=params,
        client_params=jax.tree.map(rows, params, common),
        num_examples=jnp.asarray(rng.integers(100, 1000, num_clients), jnp.float32),
        participating=jnp.ones(num_clients, bool),
        client_ids=jnp.arange(num_clients, dtype=jnp.int32),
        steps=jnp.full(num_clients, 10, jnp.int32),
    )


def make_rule(name: str, model: Model) -> Aggregator:
    if registry.aggregators.needs(name, "network"):
        return aggregators.make(name, network=model)
    if not registry.aggregators.needs(name, "server"):
        return aggregators.make(name)
    images = jax.random.normal(root_key(1), (256, *model.input.shape))
    labels = jnp.arange(256, dtype=jnp.int32) % model.num_classes
    return aggregators.make(name, server=ServerData(model, images, labels, 64, epochs=1))


def compiled(name: str, model: Model, upload: Upload) -> tuple[Callable[[], Params], float]:
    """A function that calls the rule once, and the megabytes of its temporaries."""
    rule = make_rule(name, model)
    state = rule.init(upload.global_params, len(upload.participating))
    key = root_key(0)
    program = jax.jit(rule.aggregate).lower(upload, state, key).compile()
    analysis = program.memory_analysis()
    return lambda: jax.block_until_ready(program(upload, state, key))[0], analysis.temp_size_in_bytes / 2**20


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return (time.perf_counter() - start) * 1e3, result


def measure(name: str, model: Model, upload: Upload, repeats: int, with_peer: bool) -> Row:
    """Medians over the repeats; the first call of each is not counted."""
    num_clients = len(upload.participating)
    ours, temp = compiled(name, model, upload)
    plain = plain_rules.RULES.get(name) if with_peer else None
    flat = np.asarray(trees.ravel_clients(trees.broadcast(upload.global_params, 1)))[0]
    stacked = np.asarray(trees.ravel_clients(upload.client_params)) if plain else np.zeros(0)
    sizes = np.asarray(upload.num_examples)
    mine: list[float] = []
    theirs: list[float] = []
    gap = None
    for repeat in range(repeats + 1):
        took, model_of_ours = timed(ours)
        if repeat:
            mine.append(took)
        if plain is not None:
            took, model_of_theirs = timed(lambda: plain(flat, stacked, sizes))
            if repeat:
                theirs.append(took)
            elif name not in plain_rules.NOT_THE_SAME:
                ravelled = np.concatenate([np.ravel(x) for x in jax.tree.leaves(model_of_ours)])
                gap = float(np.abs(ravelled - model_of_theirs).max())
    ms = statistics.median(mine)
    peer = statistics.median(theirs) if theirs else None
    return Row(name, num_clients, ms, temp, peer, None if peer is None else ms / peer, gap)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--rules", tuple, aggregators.names(), choices=aggregators.names), "NAME,...", "which rules")
    parser.flag(Option("--sizes", tuple, (10, 100, 1000), items=int), "N,...", "numbers of clients")
    parser.flag(
        Option("--peer-size", int, 100, range=Range(1, 10**9)), "N", "number of clients beside the plain statement"
    )
    parser.flag(Option("--repeats", int, 5, range=Range(1, 10**9)), "N", "counted repetitions")
    parser.flag(
        Option("--limit", float, 60.0, range=Range(0, 10**9)),
        "SECONDS",
        "seconds that one call may be expected to take",
    )
    parser.switch("--tiny", "482 numbers for each client, to see that all runs")
    parser.switch("--json", "prints one line of JSON for each row")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    sizes = sorted(flags["sizes"])
    model = make_model(flags["tiny"])
    expected: dict[str, float] = {}
    if not flags["json"]:
        print(f"{'rule':<14} {'K':>5} {'ms':>10} {'temp MB':>9} {'plain ms':>10} {'ratio':>6} {'gap':>9}")
    for size in sizes:
        upload = make_upload(model, size)
        for name in flags["rules"]:
            if expected.get(name, 0.0) > flags["limit"] * 1e3:
                print(f"{name:<14} {size:>5} left out: more than {flags['limit']:g} s expected", file=sys.stderr)
                continue
            row = measure(name, model, upload, flags["repeats"], size == flags["peer_size"])
            larger = [other for other in sizes if other > size]
            if larger:
                expected[name] = row.ms * (larger[0] / size) ** 2
            if flags["json"]:
                print(json.dumps(row._asdict()), flush=True)
            else:
                peer = "" if row.plain_ms is None else f"{row.plain_ms:10.2f} {row.ratio:6.2f}"
                gap = "" if row.gap is None else f"{row.gap:9.1e}"
                print(f"{name:<14} {size:>5} {row.ms:10.2f} {row.temp_mb:9.1f} {peer:>17} {gap:>9}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
