"""The networks in torch.

SimpleCNN, 92,626 parameters for 10 classes: two 5x5 convolutions with pools, then 400-120-84-84-256-10. ResNet: a 3x3
stem, four stages of basic blocks with 1, 2, 4, 8 times `width` channels, average pool, linear layer. CNN with dropout,
1,626,442 parameters: two 3x3 convolutions, one pool, 12544-128-10. EMNIST CNN, ResNet-9: those of Neurotoxin's code for
EMNIST digits and byclass. LeNet: 5x5x16 and 5x5x32 with pools, 800-120-84-10. MnistNet is in `flip.py`.
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


class EmnistCNN(nn.Module):
    """Images [B, 1, side, side] -> logits [B, 10]; dropout of channels, then of units."""

    def __init__(self, side: int = 28):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.dropout1, self.dropout2 = nn.Dropout2d(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(64 * ((side - 4) // 2) ** 2, 128), nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.dropout1(F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(images)))), 2))
        return self.fc2(self.dropout2(F.relu(self.fc1(x.flatten(1)))))


class ResNet9(nn.Module):
    """Images [B, 1, H, W] -> logits [B, classes]; the last pool takes the whole map.

    Its tensors are registered in the order of the code's: the convolutions, then the linear layer.
    """

    def __init__(self, num_classes: int = 62):
        super().__init__()
        widths = [(1, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
        self.convs = nn.ModuleList(_conv3x3(inputs, outputs, 1) for inputs, outputs in widths)
        self.linear = nn.Linear(512, num_classes, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        prep, layer1, res1, res2, layer2, layer3, res3, res4 = self.convs
        x = F.max_pool2d(F.relu(layer1(F.relu(prep(images)))), 2)
        x = x + F.relu(res2(F.relu(res1(x))))
        x = F.max_pool2d(F.relu(layer3(F.max_pool2d(F.relu(layer2(x)), 2))), 2)
        x = x + F.relu(res4(F.relu(res3(x))))
        return self.linear(F.max_pool2d(x, x.shape[2:]).flatten(1)) * 0.125


def lenet(num_classes: int = 10) -> nn.Sequential:
    """Images [B, 3, 32, 32] -> logits [B, classes]."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )
