"""A round of S1, ours and a peer's in turn: the parts `s1` and `pfl` of `bench_sweep.py`."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import counting
import single

from fedjax_spmc import config as configs
from fedjax_spmc.config.files import read_config
from fedjax_spmc.terminal import note

EACH = 50
"""Images of a user."""
HAS_PFL = "import importlib.util as u, sys; sys.exit(not (u.find_spec('pfl') and u.find_spec('torch')))"


def beside_torch(images: int, repeats: int, clients: int, processes: int) -> Iterator[dict[str, float]]:
    """Ours against plain torch loops in forked processes.

    Args:
        images, repeats, clients: of all users, counted rounds, clients of a round.
        processes: of the peer, one thread each.
    """
    command = [sys.executable, "-m", "fedjax_spmc.parity.torch_reference.forked_rounds", str(clients), str(EACH)]
    found = _measured(images, repeats, clients, command, [str(processes)])
    yield {f"s1_{name.replace('peer', 'torch')}": value for name, value in found.items()}


def beside_pfl(images: int, repeats: int, clients: int, workers: int, python: str) -> Iterator[dict[str, float]]:
    """Ours against pfl; nothing, and a sentence, where an interpreter has no pfl.

    Args:
        images, repeats, clients: as in `beside_torch`.
        workers: of the peer, one thread each.
        python: the interpreter that plays the peer.
    """
    if subprocess.run([python, "-c", HAS_PFL], check=False).returncode:
        note(f"pfl: left out, as {python} has no pfl and torch (pip install pfl torch; --pfl names another).")
        return
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    script = Path(__file__).with_name("pfl_rounds.py")
    command = [python, *start, str(script), str(clients), str(images)]
    found = _measured(images, repeats, clients, command, environment={"GLOO_SOCKET_IFNAME": "lo"})
    yield {
        "s1_beside_pfl_seconds": found["seconds"],
        "s1_pfl_seconds": found["peer_seconds"],
        "s1_beside_pfl_clients_per_second": found["clients_per_second"],
        "s1_pfl_clients_per_second": found["peer_clients_per_second"],
        "s1_pfl_ratio": found["ratio"],
    }


def config_of(images: int, clients: int) -> Any:
    """`configs/s1.py` on random images, so many of all users and so many clients a round."""
    config, _ = read_config(str(single.ROOT / "configs" / "s1.py"))
    for path, value in {
        "data.name": "synthetic", "federation.clients_per_round": clients, "federation.num_clients": images // EACH,
    }.items():  # fmt: skip
        configs.set_field(config, path, value)
    return configs.resolve(config)


def _measured(
    images: int, repeats: int, clients: int, command: Sequence[str], last: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> dict[str, float]:  # fmt: skip
    """The peer is a process that plays a round for each line of its input; batch and rate stand before `last`."""
    config = config_of(images, clients)
    run = single.Rounds(config, single.made_up(images))
    local = config.local
    command = [*command, str(local.batch_size), str(local.learning_rate), *last]
    with single.answering(command, {**os.environ, **(environment or {})}) as peer:
        seconds, steps = single.in_turn({"ours": run, "peer": peer}, repeats)
    if steps["ours"] != steps["peer"]:
        raise SystemExit(f"ours took {steps['ours']} client-steps, the peer {steps['peer']}")
    step = counting.of_step(run.experiment.federation.model, run.experiment.federation.rule, local.batch_size)
    return {
        "seconds": seconds["ours"],
        "peer_seconds": seconds["peer"],
        "clients_per_second": clients / seconds["ours"],
        "peer_clients_per_second": clients / seconds["peer"],
        "ratio": seconds["peer"] / seconds["ours"],
        "gflops": counting.speed(step, steps["ours"], seconds["ours"]),
        "step_mb": step.bytes / 1e6,
        "gflop": step.products / 1e9,
        "mb": step.moved / 1e6,
    }
