"""What the benchmarks share: the rounds of one experiment as `python -m fedjax_spmc.run` plays them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_spmc import devices, setup
from fedjax_spmc.data import Dataset
from fedjax_spmc.experiment import build
from fedjax_spmc.rounds import make_program, make_round


def rounds(config: Any, dataset: Dataset | None = None) -> tuple[Callable[[], int], setup.Experiment]:
    """A function that plays the next round, on all devices, and returns the client-steps taken; and the experiment.

    Args:
        config: resolved.
        dataset: the config's, where it was read already.
    """
    experiment = build(config, dataset)
    used = devices.devices_for_round(config.federation.clients_per_round, None)
    program = make_program(experiment.federation, used, owned=True)
    play = make_round(experiment.federation, experiment.arrays, experiment.sizes, used, program)
    state = experiment.state

    def run() -> int:
        nonlocal state
        state, report = jax.block_until_ready(play(state, experiment.key))
        return int(np.sum(report.steps))

    return run, experiment
