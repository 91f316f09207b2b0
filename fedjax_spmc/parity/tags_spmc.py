"""Tags of plain averaging and of the SPMC family."""

import jax
import numpy as np

from fedjax_spmc import trees
from fedjax_spmc.parity.comparison import Arrays, Comparison
from fedjax_spmc.parity.layout import Layout, join, upload_of
from fedjax_spmc.parity.tags import Tag
from fedjax_spmc.types import Verdict

_coalitions = jax.jit(trees.leave_one_out_mean)


def exponents(
    comparison: Comparison, arrays: Arrays, layout: Layout, tag: str, ours: np.ndarray, verdict: Verdict
) -> None:
    """Compares the arguments of the reference's exponential, and its coalition models where they are recorded."""
    del ours
    similarity = -np.asarray(verdict.scores, np.float64)
    shifts = {"SPMD_euc": 0.0, "SPMD_was": 0.0, "SPED": similarity.max()}
    shift = shifts.get(tag, similarity.max() - 1e-5)
    comparison.add("exp_argument", similarity - shift, arrays[f"{tag}__exp_argument"])
    recorded = [name for name in ("coalitions", "coalitions_sample") if f"{tag}__{name}" in arrays]
    if recorded:
        upload = upload_of(arrays, layout)
        rows = join(_coalitions(upload.client_params), _coalitions(upload.client_stats), layout, rows=True)
        for name in recorded:
            step = 1 if name == "coalitions" else int(arrays["sample_stride"])
            slack = np.where(layout.counters, 1.0, 0.0)[None, ::step]
            comparison.add(name, rows[:, ::step], arrays[f"{tag}__{name}"], slack)


# With buffers: those whose reference scores the whole state.
TAGS: dict[str, Tag] = {
    "Equal": Tag("mean", {"weights": "uniform"}),
    "Weight": Tag("mean", {"weights": "size"}),
    "SPMD": Tag("spmc", compare=exponents),
    "SPMD_euc": Tag("spmc", {"score": "euclidean"}, buffers=True, compare=exponents),
    "SPMD_was": Tag("spmc", {"score": "wasserstein"}, compare=exponents),
    "SPED": Tag("spmc", {"score": "chebyshev"}, buffers=True, compare=exponents),
}
