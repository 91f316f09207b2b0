"""SimpleCNN in torch, 92,626 parameters for 10 classes: two 5x5 convolutions with pools, then 400-120-84-84-256-10."""

import torch
from torch import nn
from torch.nn import functional as F


class SimpleCNN(nn.Module):
    """Images [B, 3, 32, 32] -> logits [B, classes]."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.l1 = nn.Linear(84, 84)
        self.l2 = nn.Linear(84, 256)
        self.cls = nn.Linear(256, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = F.relu(self.l1(x))
        return self.cls(self.l2(x))
