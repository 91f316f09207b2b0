"""Tags of the rules that hold clean data on the server, and of FedCPA and Multi-Metrics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, models
from fedjax_spmc.aggregators.fedcpa import multipliers
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import Arrays, Comparison
from fedjax_spmc.parity.kinds_small import channels_last
from fedjax_spmc.parity.layout import Layout, join, split, upload_of
from fedjax_spmc.parity.tags import Tag
from fedjax_spmc.parity.tags_spmc import exponents
from fedjax_spmc.types import Aggregator, Model, ServerData, Verdict


def validation(arrays: Arrays) -> ServerData:
    """The recorded validation batches, taken in their order in every epoch."""
    images, labels = arrays["validation_images"], arrays["validation_labels"]
    flat = channels_last(images.reshape(-1, *images.shape[2:]))
    return ServerData(
        model=tuple_model(models.make("simple_cnn")),
        inputs=jnp.asarray(flat, jnp.float32),
        labels=jnp.asarray(labels.reshape(-1), jnp.int32),
        batch_size=labels.shape[1],
        shuffle=False,
    )


def tuple_model(model: Model) -> Model:
    """The same network on parameters that are a tuple in torch's order."""
    structure = jax.tree.structure(jax.eval_shape(model.init, root_key(0)).params)

    def apply(params: Any, *rest: Any) -> Any:
        return model.apply(jax.tree.unflatten(structure, jax.tree.leaves(params)), *rest)

    return model._replace(apply=apply)


def with_server(name: str, **options: Any) -> Tag:
    """A tag of a rule that is given the recorded validation batches."""

    def rule(arrays: Arrays, layout: Layout, tag: str) -> Aggregator:
        del layout, tag
        return aggregators.make(name, variant="reference", server=validation(arrays), **options)

    return Tag(name, {"variant": "reference", **options}, rule=rule)


def offline(arrays: Arrays, source: str) -> str:
    """Why FedCPA cannot be compared under partial participation, and where its numbers are NaN."""
    del source
    if len(arrays["online_clients"]) < len(arrays["client_state"]):
        return "the reference scores the models of absent clients too, which no upload holds"
    if np.isnan(arrays["FedCPA__client_multipliers"]).all():
        return "the reference's multipliers are NaN, as all uploads are alike"
    return ""


def discarded(
    comparison: Comparison, arrays: Arrays, layout: Layout, tag: str, ours: np.ndarray, verdict: Verdict
) -> None:
    """Compares FedCPA's scores, multipliers and the model that it throws away."""
    del ours
    online = np.asarray(arrays["online_clients"])
    scores = -verdict.scores
    factors = multipliers(scores, jnp.ones(len(online), bool))
    # The file lists scores and multipliers by client id.
    comparison.add("total_score", np.asarray(scores)[np.argsort(online)], arrays[f"{tag}__total_score"])
    comparison.add("client_multipliers", np.asarray(factors)[np.argsort(online)], arrays[f"{tag}__client_multipliers"])
    if f"{tag}__discarded_model" in arrays:
        rule = aggregators.make("fedcpa", variant="reference", install=True)
        params, _, _ = jax.jit(rule.aggregate)(upload_of(arrays, layout), (), root_key(0))
        model = join(params, split(arrays["global_state"], layout)[1], layout)
        slack = np.where(layout.counters, np.inf, 0.0)
        comparison.add("discarded_model", model, arrays[f"{tag}__discarded_model"], slack)


TAGS: dict[str, Tag] = {
    "SageFlow": with_server("sageflow"),
    "SageFlow_eth3": with_server("sageflow", threshold=3.0),
    "FLTrust": with_server("fltrust"),
    "FLTrust_epoch1": with_server("fltrust", root_epochs=1),
    "Finetuning": with_server("finetuning"),
    "FTSAM": with_server("ft_sam"),
    "FedCPA": Tag("fedcpa", {"variant": "reference"}, buffers=True, skip=offline, compare=discarded),
    # Line for line the rule SPMD.
    "MultiMetric": Tag("multi_metrics", {"variant": "reference"}, compare=exponents),
}
