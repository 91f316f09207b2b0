"""Rounds of plain averaging in torch, shared by forked processes of one thread each: what a careful user starts.

    python -m fedjax_spmc.parity.torch_reference.forked_rounds CLIENTS IMAGES BATCH RATE PROCESSES

The network is the CNN with dropout (`model.cnn_dropout`). The images of all clients of a round lie in memory that the
processes share, float32, ready for the network. Each process trains its share of the clients one after another (SGD
without momentum, one epoch of shuffled batches) and adds their models up in shared memory; the parent adds the sums,
divides, and the next round begins from there. "ready" says that it is; each line of input is a round, whose steps it
answers.
"""

import copy
import sys
from collections.abc import Sequence

import torch
from torch import multiprocessing, nn

from fedjax_spmc.parity.torch_reference.local import make_optimizer, train_sgd
from fedjax_spmc.parity.torch_reference.model import cnn_dropout

Examples = tuple[torch.Tensor, torch.Tensor]
"""Images [clients, images, C, H, W] and labels [clients, images]."""


def train_share(
    server: nn.Module, clients: Sequence[int], examples: Examples, batch: int, rate: float, total: list[torch.Tensor]
) -> int:
    """Trains some clients and writes the sum of their models into `total`; returns the client-steps taken."""
    steps, (images, labels) = 0, examples
    for tensor in total:
        tensor.zero_()
    for client in clients:
        student = copy.deepcopy(server).train()
        order = torch.randperm(images.shape[1]).split(batch)
        batches = ((images[client, chosen], labels[client, chosen]) for chosen in order)
        steps += train_sgd(student, batches, make_optimizer(student, rate, 0.0, 0.0))
        for tensor, trained in zip(total, student.state_dict().values(), strict=True):
            tensor.add_(trained)
    return steps


def put_mean(server: nn.Module, totals: Sequence[list[torch.Tensor]], clients: int) -> None:
    """The mean of so many clients, whose sums each process has, becomes the server's model."""
    for tensor, *parts in zip(server.state_dict().values(), *totals, strict=True):
        tensor.copy_(sum(parts[1:], parts[0]) / clients)


class Script:
    """The workers, alive from round to round."""

    def __init__(self, clients: int, images: int, batch: int, rate: float, processes: int):
        self._clients = clients
        self._server = cnn_dropout().share_memory()
        pixels = torch.randn(clients, images, 3, 32, 32).share_memory_()
        labels = torch.randint(0, 10, (clients, images)).share_memory_()
        context = multiprocessing.get_context("fork")
        self._totals, self._pipes = [], []
        for number in range(processes):
            share = range(number, clients, processes)
            total = [torch.zeros_like(tensor).share_memory_() for tensor in self._server.state_dict().values()]
            mine, yours = context.Pipe()
            work = (self._server, share, (pixels, labels), batch, rate, total)
            context.Process(target=_serve, args=(yours, number, work), daemon=True).start()
            self._totals.append(total)
            self._pipes.append(mine)

    def play(self) -> int:
        """One round; returns the client-steps taken."""
        for pipe in self._pipes:
            pipe.send(True)
        steps = sum(pipe.recv() for pipe in self._pipes)
        put_mean(self._server, self._totals, self._clients)
        return steps


def _serve(pipe, number, work) -> None:
    torch.manual_seed(1 + number)
    while pipe.recv():
        pipe.send(train_share(*work))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)  # before the fork, so that no process waits for threads that it does not have
    numbers = sys.argv[1:]
    script = Script(int(numbers[0]), int(numbers[1]), int(numbers[2]), float(numbers[3]), int(numbers[4]))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(script.play(), flush=True)
