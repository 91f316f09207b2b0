"""Local training in torch: plain SGD and SPMC's gradient self-purification."""

from collections.abc import Iterable

import torch
from torch.nn import functional as F

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def make_optimizer(model: torch.nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """torch's SGD, as the papers use it."""
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)


def train_sgd(model: torch.nn.Module, batches: Batches, optimizer: torch.optim.SGD) -> int:
    """One step of SGD for each batch; returns the number of steps."""
    steps = 0
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        steps += 1
    return steps


def train_spmc(
    model: torch.nn.Module,
    teacher: torch.nn.Module,
    batches: Batches,
    optimizer: torch.optim.SGD,
    strength: float = 1.0,
    floor: float = 0.0,
) -> int:
    """One step for each batch on the task gradient, purified tensor by tensor; returns the number of steps.

    For each tensor, with a the gradient of the cross entropy and b that of the cross entropy with the teacher's soft
    labels: where <a, b> < 0, a - strength <a, b> / |b|^2 b.
    """
    steps = 0
    parameters = list(model.parameters())
    for images, labels in batches:
        logits = model(images)
        with torch.no_grad():
            soft = F.softmax(teacher(images), dim=1)
        task_loss = F.cross_entropy(logits, labels)
        guide_loss = -(soft * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
        task = torch.autograd.grad(task_loss, parameters, retain_graph=True)
        guide = torch.autograd.grad(guide_loss, parameters)
        for parameter, a, b in zip(parameters, task, guide, strict=True):
            length = b.norm()
            dot = (a * b).sum()
            if length > 0 and length >= floor * a.norm() and dot < 0:
                unit = b / length
                a = a - strength * (a * unit).sum() * unit
            parameter.grad = a
        optimizer.step()
        steps += 1
    return steps
