"""The networks in torch.

SimpleCNN, 92,626 parameters for 10 classes: two 5x5 convolutions with pools, then 400-120-84-84-256-10. ResNet: a 3x3
stem, four stages of basic blocks with 1, 2, 4, 8 times `width` channels, average pool, linear layer. CNN with dropout,
1,626,442 parameters: two 3x3 convolutions, one pool, 12544-128-10.
"""

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


def cnn_dropout(num_classes: int = 10) -> nn.Sequential:
    """Images [B, 3, 32, 32] -> logits [B, classes]; torch's default initialisation."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(64 * 14 * 14, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )


def _conv3x3(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and the shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = _conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3x3(outputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]."""
        x = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(x)) + self.shortcut(images))


class ResNet(nn.Module):
    """Images [B, 3, H, W] -> logits [B, classes]; `blocks` in each of the four stages."""

    def __init__(self, blocks: tuple[int, ...] = (1, 1, 1, 1), width: int = 64, num_classes: int = 10):
        super().__init__()
        self.conv1 = _conv3x3(3, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            layers = []
            for index in range(count):
                layers.append(Block(channels, outputs, 2 if stage > 0 and index == 0 else 1))
                channels = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = F.relu(self.bn1(self.conv1(images)))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean(dim=(2, 3)))
