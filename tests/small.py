"""A small experiment that the tests of the command, resuming and results share, and how two runs are compared."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_spmc import attacks, keys, run
from fedjax_spmc import config as configs
from fedjax_spmc.config import make_config
from fedjax_spmc.experiment import build
from fedjax_spmc.one_round import train
from fedjax_spmc.record.checkpoint import Checkpoints
from fedjax_spmc.record.lines import NONE_UNREPORTED
from fedjax_spmc.record.resume import Snapshot

FIELDS: dict[str, Any] = {
    "data.name": "synthetic",
    "data.options.num_train": 160,
    "data.options.num_test": 60,
    "model.name": "mlp",
    "federation.num_clients": 4,
    "federation.clients_per_round": 4,
    "federation.devices": 1,  # compiles faster; tests/test_devices.py has more
    "local.epochs": 1,
    "local.batch_size": 8,
    "attack.malicious_fraction": 0.25,
}
PHASES = ("round ", "reading data", "compiling ...")
"""How the lines of progress begin."""
CONFIG = str(Path(__file__).parent.parent / "configs" / "synthetic.py")


def config(rounds: int = 4, presets: str = "", **fields: Any) -> Any:
    """The small config; other fields by path with `__` for the dot."""
    made = make_config(presets)
    named = {name.replace("__", "."): value for name, value in fields.items()}
    for path, value in {**FIELDS, "federation.rounds": rounds, **named}.items():
        configs.set_field(made, path, value)
    return made


def arguments(workdir: Path | str, *overrides: str, rounds: int = 4, presets: str = "") -> list[str]:
    """The command line of the small config; overrides as "field=value"."""
    fields = [f"{path}={value}" for path, value in {**FIELDS, "federation.rounds": rounds}.items()]
    return [
        f"--config={CONFIG}{':' if presets else ''}{presets}",
        *[f"--config.{field}" for field in [*fields, *overrides]],
        f"--workdir={workdir}",
    ]


def share_compiled(folder: Path) -> None:
    """Compiled programs go to the folder that `fedjax_spmc.run` uses for them."""
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def refused(capsys, argv: list[str], *words: str, code: int = 2) -> str:
    """Runs the command, which must end with `code` and one sentence that holds `words`; returns it."""
    capsys.readouterr()
    assert run.main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith(PHASES)]
    assert len(lines) == 1, err
    assert lines[0].endswith(".")
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0], (word, lines[0])
    return lines[0]


def contents(folder: Path) -> dict[str, bytes | None]:
    """All files below a folder with their bytes, but for the lock; folders have None."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    """`metrics.jsonl` without the keys that hold times."""
    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [without_times(json.loads(line)) for line in text.splitlines()]


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    """A line of `metrics.jsonl` without the keys that hold times."""
    return {key: value for key, value in line.items() if not key.endswith("_seconds")}


def saved_state(folder: Path) -> list[tuple[Any, ...]]:
    """The leaves of the checkpoint as dtypes, shapes and bytes, and the rounds that it stands for."""
    like = _state_like((folder / "config.json").read_text())
    checkpoints = Checkpoints(folder / "checkpoint")
    rounds = checkpoints.latest()
    assert rounds is not None
    state = checkpoints.restore(rounds, Snapshot(like, NONE_UNREPORTED))
    checkpoints.close()
    arrays = [np.asarray(keys.numbers_of(leaf)) for leaf in jax.tree.leaves(state)]
    return [(rounds,), *[(str(array.dtype), array.shape, array.tobytes()) for array in arrays]]


@functools.cache
def _state_like(config_text: str) -> Any:
    """The state before round 0 of a saved config: its structure, shapes and dtypes."""
    resolved = configs.resolve(json.loads(config_text))
    return build(resolved).state


def assert_same_run(first: Path, second: Path) -> None:
    """Two run folders hold the same numbers bit for bit."""
    assert lines(first) == lines(second)
    assert (first / "model.npz").read_bytes() == (second / "model.npz").read_bytes()
    assert saved_state(first) == saved_state(second)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (first, second)]
    assert summaries[0] == summaries[1]


def trainings_under(one: Any, names: tuple[str, ...], together: bool, options: dict[str, Any]) -> Any:
    """What all clients of an experiment train in its first round under attacks: `training.Trained`, stacked.

    Args:
        one: from `experiment.build`.
        names: of the attacks.
        together: all clients under one vmap, else one after another.
        options: of the attacks.
    """
    federation = one.federation._replace(attack=attacks.make(names, **options), client_batch=4 if together else 1)
    own = {name: one.state.attack.get(name, ()) for name in names}
    done = jax.jit(lambda state: train(federation, one.arrays, one.sizes, state, one.key).trained)
    return done(one.state._replace(attack=own))
