"""The small experiment of `--torch`, and the side that the loops of `torch_reference/` have in it.

Four clients, one of them malicious, train SimpleCNN on the handwritten digits without augmentation. The torch side gets
the uint8 images, who owns which, and from the simulator's draws the order of the images and which of them are poisoned;
it normalises, stamps, trains, weighs, averages and evaluates by itself.
"""

import importlib
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc import setup
from fedjax_spmc.attacks._poisoning import poison_draws
from fedjax_spmc.config import make_config
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.experiment import build
from fedjax_spmc.federation import FederationState
from fedjax_spmc.one_round import data_of_client
from fedjax_spmc.types import Array

CLIENTS, EPOCHS, BATCH, MAX_STEPS, FLOOR = 4, 1, 24, 30, 1e-2


def torch_reference() -> ModuleType:
    """The module of torch loops.

    Raises:
        ConfigError: torch is not there.
    """
    require("torch", "--torch")
    return importlib.import_module("fedjax_spmc.parity.torch_reference.federation")


def require(module: str, flag: str) -> None:
    """Refuses a flag whose library is not installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        importlib.import_module(module)
    except ImportError:
        raise ConfigError(f"{flag} needs {module}, which is not installed: `pip install fedjax_spmc[torch]`.") from None


class ClientBatches(NamedTuple):
    """One client's batches of a round: images [steps, B, H, W, C], labels, sample ids and poison flags [steps, B]."""

    images: np.ndarray
    labels: np.ndarray
    sample_ids: np.ndarray
    poisoned: np.ndarray


def small_experiment(method: str) -> setup.Experiment:
    """The experiment that both sides play: unequal clients, at most 30 steps each."""
    config = make_config(method)
    for path, value in {
        "data.name": "digits",
        "data.augment": False,
        "model.name": "simple_cnn",
        "federation.num_clients": CLIENTS,
        "federation.clients_per_round": CLIENTS,
        "partition.beta": 1.0,
        "local.epochs": EPOCHS,
        "local.batch_size": BATCH,
        "attack.malicious_fraction": 0.25,
    }.items():
        configs.set_field(config, path, value)
    if method == "spmc":
        configs.set_field(config, "local.options.floor", FLOOR)
    config = configs.resolve(config)
    return build(config)


class Batches:
    """The simulator's batches, taken out of its own pipeline; compiled once."""

    def __init__(self, experiment: setup.Experiment):
        federation = experiment.federation
        self.steps = [EPOCHS * (len(part) // BATCH) for part in experiment.parts]
        if max(self.steps) > MAX_STEPS:
            raise AssertionError(f"{max(self.steps)} local steps: exact forms drift apart beyond {MAX_STEPS}")

        @jax.jit
        def all_of(arrays: Any, client_id: Array, state: FederationState, key: Array) -> Any:
            data = data_of_client(federation, arrays, state, key, client_id)
            return jax.vmap(lambda step: data.gather(step, key))(jnp.arange(max(self.steps), dtype=jnp.int32))

        self._all_of = all_of
        self._experiment = experiment

    def of_round(self, state: FederationState) -> list[ClientBatches]:
        """Every client's batches of the round that `state` stands before."""
        experiment, own = self._experiment, state.attack["badnets"]
        attacks = state.roster._replace(round=state.round).attacks_now(jnp.arange(CLIENTS))
        taken = []
        for client, steps in enumerate(self.steps):
            made = self._all_of(experiment.arrays, jnp.int32(client), state, experiment.key)
            images, labels, ids = (np.asarray(x)[:steps] for x in (made.inputs, made.labels, made.sample_ids))
            draws = np.asarray(poison_draws(own.key, jnp.asarray(ids.ravel()))).reshape(ids.shape)
            poisoned = (draws < float(own.fraction)) & bool(attacks[client])
            taken.append(ClientBatches(images, labels, ids, poisoned))
        return taken


class TorchSide:
    """The torch loops on the same images; all tensors are made here from the arrays of the data set."""

    def __init__(self, experiment: setup.Experiment, method: str, dtype: str = "float32"):
        self._loops = torch_reference()
        self._torch = importlib.import_module("torch")
        self._torch.set_num_threads(1)  # its sums then always have the same order
        network = importlib.import_module("fedjax_spmc.parity.torch_reference.model").SimpleCNN
        hyper, data = experiment.federation.hyper, experiment.dataset
        names = ("learning_rate", "momentum", "weight_decay")
        kind = getattr(self._torch, dtype)
        self._settings = self._loops.Settings(network, method, *[hyper[name] for name in names], FLOOR, kind)
        self._sizes = [len(part) for part in experiment.parts]
        self._pixels = data.info.mean, data.info.std
        self._train = self._normal(data.train_inputs), self._torch.tensor(data.train_labels, dtype=self._torch.long)
        self._test = self._normal(data.test_inputs), self._torch.tensor(data.test_labels, dtype=self._torch.long)
        self._target = int(experiment.state.attack["badnets"].target)

    def _normal(self, images: np.ndarray) -> Any:
        tensor = self._torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return self._loops.normalise(tensor, *self._pixels, self._settings.dtype)

    def batches(self, taken: ClientBatches) -> list[tuple[Any, Any]]:
        """One client's batches from the order of its images and the poison flags."""
        made = []
        for ids, flags in zip(taken.sample_ids, taken.poisoned, strict=True):
            chosen, poisoned = self._torch.from_numpy(ids.astype(np.int64)), self._torch.from_numpy(flags)
            images, labels = self._train[0][chosen], self._train[1][chosen].clone()
            images[poisoned] = self._loops.stamp(images[poisoned], *self._pixels)
            labels[poisoned] = self._target
            made.append((images, labels))
        return made

    def arrays(self, taken: ClientBatches) -> tuple[np.ndarray, np.ndarray]:
        """One client's batches as arrays: images [steps, B, H, W, C], labels [steps, B]."""
        images, labels = zip(*self.batches(taken), strict=True)
        return np.stack([one.numpy().transpose(0, 2, 3, 1) for one in images]), np.stack([y.numpy() for y in labels])

    def play(self, state: Any, teachers: list[Any], taken: list[ClientBatches]) -> Any:
        """One round."""
        own = [self.batches(one) for one in taken]
        return self._loops.play_round(self._settings, state, teachers, own, self._sizes)

    def tensors(self, named: dict[str, np.ndarray]) -> Any:
        """A state dictionary of tensors."""
        return {name: self._torch.from_numpy(np.array(array)) for name, array in named.items()}

    def percentages(self, state: Any) -> tuple[float, float]:
        """A and ASR of a state dictionary on the test images."""
        images, labels = self._test
        accuracy = self._loops.percent_predicted(self._settings, state, images, labels)
        others = labels != self._target
        stamped = self._loops.stamp(images[others], *self._pixels)
        wanted = self._torch.full((len(stamped),), self._target)
        return accuracy, self._loops.percent_predicted(self._settings, state, stamped, wanted)
