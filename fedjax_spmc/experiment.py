"""One experiment from config to result: the page to read.

    result = experiment.run(config)             # or run(config, "runs/mine") to keep it
    result = experiment.load("runs/mine")

data -> partition -> roster -> local rule -> attack -> aggregator -> rounds -> evaluation -> record. `setup.py` and
`parts.py` make these from the config, `federation.py` is the round, `record/` the run folder.
"""

import os
import time
from contextlib import closing
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import compiled, data, devices, numerics, parts, setup
from fedjax_spmc import config as configs
from fedjax_spmc.config.files import use_compilation_cache
from fedjax_spmc.data.pipeline import pad_indices
from fedjax_spmc.errors import DivergedError
from fedjax_spmc.evaluation import make_evaluate
from fedjax_spmc.federation import evaluated_model, with_stores
from fedjax_spmc.keys import root_key
from fedjax_spmc.models.flax_layers import slow_layers
from fedjax_spmc.record.lines import NONE_UNREPORTED, diverged_message, metrics_line, verdict_of
from fedjax_spmc.record.progress import Progress
from fedjax_spmc.record.recorder import NoRecorder, make_recorder
from fedjax_spmc.record.remarks import remarks_ahead
from fedjax_spmc.record.result import Result, load
from fedjax_spmc.record.resume import Snapshot
from fedjax_spmc.rounds import make_program, make_round
from fedjax_spmc.setup import Experiment
from fedjax_spmc.starting import start_model

__all__ = ["Result", "build", "load", "play", "run"]


def run(config: configs.Config, workdir: str | os.PathLike[str] | None = None, stream: TextIO | None = None) -> Result:
    """Runs an experiment, or goes on with the one in `workdir` from its last finished round.

    Args:
        config: a ConfigDict, as `get_config()` of a config file returns it.
        workdir: where to record; None keeps nothing on disk.
        stream: where progress is printed; None prints nothing.

    Raises:
        UserError: (a ValueError) the config, the data or the workdir cannot be used; one sentence says why.
        DivergedError: training stopped being finite; what was recorded until then is kept.
    """
    config = configs.resolve(config)
    progress = Progress(config.federation.rounds, stream)
    recorder = make_recorder(config, workdir, progress)
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        use_compilation_cache(config)
    with closing(progress), numerics.pinned(config.precision):
        progress.phase(f"reading data: {config.data.name}")
        return play(config, build(config), recorder, progress)


@numerics.pinned()
def build(config: configs.Config, dataset: data.Dataset | None = None) -> Experiment:
    """The experiment that a resolved config describes, before its first round.

    Args:
        config: resolved.
        dataset: the config's, where it was read already.

    Raises:
        UserError: the data cannot be read, or the config does not fit them.
    """
    dataset = setup.load_data(config) if dataset is None else dataset
    info, settings = dataset.info, setup.array_settings(config)
    parts.check_fits(config, info)
    parts.check_answers(config, dataset)
    key = root_key(config.seed)  # every draw folds it with what it is for
    shares = setup.divide(config, dataset)  # the partition: each client's examples
    roster = setup.roster(config, key)  # who is malicious, and when they attack
    task, model = parts.task_of(config, info), parts.model_of(config, info)
    rule = parts.local_rule_of(config, settings, model)
    attack = parts.attack_of(config, settings)
    aggregator = parts.aggregator_of(config, task, model, settings)
    server = setup.server_examples(config, dataset)  # clean examples on the server, for the few rules that need them
    held = jax.tree.map(jnp.asarray, parts.held_by(config, dataset))  # arrays of the attack's own
    federation = parts.federation_of(config, task, model, rule, attack, aggregator, settings, server, held)
    saved = start_model(config, model, info.tokenizer)  # None = the weights are drawn
    program_key = compiled.key_of(config, dataset.fingerprint)  # a second run of one program compiles nothing
    start = compiled.kept("start", program_key, lambda: parts.make_start(config, info, server, stored=True))
    state = start(key, roster, settings, held, None if saved is None else saved.variables)
    indices = pad_indices(shares)
    return Experiment(
        federation=federation,
        arrays=(setup.examples_of(dataset.train_inputs, dataset.train_labels), indices),
        sizes=indices.sizes,
        test=setup.examples_of(dataset.test_inputs, dataset.test_labels),
        state=with_stores(federation, state, config.federation.num_clients),
        key=key,
        malicious=np.asarray(roster.malicious),
        idle=setup.idle_clients(config, shares),
        parts=shares,
        dataset=dataset,
        evaluate=compiled.kept("evaluate", program_key, lambda: make_evaluate(model, attack, task, held)),
        start_sha256=None if saved is None else saved.sha256,
        program_key=program_key,
    )


def play(config: Any, experiment: Experiment, recorder: NoRecorder, progress: Progress) -> Result:
    """Plays the rounds that are left, evaluates, records."""
    federation, rounds, every = experiment.federation, config.federation.rounds, config.federation.eval_every
    backdoor, confidence = federation.attack.backdoor is not None, config.evaluation.confidence
    flags = federation.aggregator(federation.server).flags
    used = devices.devices_for_round(config.federation.clients_per_round, config.federation.devices)
    place = experiment.program_key and (experiment.program_key, tuple(used))
    program = compiled.kept("round", place, lambda: make_program(federation, used, owned=True))
    play_round = make_round(federation, experiment.arrays, experiment.sizes, used, program)
    with recorder.opened(experiment) as ((state, unreported), history):
        done = since = int(state.round)
        if done < rounds:
            progress.begin(history, remarks_ahead(config, experiment.malicious, experiment.idle))
            if federation.model.left:
                progress.note(slow_layers(federation.model.left))
            progress.phase("compiling")
        diverged, start = int(state.diverged), time.perf_counter()
        while done < rounds and diverged < 0:
            state, report = play_round(state, experiment.key)
            done, diverged = done + 1, int(state.diverged)  # waits for the device
            unreported = unreported.plus(report)
            last = done == rounds or diverged >= 0
            if done % every == 0 or last:
                ended = time.perf_counter()
                variables = evaluated_model(federation, state)
                counts = jax.device_get(experiment.evaluate(variables, experiment.test, state.roster, state.attack))
                seconds = {
                    "round_seconds": (ended - start) / (done - since),
                    "eval_seconds": time.perf_counter() - ended,
                }
                line = metrics_line(
                    done - 1, counts, report, experiment.malicious, backdoor, unreported, seconds, confidence, flags
                )
                history.append(line)
                recorder.add(line, report)
                progress.update(line)
                since, start = done, time.perf_counter()
                if done % every == 0:  # a line off the grid is replaced by a later one where the run is extended
                    unreported = NONE_UNREPORTED
            recorder.save(done, Snapshot(state, unreported), last)
        recorder.finish(history, diverged)
    if diverged >= 0:
        raise DivergedError(diverged_message(diverged, config), diverged)
    return Result(evaluated_model(federation, state), history, [verdict_of(line) for line in history], config)
