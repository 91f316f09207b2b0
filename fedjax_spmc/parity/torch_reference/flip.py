"""A client of FLIP in plain torch: trigger inversion and hardening as loops, batch by batch."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

STRETCH = 2 - 1e-7


class MnistNet(nn.Module):
    """FLIP's network for grey pictures: [B, 1, side, side] -> [B, 10]."""

    def __init__(self, side: int = 28) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(50 * (((side - 4) // 2 - 4) // 2) ** 2, 500), nn.Linear(500, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Work(NamedTuple):
    """How much a client does in a round.

    Attributes:
        classes: number of classes, one universal search each in a first visit.
        universal_steps: of each.
        pairs: searches of both ways of a pair.
        pair_steps: of each.
        short_steps: of a second search for each pair; 0 = none.
        batches: steps of training.
    """

    classes: int
    universal_steps: int
    pairs: int
    pair_steps: int
    short_steps: int
    batches: int

    def steps(self, first: bool) -> int:
        """Steps of searches and of training."""
        universal = self.classes * self.universal_steps if first else 0
        return universal + self.pairs * (self.pair_steps + self.short_steps) + self.batches


def search(
    model: nn.Module,
    inputs: torch.Tensor,
    wanted: torch.Tensor,
    owner: torch.Tensor,
    start: tuple[torch.Tensor, torch.Tensor],
    steps: int,
    cost: float = 1e-3,
    threshold: float = 0.9,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest triggers found: masks [T, H, W] and patterns [T, C, H, W]; zeros where none was.

    Args:
        model: in evaluation, its weights frozen.
        inputs: [B, C, H, W] in [0, 1].
        wanted: [B], the class that each is to be taken for.
        owner: [B], which trigger each carries.
        start: masks and patterns to begin with.
        steps: of Adam.
        cost: weight on a mask's size to begin with.
        threshold: share of the examples that must be taken for the wanted class.
    """
    live = [torch.atanh((x.clamp(0, 1) - 0.5) * STRETCH).requires_grad_() for x in start]
    adam = torch.optim.Adam(live, lr=0.1, betas=(0.5, 0.9))
    count = len(start[0])
    best, smallest = [torch.zeros_like(x) for x in start], [float("inf")] * count
    costs, up, down = [cost] * count, [0] * count, [0] * count
    shares = [owner == t for t in range(count)]
    for _ in range(steps):
        masks, patterns = (torch.tanh(x) / STRETCH + 0.5 for x in live)
        mask = masks[owner][:, None]
        logits = model((1 - mask) * inputs + mask * patterns[owner])
        each = F.cross_entropy(logits, wanted, reduction="none")
        sizes = masks.abs().sum(dim=(1, 2))
        loss = each.sum() if count > 1 else each.mean()
        loss = loss + sum(c * size for c, size in zip(costs, sizes, strict=True))
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            right = logits.argmax(dim=1) == wanted
            for t, share in enumerate(shares):
                good = bool(share.any()) and float(right[share].float().mean()) >= threshold
                if good and float(sizes[t]) < smallest[t] - 1e-6:
                    smallest[t] = float(sizes[t])
                    for kept, now, moving in zip(best, (masks, patterns), live, strict=True):
                        kept[t] = now[t]
                        near = (now[t] + torch.empty_like(now[t]).uniform_(-0.01, 0.01)).clamp(0, 1)
                        moving[t] = torch.atanh((near - 0.5) * STRETCH)
                up[t], down[t] = (up[t] + 1, 0) if good else (0, down[t] + 1)
                if up[t] >= 10:
                    up[t], costs[t] = 0, costs[t] * 1.5
                elif down[t] >= 10:
                    down[t], costs[t] = 0, costs[t] / 1.5**1.5
    return best[0], best[1]


def client_round(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, work: Work, first: bool, batch_size: int = 64
) -> int:
    """One client's round: returns the steps taken.

    Args:
        model: the client's copy; it is trained.
        images: [n, C, H, W] in [0, 1].
        labels: [n].
        work: how much.
        first: whether the client takes part for the first time.
        batch_size: of training.
    """
    adam = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.5, 0.9))
    shape, taken, order = images.shape[1:], 0, torch.randperm(len(labels))
    starts = 0

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal order, starts
        if starts >= len(order):
            order, starts = torch.randperm(len(labels)), 0
        rows = order[starts : starts + batch_size]
        starts += batch_size
        return images[rows], labels[rows]

    def found(inputs: torch.Tensor, wanted: torch.Tensor, owner: torch.Tensor, count: int, steps: int) -> tuple:
        start = torch.rand(count, *shape[1:]), torch.rand(count, *shape)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model.eval()
        triggers = search(model, inputs, wanted, owner, start, steps)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model.train()
        return triggers

    def train(
        inputs: torch.Tensor, wanted: torch.Tensor, stamps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    ):
        shown = inputs.clone()
        for rows, mask, pattern in stamps:
            shown[rows] = ((1 - mask) * shown[rows] + mask * pattern).clamp(0, 1)
        adam.zero_grad()
        F.cross_entropy(model(shown), wanted).backward()
        adam.step()

    def half(rows: torch.Tensor) -> torch.Tensor:
        return rows[torch.randperm(len(rows))[: len(rows) // 2]]

    left = work.batches
    for target in range(work.classes if first else 0):
        rows = torch.stack([torch.nonzero(labels == c)[0, 0] for c in range(work.classes) if c != target])
        owner = torch.zeros(len(rows), dtype=torch.long)
        masks, patterns = found(images[rows], torch.full((len(rows),), target), owner, 1, work.universal_steps)
        taken += work.universal_steps
        if left > 0:
            inputs, wanted = batch()
            train(inputs, wanted, [(half(torch.nonzero(wanted != target)[:, 0]), masks[0], patterns[0])])
            taken, left = taken + 1, left - 1
    visits = [(pair, steps) for pair in range(work.pairs) for steps in (work.pair_steps, work.short_steps)]
    masks, patterns = torch.zeros(2, *shape[1:]), torch.zeros(2, *shape)
    for pair, steps in visits:
        source, target = pair % work.classes, (pair + 1) % work.classes
        inputs, wanted = batch()
        mine, theirs = (torch.nonzero(wanted == c)[:, 0] for c in (source, target))
        rows = torch.cat([mine, theirs])
        owner = torch.cat([torch.zeros(len(mine), dtype=torch.long), torch.ones(len(theirs), dtype=torch.long)])
        if steps:
            goal = torch.where(owner == 0, target, source)
            masks, patterns = found(inputs[rows], goal, owner, 2, steps)
            taken += steps
        if left > 0:
            train(inputs, wanted, [(half(mine), masks[0], patterns[0]), (half(theirs), masks[1], patterns[1])])
            taken, left = taken + 1, left - 1
    for _ in range(left):
        train(*batch(), [])
        taken += 1
    return taken
