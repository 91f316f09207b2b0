"""SPMC's projection on given gradients against `spmc_projection_*`."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_spmc.local_rules.spmc import purify
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind
from fedjax_spmc.parity.kinds_local import hyper_of
from fedjax_spmc.training import optimizer

UNDERFLOW = 1e-25
"""Guidance below this underflows in the reference's float32 norms: its README calls such tensors informational."""


@kind(r"spmc_projection_.*")
def projections(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Single projections, or consecutive steps with momentum that go on from our own parameters."""
    comparison = Comparison("projection")
    names = [str(name) for name in arrays["tensor_names"]]
    update = optimizer(hyper_of(arrays["sgd_lr_momentum_wd"]))
    params: Any = {name: jnp.asarray(arrays[f"param_before/{name}"]) for name in names}
    moments = update.init(params)
    steps = sorted({name.split("/")[1] for name in arrays if name.startswith("task_gradient/step")}) or [""]
    for step in steps:
        middle = f"/{step}/" if step else "/"
        task, guide, projected, after = (
            {name: jnp.asarray(arrays[f"{what}{middle}{name}"]) for name in names}
            for what in ("task_gradient", "guidance_gradient", "projected_gradient", "param_after")
        )
        ours = purify(task, guide, float(arrays["lamda"]))
        updates, moments = update.update(ours, moments, params)
        params = optax.apply_updates(params, updates)
        largest = {name: float(np.abs(guide[name]).max()) for name in names}
        informational = [name for name in names if 0 < largest[name] < UNDERFLOW]
        for name in names:
            if name not in informational:
                comparison.add(f"projected {name} {step}", ours[name], projected[name])
                comparison.add(f"after {name} {step}", params[name], after[name])
        if not informational:
            changed = sum(not np.array_equal(ours[name], task[name]) for name in names)
            comparison.add(f"conflicts {step}", changed, arrays[f"conflicts/{step}" if step else "conflicts"])
    yield comparison.outcome(source)
