"""FDCR against its golden files: FINCH, Fisher estimates, whole server steps, the split trigger."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, clustering, fisher, models, trees
from fedjax_spmc.aggregators import fdcr
from fedjax_spmc.attacks import dba, triggers
from fedjax_spmc.config import make_config, resolve
from fedjax_spmc.data.pipeline import in_order
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import TOLERANCE, Arrays, Comparison, Outcome, kind
from fedjax_spmc.parity.kinds_small import EXACT, channels_last
from fedjax_spmc.registry import datasets
from fedjax_spmc.setup import roster
from fedjax_spmc.types import Array, Upload, Variables

ESTIMATES = {"F_persample": "per_sample", "F_repro": "batch", "F_supp": "authors"}
"""Prefix of the arrays -> kind of Fisher."""
BATCHES = {
    "b8_droplast": (8, True),
    "b8_uneven": (8, False),
    "b37_single": (37, False),
    "first32": (8, True),
    "all37": (8, False),
}
"""Tag of the arrays -> batch size, whether the incomplete last batch is dropped."""
SERVER_INPUTS = ("prev", "clients", "fisher", "sizes", "lr", "malicious", "leak", "randn")


def relative(ours: object, reference: np.ndarray) -> np.ndarray:
    """`reference` plus the gap to `ours` in units of the largest entry of `reference`."""
    reference = np.asarray(reference, np.float64)
    top = np.abs(reference).max(initial=0.0)
    return reference + (np.asarray(ours, np.float64) - reference) / (top if top > 0 else 1.0)


@kind(r"fdcr_finch.*")
def finch(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Labels of the first partition, exactly, and who is removed of scores."""
    comparison = Comparison("FINCH", EXACT)
    cluster = jax.jit(clustering.finch)
    for case in map(str, arrays["case_names"]):
        points = jnp.asarray(arrays[f"{case}__X"])
        labels = cluster(points)
        comparison.add(case, labels, arrays[f"{case}__labels0"])
        if f"{case}__flagged" in arrays:
            removed = fdcr.farthest(labels, points[:, 0], jnp.ones(len(points), bool))
            comparison.add(f"{case} flagged", np.flatnonzero(removed), arrays[f"{case}__flagged"])
    yield comparison.outcome(source)


@kind(r"fdcr_fisher.*")
def fishers(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Each estimate that the file holds, and the logits; errors relative to the largest entry."""
    model = models.make("simple_cnn", num_classes=arrays["logits"].shape[1])
    variables = Variables(models.from_torch(model, arrays["weights"]), {})
    images = jnp.asarray(channels_last(arrays["images"]))
    labels = jnp.asarray(arrays["labels"], jnp.int32)
    comparison = Comparison("Fisher", TOLERANCE)
    logits, _ = model.apply(variables.params, {}, images, False, root_key(0))
    comparison.add("logits", relative(logits, arrays["logits"]), arrays["logits"])
    for name in arrays:
        estimate, _, tag = name.partition("__")
        if estimate not in ESTIMATES or tag not in BATCHES:
            continue
        batch_size, drop_last = BATCHES[tag]
        ours = fisher.estimate(
            ESTIMATES[estimate], model, variables, in_order(images, labels, batch_size), drop_last=drop_last
        )
        comparison.add(name, relative(models.to_torch(ours), arrays[name]), arrays[name])
    yield comparison.outcome(source)


@kind(r"fdcr_server.*")
def server_steps(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """One row for each whole server step; where the leak is on with the recorded noise."""
    step = jax.jit(_server_step)
    for case in map(str, arrays["case_names"]):
        flagged, ours = step(server_upload({name: arrays[f"{case}__{name}"] for name in SERVER_INPUTS}))
        comparison = Comparison(f"FDCR server {case}", TOLERANCE)
        comparison.add("flagged", np.flatnonzero(flagged), arrays[f"{case}__flagged"])
        for name, value in ours.items():
            reference = arrays[f"{case}__{name}"]
            comparison.add(name, relative(value, reference), reference)
        yield comparison.outcome(source)


def _server_step(upload: Upload) -> tuple[Array, dict[str, Array]]:
    """Who is flagged, and what the file records of the step, by its names."""
    degrees = fdcr.min_max(upload.extras["fisher"])["flat"]
    weighted = fdcr.importance_weighted(upload, {"flat": degrees})
    alpha = fdcr.shares(upload, "size")
    model, verdict, _ = aggregators.make("fdcr").aggregate(upload, (), root_key(0))
    updates = upload.client_params["flat"] - upload.global_params["flat"][None]
    raised = fdcr.rescaled({"flat": updates}, {"flat": degrees})["flat"]
    kept = jnp.where(verdict.flagged[:, None] | ~verdict.flagged.any(), updates, raised)
    return verdict.flagged, {
        "alpha0": alpha,
        "I": degrees,
        "gI": weighted["flat"],
        "g_global": trees.weighted_mean(weighted, alpha)["flat"],
        "V": verdict.scores,
        "alpha": verdict.weights,
        "clients_rescaled": upload.global_params["flat"][None] + kept,
        "new_global": model["flat"],
    }


def server_upload(recorded: dict[str, np.ndarray]) -> Upload:
    """The upload of a recorded server step, all weights in one leaf; with the leak its noise is in the Fisher."""
    malicious = jnp.asarray(recorded["malicious"])
    given = {"flat": jnp.asarray(recorded["fisher"], jnp.float32)}
    if recorded["leak"]:
        noise = (
            jnp.zeros_like(given["flat"]).at[np.flatnonzero(malicious)].set(jnp.asarray(recorded["randn"], jnp.float32))
        )
        given = fdcr.leak(given, malicious, {"flat": noise})
    return Upload(
        global_params={"flat": jnp.asarray(recorded["prev"], jnp.float32)},
        client_params={"flat": jnp.asarray(recorded["clients"], jnp.float32)},
        num_examples=jnp.asarray(recorded["sizes"], jnp.float32),
        participating=jnp.ones(len(malicious), bool),
        learning_rate=jnp.float32(recorded["lr"]),
        extras={"fisher": given},
    )


@kind(r"fdcr_attack.*")
def attack_constants(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The trigger, its parts, who is malicious, and how images are normalised; all exact."""
    comparison = Comparison("FDCR attack", EXACT)
    preset = triggers.PRESETS["fdcr_code"]
    comparison.add("trigger_chw", preset.positions, arrays["trigger_chw"])
    comparison.add("trigger_value", np.full(len(preset.positions), preset.value), arrays["trigger_value"])
    config = resolve(make_config("fdcr,reference"))
    comparison.add("target_label", config.attack.target_label, arrays["target_label"])
    for name in arrays:
        if name.startswith("dba_slices_"):
            parts = int(name.removeprefix("dba_slices_"))
            ours = [[int(i) for i in dba.part(rank, parts, len(preset.positions))] for rank in range(parts)]
            comparison.add(name, ours, arrays[name])
        elif name.startswith("malicious_"):
            num_clients, percent = (int(word.removesuffix("pct")) for word in name.split("_")[1:])
            config.federation.num_clients, config.attack.malicious_fraction = num_clients, percent / 100
            comparison.add(name, np.flatnonzero(roster(config, root_key(0)).malicious), arrays[name])
    cifar, mnist = (datasets.make(name).info for name in ("cifar10", "fashion_mnist"))
    comparison.add("cifar_mean", cifar.mean, arrays["cifar_mean"])
    comparison.add("cifar_std_authors", cifar.std, arrays["cifar_std_authors"])
    comparison.add("mnist_fmnist_mean", set(mnist.mean).pop(), arrays["mnist_fmnist_mean"])
    comparison.add("mnist_fmnist_std", set(mnist.std).pop(), arrays["mnist_fmnist_std"])
    yield comparison.outcome(source)
