"""Rounds of S1 in pfl-research's own simulator (PyPI `pfl`, with torch), for `bench_sweep.py --parts=pfl`.

    torchrun --standalone --nproc-per-node=2 pfl_rounds.py CLIENTS IMAGES BATCH RATE

Needs nothing but pfl and torch, and no part of this package, so that it may run in another environment. What stands
here is of pfl's documented classes: a `FederatedDataset` of users of 50 random images each, a `PyTorchModel` around the
network of its CIFAR-10 benchmark (Glorot's uniform weights, as there), `FederatedAveraging` on a `SimulatedBackend`
that weighs users alike, no evaluation. torchrun is pfl's own way to several workers; each has one thread here and
trains its share of a round's users, and their sum goes by gloo.

A callback waits between two central iterations: the first worker says "ready", then answers each line of its input when
that iteration has ended; where the input ends, all stop.
"""

import os
import sys
from types import MethodType

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import distributed, nn
from torch.nn import functional as F

ANSWERS, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - pfl prints its metrics, which are no answers
EACH = 50
MANY = 10**9
"""Central iterations: the callback ends them."""


def network():
    """The benchmark's CNN with the two methods that pfl asks for."""
    made = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    )  # fmt: skip
    for layer in made:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)

    def loss(self, images, labels, eval=False):  # the names are those that pfl asks for
        self.train(not eval)
        return F.cross_entropy(self(images), labels)

    @torch.no_grad()
    def metrics(self, images, labels, eval=True):
        self.train(not eval)
        return {"loss": Weighted(F.cross_entropy(self(images), labels, reduction="sum").item(), len(images))}

    made.loss, made.metrics = MethodType(loss, made), MethodType(metrics, made)
    return made


class InTurn(TrainingProcessCallback):
    """Waits for a line of input before each central iteration."""

    def __init__(self, steps):
        self._steps = steps

    def _go_on(self, answer):
        first = not distributed.is_initialized() or distributed.get_rank() == 0
        more = torch.zeros(1)
        if first:
            print(answer, file=ANSWERS, flush=True)
            more[0] = bool(sys.stdin.readline())
        if distributed.is_initialized():
            distributed.broadcast(more, 0)
        return bool(more)

    def on_train_begin(self, *, model):
        """Before the first iteration."""
        self._go_on("ready")
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Behind each: (whether to stop, metrics)."""
        return not self._go_on(self._steps), Metrics()


def main(clients, images, batch, rate):
    """Trains until the input ends."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # of pfl's draw of users, which must be the same in all workers
    pixels, labels = torch.randn(images, 3, 32, 32), torch.randint(0, 10, (images,))
    users = {
        user: (pixels[EACH * user : EACH * (user + 1)], labels[EACH * user : EACH * (user + 1)])
        for user in range(images // EACH)
    }
    data = FederatedDataset.from_slices(users, get_user_sampler("random", range(len(users))))
    made = network()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=MANY, evaluation_frequency=MANY, train_cohort_size=clients, val_cohort_size=0
        ),
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByUser()]),
        model=PyTorchModel(
            model=made,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(made.parameters(), 1.0),
        ),
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=rate, local_batch_size=batch),
        model_eval_params=NNEvalHyperParams(local_batch_size=10_000),
        callbacks=[InTurn(clients * -(-EACH // batch))],
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), float(sys.argv[4]))
