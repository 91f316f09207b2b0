"""The networks of FLIP's code against `flip_misc`: MnistNet's outputs, the names and sizes of the thin ResNet-18."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import models
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind
from fedjax_spmc.parity.kinds_small import channels_last

PROBABILITIES = 2e-6
"""Tolerance of log-probabilities."""


@kind(r"flip_misc.*")
def networks(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """What the file has of networks; `kinds_flip_misc` has the rest."""
    parts = dict.fromkeys(name.split("/")[0] for name in arrays)
    if "mnistnet" in parts:
        start = "mnistnet/param/"
        named = {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}
        images = channels_last(arrays["mnistnet/x"])
        model = models.make("mnist_net", num_classes=len(named["fc2.bias"]), image_shape=images.shape[1:])
        params, stats = models.from_torch_dict(model, named)
        logits, _ = jax.jit(lambda images: model.apply(params, stats, images, False))(jnp.asarray(images))
        comparison = Comparison("MnistNet", PROBABILITIES)
        comparison.add("logprob", jax.nn.log_softmax(logits), arrays["mnistnet/logprob"])
        yield comparison.outcome(source)
    if "resnet18" in parts:
        model = models.make("resnet18_thin")
        leaves = jax.tree.leaves(jax.eval_shape(model.init, root_key(0)).params)
        comparison = Comparison("thin ResNet-18, names and sizes", 0.0)
        ours = np.array([".".join(path) for path in model.param_order])
        comparison.add("param_names", ours, np.array([str(name) for name in arrays["resnet18/param_names"]]))
        comparison.add("param_sizes", [leaf.size for leaf in leaves], arrays["resnet18/param_sizes"])
        yield comparison.outcome(source)
