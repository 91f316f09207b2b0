"""The learning rate over rounds: against torch, against Neurotoxin's code, in rounds, sweeps and resumed runs."""

import chex
import jax
import numpy as np
import pytest
import torch

from fedjax_spmc import config as configs
from fedjax_spmc import experiment, schedules, setup, sweep
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.one_round import train
from tests import small

FIELDS = {
    "linear": {"schedule_rounds": 8, "schedule_end": 0.25},
    "cosine": {"schedule_rounds": 12, "schedule_end": 0.25},
    "step": {"schedule_milestones": (3, 5, 5), "schedule_gamma": 0.5},
    "neurotoxin_cifar": {},
}


def torch_factors(name, rounds):
    made = torch.optim.SGD([torch.zeros(1, dtype=torch.float64)], lr=1.0)
    scheduler = {
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(made, 1.0, 0.25, 8),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(made, 12, 0.25),
        "step": lambda: torch.optim.lr_scheduler.MultiStepLR(made, [3, 5, 5], 0.5),
    }[name]()
    found = []
    for _ in range(rounds):
        found.append(made.param_groups[0]["lr"])
        made.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", ["linear", "cosine", "step"])
def test_a_schedule_is_torchs(name):
    np.testing.assert_allclose(schedules.factors(name, 12, **FIELDS[name]), torch_factors(name, 12), atol=1e-12)


def test_the_end_stays_and_may_be_left_open():
    for name in ("linear", "cosine"):
        beyond = schedules.factors(name, 20, **FIELDS[name])
        assert set(beyond[12:]) == {0.25}
        by_rounds = schedules.factors(name, 8)
        assert by_rounds[0] == 1 > by_rounds[-1] > 0
        np.testing.assert_array_equal(by_rounds, schedules.factors(name, 8, schedule_rounds=8))


def test_neurotoxins_rates_are_those_of_its_code(shared):
    with np.load(shared / "golden" / "neurotoxin_lr_schedule.npz") as golden:
        epochs = golden["epochs"]
        assert len(epochs) == 18
        factors = schedules.factors("neurotoxin_cifar", int(epochs.max()))
        np.testing.assert_allclose(0.2 * factors[epochs - 1], golden["cifar10_cli_default"], rtol=0, atol=1e-9)
        for name, start, target in (("cifar10_cli_default", 1e-3, 0.2), ("emnist_byclass_tl0.2", 0.01, 0.2),
                                    ("emnist_byclass_tl0.1", 0.01, 0.1)):  # fmt: skip
            ours = schedules.neurotoxin_rate(epochs, start, target)
            np.testing.assert_allclose(ours, golden[name], rtol=0, atol=1e-9)


def test_constant_leaves_the_program_as_it_is():
    assert setup.schedule_of(configs.resolve(small.config())) is None
    assert set(schedules.factors("constant", 3)) == {1.0}
    assert configs.FIELDS["local.schedule"].choices == tuple(schedules.TAKES)


# Rounds.


def test_benign_and_attacking_clients_follow_it_unless_the_attacker_has_a_rate():
    """Round 1 of a schedule that halves there: the same as a constant half of the rate."""
    fields = {"presets": "fedavg", "local__learning_rate": 0.1, "federation__client_batch": 4}
    made = experiment.build(configs.resolve(small.config(2, **fields)))

    def trained(rate, schedule, own):
        attacker = made.federation.attacker._replace(hyper={} if own is None else {"learning_rate": own})
        hyper = {**made.federation.hyper, "learning_rate": rate}
        federation = made.federation._replace(schedule=schedule, hyper=hyper, attacker=attacker)
        state = made.state._replace(round=jax.numpy.int32(1))
        return train(federation, made.arrays, made.sizes, state, made.key).trained.variables.params

    run = jax.jit(trained)
    halved = np.array([1.0, 0.5], np.float32)
    ones = np.ones(2, np.float32)
    chex.assert_trees_all_close(run(0.1, halved, None), run(0.05, ones, None), atol=1e-6)
    chex.assert_trees_all_close(run(0.1, halved, 0.03), run(0.05, ones, 0.03), atol=1e-6)
    differs = [
        not np.allclose(a[-1], b[-1], atol=1e-6)  # the malicious one
        for a, b in zip(*(jax.tree.leaves(run(0.1, halved, own)) for own in (None, 0.03)), strict=True)
    ]
    assert any(differs)


def test_the_upload_tells_the_rate_of_the_round():
    made = experiment.build(configs.resolve(small.config(4, "fedavg", local__schedule="linear")))
    rates = [float(made.federation.hyper_at(jax.numpy.int32(r))["learning_rate"]) for r in range(4)]
    np.testing.assert_allclose(rates, [0.01, 0.0075, 0.005, 0.0025], rtol=1e-6)


# Configs.


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"schedule": "step"}, "local.schedule_milestones = () is not allowed with local.schedule = 'step'"),
        ({"schedule": "step", "schedule_milestones": (1.5,)}, "local.schedule_milestones = (1.5,) is not allowed: "),
        ({"schedule": "step", "schedule_milestones": (-1,)}, "local.schedule_milestones = (-1,) is not allowed: "),
        ({"schedule_end": 0.5}, "local.schedule_end = 0.5 is not allowed with local.schedule = 'constant'"),
        (
            {"schedule": "cosine", "schedule_gamma": 0.5},
            "local.schedule_gamma = 0.5 is not allowed with local.schedule",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields, words):
    with pytest.raises(ConfigError) as caught:
        configs.resolve(small.config(**{f"local__{name}": value for name, value in fields.items()}))
    assert str(caught.value).startswith(words)


def test_milestones_of_attackers_are_checked_too():
    with pytest.raises(ConfigError, match=r"^attack\.local\.milestones = \('x',\) is not allowed: it must be a list"):
        configs.resolve(small.config(attack__local__milestones=("x",)))


def test_a_length_left_open_is_recorded_and_a_longer_run_does_not_change_it(tmp_path, monkeypatch):
    from fedjax_spmc.record.folder import RunFolder

    def folder(rounds, **fields):
        return RunFolder(tmp_path, configs.resolve(small.config(rounds, local__schedule="cosine", **fields)))

    first = folder(4)
    first.begin({"data": {"fingerprint": "f", "num_classes": 10, "input_shape": [8]}})
    first.close()
    with pytest.raises(ConfigError, match=r"^local\.schedule_rounds = 6 is not allowed in workdir .* there has 4"):
        folder(6)
    folder(6, local__schedule_rounds=4)


def test_schedules_are_arrays_of_one_program():
    fields = {"local.schedule": ["linear", "cosine", "neurotoxin_cifar"]}
    base = small.config(3, "fedavg")
    assert len(sweep.groups_of(sweep.expand(sweep.Sweep(base, fields)))) == 1
    fields = {"local.schedule": ["constant", "linear"]}
    assert len(sweep.groups_of(sweep.expand(sweep.Sweep(base, fields)))) == 2
    ends = sweep.Sweep(small.config(3, "fedavg", local__schedule="linear"), {"local.schedule_end": [0.0, 0.5]})
    assert len(sweep.groups_of(sweep.expand(ends))) == 1
