"""A round of federated training as scripts usually play it, in a process of its own: DataLoader, PIL, plain loops.

    python -m fedjax_spmc.parity.torch_reference.loader_round ROUND.npz sgd|spmc

Reads one line of standard input for each round to play, and answers with the client-steps taken. It is a process of its
own because the loader's workers are forked, which a process that runs JAX must not be.
"""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from .local import make_optimizer, train_sgd, train_spmc
from .model import SimpleCNN

WORKERS = 2


class Augmented(Dataset):  # type: ignore[type-arg]
    """One client's images: PIL for each (pad, crop, mirror), then a normalised tensor."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, facts: dict, seed: int):
        self.images, self.labels, self.padding, self.flip = images, labels, facts["padding"], facts["flip"]
        self.mean, self.std = (np.array(facts[name], np.float32)[:, None, None] for name in ("mean", "std"))
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.images[index])
        width, height = image.size
        if self.padding:
            left, top = self.rng.integers(0, 2 * self.padding + 1, 2)
            image = ImageOps.expand(image, border=self.padding).crop((left, top, left + width, top + height))
        if self.flip and self.rng.random() < 0.5:
            image = ImageOps.mirror(image)
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
        return torch.from_numpy((pixels - self.mean) / self.std), int(self.labels[index])


class Script:
    """The state of the script: a loader for each client, the global model, SPMC's teacher."""

    def __init__(self, path: Path, method: str):
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        self.facts, self.method = json.loads(str(arrays["facts"])), method
        parts = np.split(arrays["indices"], np.cumsum(arrays["sizes"])[:-1])
        self.shares = arrays["sizes"] / arrays["sizes"].sum()
        self.loaders = [
            DataLoader(
                Augmented(arrays["images"][part], arrays["labels"][part], self.facts, seed),
                batch_size=self.facts["batch_size"],
                shuffle=True,
                drop_last=True,
                num_workers=WORKERS,
            )
            for seed, part in enumerate(parts)
        ]
        self.server, self.teacher = SimpleCNN(), SimpleCNN()

    def play(self) -> int:
        """One round; returns the client-steps taken."""
        facts, steps, uploads = self.facts, 0, []
        for loader in self.loaders:
            student = copy.deepcopy(self.server)
            optimizer = make_optimizer(student, facts["lr"], facts["momentum"], facts["weight_decay"])
            for _ in range(facts["epochs"]):
                if self.method == "sgd":
                    steps += train_sgd(student, loader, optimizer)
                else:
                    steps += train_spmc(student, self.teacher, loader, optimizer)
            uploads.append(student.state_dict())
        mean = {
            name: sum(float(w) * one[name] for w, one in zip(self.shares, uploads, strict=True)) for name in uploads[0]
        }
        self.server.load_state_dict(mean)
        return steps


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    script = Script(Path(sys.argv[1]), sys.argv[2])
    print("ready", flush=True)
    for _ in sys.stdin:
        print(script.play(), flush=True)
