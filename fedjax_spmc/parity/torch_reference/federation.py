"""Rounds of federated averaging and of SPMC as plain loops, with a backdoor; no code is shared with the package."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .local import Batches, make_optimizer, train_sgd, train_spmc

State = dict[str, Any]


class Settings(NamedTuple):
    """The settings of a round.

    Attributes:
        make_model: () -> a network; its weights are overwritten.
        method: "fedavg" or "spmc".
        lr, momentum, weight_decay: of the local SGD.
        floor: guidance shorter than this times the task gradient counts as none.
        dtype: arithmetic of the whole round.
    """

    make_model: Callable[[], torch.nn.Module]
    method: str
    lr: float
    momentum: float
    weight_decay: float
    floor: float
    dtype: torch.dtype


class RoundResult(NamedTuple):
    """The new global model, every client's teacher and the weights that the server gave."""

    state: State
    teachers: list[State]
    weights: torch.Tensor


def normalise(
    images: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """uint8 [n, C, H, W] -> (values / 255 - mean) / std."""
    columns = [torch.tensor(values, dtype=dtype).view(1, -1, 1, 1) for values in (mean, std)]
    return (images.to(dtype) / 255 - columns[0]) / columns[1]


def stamp(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Normalised images with the FDCR paper's trigger: a white patch of 2 x 6 pixels in the upper left corner."""
    stamped = images.clone()
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        stamped[:, channel, :2, :6] = (1 - m) / s
    return stamped


def mean_weights(sizes: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Each client's share of all examples."""
    counts = torch.tensor(sizes, dtype=dtype)
    return counts / counts.sum()


def flatten(state: State) -> torch.Tensor:
    """One vector of all tensors."""
    return torch.cat([tensor.reshape(-1) for tensor in state.values()])


def spmc_weights(states: Sequence[State]) -> torch.Tensor:
    """Softmax of the cosines between each client's weights and the plain mean of all the others'."""
    vectors = [flatten(state) for state in states]
    scores = []
    for k, own in enumerate(vectors):
        others = [vector for j, vector in enumerate(vectors) if j != k]
        coalition = sum(others[1:], others[0]) / len(others)
        scores.append(own @ coalition / (own.norm() * coalition.norm() + 1e-5))
    exponentials = torch.exp(torch.stack(scores) - max(scores))
    return exponentials / exponentials.sum()


def average(states: Sequence[State], weights: torch.Tensor) -> State:
    """Weighted mean, tensor by tensor."""
    return {
        name: sum(weight * state[name] for weight, state in zip(weights, states, strict=True)) for name in states[0]
    }


def teacher_of(new: State, own: State, weight: torch.Tensor) -> State:
    """The weighted mean of all clients but one."""
    return {name: (new[name] - weight * own[name]) / (1 - weight) for name in new}


def loaded(settings: Settings, state: State) -> torch.nn.Module:
    """A network with these weights."""
    model = settings.make_model().to(settings.dtype)
    model.load_state_dict({name: tensor.to(settings.dtype) for name, tensor in state.items()})
    return model


def play_round(
    settings: Settings, state: State, teachers: Sequence[State], batches: Sequence[Batches], sizes: Sequence[int]
) -> RoundResult:
    """Trains every client from `state` on its own batches, weighs and averages the results."""
    trained = []
    for client, own in enumerate(batches):
        model = loaded(settings, state)
        optimizer = make_optimizer(model, settings.lr, settings.momentum, settings.weight_decay)
        if settings.method == "fedavg":
            train_sgd(model, own, optimizer)
        else:
            train_spmc(model, loaded(settings, teachers[client]), own, optimizer, floor=settings.floor)
        trained.append({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
    weights = mean_weights(sizes, settings.dtype) if settings.method == "fedavg" else spmc_weights(trained)
    new = average(trained, weights)
    new_teachers = [teacher_of(new, own, weight) for own, weight in zip(trained, weights, strict=True)]
    return RoundResult(new, new_teachers, weights)


def percent_predicted(settings: Settings, state: State, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percentage of images that the network classifies as `labels`."""
    model = loaded(settings, state).eval()
    with torch.no_grad():
        hits = int((model(images).argmax(dim=1) == labels).sum())
    return 100 * hits / len(labels)
