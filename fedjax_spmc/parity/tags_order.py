"""Tags of the rules that rest on medians, sorted values and distances between uploads."""

import jax.numpy as jnp
import numpy as np

from fedjax_spmc.aggregators.krum import PrivateModel
from fedjax_spmc.parity.comparison import Arrays
from fedjax_spmc.parity.layout import Layout, split
from fedjax_spmc.parity.tags import Tag

REFERENCE = {"variant": "reference"}


def recorded_start(arrays: Arrays, layout: Layout, tag: str, state: PrivateModel) -> PrivateModel:
    """The private model that the reference drew; where a file holds a sample of it, the other numbers are 0."""
    start = np.zeros(np.shape(arrays["global_state"]))
    if f"{tag}__server_initial_weights" in arrays:
        start = arrays[f"{tag}__server_initial_weights"]
    else:
        start[:: int(arrays["sample_stride"])] = arrays[f"{tag}__server_initial_weights_sample"]
    return state._replace(model=split(start, layout)[0], drawn=jnp.ones((), bool))


def scrambled(arrays: Arrays, source: str) -> str:
    """The reason to skip models with batch statistics."""
    del source
    if "tensor_is_parameter" not in arrays or np.asarray(arrays["tensor_is_parameter"]).all():
        return ""
    return "the reference pours a vector in state order into the parameters alone, which scrambles both"


def _krum(name: str) -> Tag:
    return Tag(
        name, REFERENCE, buffers=True, norm_and_sum=False, state=recorded_start, second_round=True, skip=scrambled
    )


TAGS: dict[str, Tag] = {
    "Krum": _krum("krum"),
    "MultiKrum": _krum("multi_krum"),
    "TrimmedMean": Tag("trimmed_mean", REFERENCE, buffers=True, weights=False, second_round=True),
    "Bulyan": Tag("bulyan", REFERENCE, buffers=True, second_round=True),
    "RFA": Tag("rfa", REFERENCE, buffers=True, weights=False),
}
