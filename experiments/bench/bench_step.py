"""Milliseconds per client-step: this simulator against a plain torch loop over clients.

    python experiments/bench/bench_step.py [--model=simple_cnn] [--methods=sgd,spmc] [--repeats=7] [--threads=2]
                                           [--json]

Same model, same batches, SGD with momentum 0.9 and weight decay 1e-5, no augmentation. Both draw shuffled batches from
random images in memory; ours are uint8 and are normalised inside the step, torch's are float32 and ready. Ours is the
whole round, server included, on one CPU device per core; torch's is local training alone. They run in turn in one
process (torch on --threads); the medians are compared.

simple_cnn: 92,626 parameters, 10 clients of 640 images, batch 64, 2 epochs. lenet: a user's network in plain Flax
(`lenet.py`: `nn.Conv`, `nn.max_pool`, `nn.Dense`, NHWC), 10 clients of 320 images, batch 32, 1 epoch; beside it
`library`, the same with `as_model(..., fast_forms=False)`. mnist_net and emnist_cnn (28x28x1): 10 clients of 640, batch
64. resnet10, resnet18_thin, resnet9 (28x28x1, 62 classes): 2 clients of 640 images, batch 64, 1 epoch.

gflop, mb: of the products in the gradients of one step of ours, in the form that it computes, and what they read and
write (`counting.py`); gflops: the first by the time of a whole client-step.

--toy takes two batches of 4 images for each of two clients: a check of the bench, its times mean nothing.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import counting
import single

from fedjax_spmc import config as configs
from fedjax_spmc import devices
from fedjax_spmc.command import Flags, Parser, run_command
from fedjax_spmc.config import make_config
from fedjax_spmc.options import Option, Range
from fedjax_spmc.parity.torch_reference.flip import MnistNet
from fedjax_spmc.parity.torch_reference.local import make_optimizer, train_sgd, train_spmc
from fedjax_spmc.parity.torch_reference.model import EmnistCNN, ResNet, ResNet9, SimpleCNN, lenet

METHODS = {"sgd": "fedavg", "spmc": "spmc"}
GREY = (28, 28, 1)


class Workload(NamedTuple):
    """One model and how much it trains in a repetition.

    Attributes:
        torch_model: the same network in torch.
        clients, images, epochs, batch: how many clients, images of each, local epochs, images of a batch.
        shape: of an image, (H, W, C).
        classes: different labels.
        plugins: modules that register the model where it is none of the package's.
    """

    torch_model: Callable[[], torch.nn.Module]
    clients: int
    images: int = 640
    epochs: int = 1
    batch: int = 64
    shape: tuple[int, int, int] = (32, 32, 3)
    classes: int = 10
    plugins: tuple[str, ...] = ()


WORKLOADS = {
    "simple_cnn": Workload(SimpleCNN, 10, epochs=2),
    "lenet": Workload(lenet, 10, images=320, batch=32, plugins=("lenet",)),
    "mnist_net": Workload(MnistNet, 10, shape=GREY),
    "emnist_cnn": Workload(EmnistCNN, 10, shape=GREY),
    "resnet10": Workload(ResNet, 2),
    "resnet18_thin": Workload(lambda: ResNet((2, 2, 2, 2), 32), 2),
    "resnet9": Workload(lambda: ResNet9(62), 2, shape=GREY, classes=62),
}
TOY = {"clients": 2, "images": 8, "epochs": 1, "batch": 4}


def ours(model: str, work: Workload, method: str, fast_forms: bool = True) -> single.Rounds:
    """A function that plays one round of this simulator and returns the client-steps taken."""
    config = make_config(METHODS[method], data__name="synthetic")
    for path, value in {
        "plugins": work.plugins,
        "model.name": model,
        "data.val_fraction": 0.0,
        "data.augment": False,
        "partition.name": "iid",
        "partition.min_size": 1,
        "attack.name": "none",
        "local.epochs": work.epochs,
        "local.batch_size": work.batch,
        "federation.num_clients": work.clients,
        "federation.clients_per_round": work.clients,
    }.items():
        configs.set_field(config, path, value)
    if not fast_forms:
        configs.set_field(config, "model.options.fast_forms", False)
    dataset = single.made_up(work.clients * work.images, work.shape, work.classes)
    return single.Rounds(configs.resolve(config), dataset)


def theirs(work: Workload, method: str) -> Callable[[], int]:
    """The same work as a plain torch loop."""
    torch.manual_seed(0)
    height, width, channels = work.shape
    images = torch.randn(work.clients * work.images, channels, height, width)
    labels = torch.randint(0, work.classes, (work.clients * work.images,))
    server, teacher = work.torch_model(), work.torch_model()

    def batches(client: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(work.epochs):
            order = client * work.images + torch.randperm(work.images)
            for chosen in order.split(work.batch):
                yield images[chosen], labels[chosen]

    def run() -> int:
        steps = 0
        for client in range(work.clients):
            student = copy.deepcopy(server)
            optimizer = make_optimizer(student, 0.01, 0.9, 1e-5)
            if method == "sgd":
                steps += train_sgd(student, batches(client), optimizer)
            else:
                steps += train_spmc(student, teacher, batches(client), optimizer)
        return steps

    return run


def measure(model: str, work: Workload, method: str, repeats: int) -> tuple[dict[str, float], tuple[float, float]]:
    """Contestant -> median milliseconds per client-step, taken in turn, the first of each not counted.

    Returns:
        these, and FLOPs and bytes of the products of a step of ours.
    """
    mine = ours(model, work, method)
    runs = {"ours": mine, "torch": theirs(work, method)}
    if work.plugins:
        runs["library"] = ours(model, work, method, fast_forms=False)
    seconds, steps = single.in_turn(runs, repeats)
    federation = mine.experiment.federation
    step = counting.traced_step(federation.model, federation.rule, work.batch)
    return {name: value / steps[name] * 1e3 for name, value in seconds.items()}, step


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser("", __doc__)
    parser.flag(Option("--model", str, "simple_cnn", choices=tuple(WORKLOADS)), "NAME", "the network")
    parser.flag(Option("--methods", tuple, tuple(METHODS), choices=tuple(METHODS)), "NAME,...", "which methods")
    parser.flag(Option("--repeats", int, 7, range=Range(1, 10**9)), "N", "counted repetitions of each")
    parser.flag(
        Option("--threads", int, 2, range=Range(1, 10**9)), "N", "threads of torch; for one, pin the process too"
    )
    parser.switch("--toy", "a check of the bench: tiny batches")
    parser.switch("--json", "prints one line of JSON")
    return run_command(parser, _bench, arguments)


def _bench(flags: Flags) -> int:
    torch.set_num_threads(flags["threads"])
    devices.use_cores()
    work = WORKLOADS[flags["model"]]
    work = work._replace(**TOY) if flags["toy"] else work
    results: dict[str, float] = {}
    for method in flags["methods"]:
        ms, (flops, moved) = measure(flags["model"], work, method, flags["repeats"])
        ratio = ms["torch"] / ms["ours"]
        results |= {f"ms_{method}": ms["ours"], f"torch_ms_{method}": ms["torch"], f"ratio_{method}": ratio}
        words = (
            f"{method:<5} ours {ms['ours']:6.2f} ms   torch {ms['torch']:6.2f} ms per client-step   ratio {ratio:5.2f}"
        )
        counted = {"gflop": flops / 1e9, "mb": moved / 1e6, "gflops": flops / ms["ours"] / 1e6}
        results |= {f"{name}_{method}": value for name, value in counted.items()}
        words += "   a step: " + "   ".join(f"{name} {value:.3g}" for name, value in counted.items())
        if "library" in ms:
            ratio = ms["torch"] / ms["library"]
            results |= {f"library_ms_{method}": ms["library"], f"library_ratio_{method}": ratio}
            words += f"   without fast forms {ms['library']:6.2f} ms   ratio {ratio:5.2f}"
        if not flags["json"]:
            print(words, flush=True)
    if flags["json"]:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
