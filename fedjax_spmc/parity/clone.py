"""The simulator beside the authors' own code: `python -m fedjax_spmc.parity --reference=DIR`.

DIR is your clone of github.com/WenddHe0119/SPMC, or its folder RobustFederation. Its server rules and its aligned
training are imported at run time and fed with the same models and batches; nothing of it is part of this package.
"""

import contextlib
import importlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, data, local_rules, models, training
from fedjax_spmc.data import augment
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.keys import root_key
from fedjax_spmc.parity.comparison import Comparison, Outcome, Say, silent
from fedjax_spmc.parity.kinds_local import fixed_batches
from fedjax_spmc.parity.torch_side import require
from fedjax_spmc.types import Context, Model, Upload, Variables

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "SPMD": ("spmc", {}),
    "SPMD_euc": ("spmc", {"score": "euclidean"}),
    "SPMD_was": ("spmc", {"score": "wasserstein"}),
    "SPED": ("spmc", {"score": "chebyshev"}),
    "Equal": ("mean", {"weights": "uniform"}),
    "Weight": ("mean", {"weights": "size"}),
}
"""A server rule of the clone, also the name of its module and class -> ours."""
PACKAGES = ("Server", "Optims", "Backbones", "utils")
CLIENTS, STEPS, BATCH = 5, 10, 16
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 1e-5  # the momentum is fixed in their code


class Section(SimpleNamespace):
    """A node of their configuration: read as attribute and as item."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Clone:
    """The parts of a clone that are driven.

    Args:
        folder: the clone, or its folder RobustFederation.

    Raises:
        ConfigError: the folder is no such clone, or a module that it imports is not installed.
    """

    def __init__(self, folder: Path):
        root = folder / "RobustFederation" if (folder / "RobustFederation").is_dir() else folder
        wanted = [f"Server/{name}.py" for name in RULES] + ["Optims/AlignedGradient.py", "Backbones/SimpleCNN.py"]
        missing = [name for name in wanted if not (root / name).is_file()]
        if missing:
            raise ConfigError(
                f"--reference = {str(folder)!r} is not allowed: it must be a clone of github.com/WenddHe0119/SPMC, and "
                f"{missing[0]} is missing in {root}."
            )
        require("torch", "--reference")
        self.root = root.resolve()
        self._modules = self._import_all(["Server." + name for name in RULES])
        self._modules |= self._import_all(["Optims.AlignedGradient", "Backbones.SimpleCNN"])

    def _import_all(self, names: list[str]) -> dict[str, ModuleType]:
        # Their packages import everything they hold, data sets and all, from the current folder: bare packages in
        # their place load the single modules that are asked for.
        shadowed = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in PACKAGES}
        for package in PACKAGES:
            bare = ModuleType(package)
            bare.__path__ = [str(self.root / package)]
            sys.modules[package] = bare
        try:
            return {name: importlib.import_module(name) for name in names}
        except ImportError as error:
            raise ConfigError(
                f"--reference = {str(self.root)!r} cannot be imported: {error}. Install what it needs beside the "
                "package: torch, numpy, scipy, scikit-learn, tqdm."
            ) from None
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
                del sys.modules[name]
            sys.modules.update(shadowed)

    def network(self) -> Any:
        """Their SimpleCNN."""
        return self._modules["Backbones.SimpleCNN"].SimpleCNN(self._config())

    def _config(self) -> Section:
        return Section(
            DATASET=Section(parti_num=CLIENTS, online_ratio=1.0, n_classes=10),
            OPTIMIZER=Section(local_epoch=1, local_train_lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY),
            attack=Section(bad_client_rate=0.2),
            Optim=Section(AlignedGradient=Section(lamda=1.0)),
        )

    def train(self, nets: list[Any], teachers: list[Any], batches: list[list[tuple[Any, Any]]]) -> None:
        """Their aligned training of every client, in place."""
        args = Section(device_id=0, dataset="none")
        with silenced():
            method = self._modules["Optims.AlignedGradient"].AlignedGradient(nets, [], args, self._config())
            for client, (net, teacher) in enumerate(zip(nets, teachers, strict=True)):
                method._train_net(client, net, batches[client], teacher.to(method.device))

    def aggregate(self, rule: str, net: Any, nets: list[Any], order: list[int], sizes: list[int]) -> Any:
        """The weights that their rule returns; `net` and all `nets` then hold the new model."""
        loaders = [SimpleNamespace(sampler=SimpleNamespace(indices=range(size))) for size in sizes]
        with silenced():
            server = getattr(self._modules["Server." + rule], rule)(Section(device_id=0), self._config())
            return server.server_update(
                online_clients_list=order, priloader_list=loaders, global_net=net, nets_list=nets
            )


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Swallows their progress bars, prints and warnings, and lets their folders be made in a temporary one."""
    here = os.getcwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(here)


def flat(net: Any) -> np.ndarray:
    """All parameters of a torch network as one float32 vector."""
    return np.concatenate([parameter.detach().cpu().numpy().ravel() for parameter in net.parameters()])


def digits(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Batches of handwritten digits for every client: images [clients, steps, B, H, W, C], labels."""
    dataset = data.load("digits")
    chosen = rng.choice(len(dataset.train_labels), (CLIENTS, STEPS, BATCH))
    images = augment.normalise(jnp.asarray(dataset.train_inputs[chosen]), dataset.info.mean, dataset.info.std)
    return np.asarray(images), np.asarray(dataset.train_labels, np.int32)[chosen]


def train_ours(model: Model, start: Any, teachers: list[np.ndarray], images: Any, labels: Any) -> list[np.ndarray]:
    """Every client's flat model after our aligned training."""
    rule = local_rules.make("spmc", floor=0.0)
    hyper = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY}

    @jax.jit
    def train(teacher: Any, images: Any, labels: Any) -> Any:
        variables = Variables(models.from_torch(model, start), {})
        own = Variables(models.from_torch(model, teacher), {})
        ctx = Context(model, variables, variables, hyper, 1, jnp.int32(0))
        batches = fixed_batches(images, labels)
        return models.to_torch(training.train_client(rule, ctx, own, batches, root_key(0)).variables.params)

    return [
        np.asarray(train(jnp.asarray(teacher), jnp.asarray(images[k]), jnp.asarray(labels[k])))
        for k, teacher in enumerate(teachers)
    ]


def against_clone(folder: Path, say: Say = silent) -> list[Outcome]:
    """All rows of `--reference`: aligned training, then every server rule on the models that it left.

    Args:
        folder: the clone.
        say: takes a line for each row, before it is compared.

    Raises:
        ConfigError: see `Clone`.
    """
    clone = Clone(folder)
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = models.make("simple_cnn")
    images, labels = digits(rng)
    net, teachers = clone.network(), [clone.network() for _ in range(CLIENTS)]
    start, teacher_vectors = flat(net), [flat(teacher) for teacher in teachers]
    nets = [clone.network() for _ in range(CLIENTS)]
    for one in nets:
        one.load_state_dict(net.state_dict())
    batches = [
        [(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y.astype(np.int64))) for x, y in pairs]
        for pairs in (zip(images[k], labels[k], strict=True) for k in range(CLIENTS))
    ]
    say("beside the clone: aligned training")
    clone.train(nets, teachers, batches)
    trained = [flat(one) for one in nets]
    local = Comparison(f"aligned training, {STEPS} steps")
    for k, ours in enumerate(train_ours(model, jnp.asarray(start), teacher_vectors, images, labels)):
        local.add(f"client {k}", ours, trained[k])
    source = clone.root.name
    outcomes = [local.outcome(source)]

    order, sizes = [int(k) for k in rng.permutation(CLIENTS)], [int(n) for n in rng.integers(50, 500, CLIENTS)]
    rows = np.stack(trained)[order]
    upload = Upload(
        global_params=models.from_torch(model, start),
        client_params=jax.vmap(lambda row: models.from_torch(model, row))(jnp.asarray(rows)),
        num_examples=jnp.asarray([sizes[k] for k in order], jnp.float32),
        participating=jnp.ones(CLIENTS, bool),
        client_ids=jnp.asarray(order, jnp.int32),
    )
    kept = [{name: tensor.clone() for name, tensor in one.state_dict().items()} for one in nets]
    for name, (ours, options) in RULES.items():
        say(f"beside the clone: server {name}")
        for one, state in zip(nets, kept, strict=True):
            one.load_state_dict(state)
        weights = clone.aggregate(name, net, nets, order, sizes)
        rule = aggregators.make(ours, **options)
        params, verdict, _ = jax.jit(rule.aggregate)(upload, rule.init(upload.global_params, CLIENTS), root_key(0))
        comparison = Comparison(f"server {name}")
        comparison.add("model", models.to_torch(params), flat(net))
        comparison.add("weights", verdict.weights, np.asarray(weights, np.float64))
        outcomes.append(comparison.outcome(source))
    return outcomes
