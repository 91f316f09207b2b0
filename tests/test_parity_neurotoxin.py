"""The checks of Neurotoxin's golden files on rounds of other shapes and settings, played here by a plain torch loop."""

import numpy as np
import pytest

from fedjax_spmc.parity import walk

torch = pytest.importorskip("torch")
LAYERS = {"a": (5, 7), "b": (7, 6), "c": (6, 4)}
CLIENTS, BATCHES, SIZE, POISONED, EPOCHS, FIRST_BENIGN = 9, 3, 4, 2, 3, 6
TARGET, SEVEN, BOUND = 9, 7, 0.2


def forward(weights, inputs):
    for i, name in enumerate(LAYERS):
        inputs = torch.relu(inputs) if i else inputs
        inputs = inputs @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return inputs


def gradient(weights, inputs, labels):
    copies = {name: x.clone().requires_grad_() for name, x in weights.items()}
    loss = torch.nn.functional.cross_entropy(forward(copies, inputs), labels)
    return dict(zip(copies, torch.autograd.grad(loss, list(copies.values())), strict=True))


def sgd(start, batches, rate, decay, mask=None):
    """The weights after each step."""
    weights, speed, seen = dict(start), {}, []
    for inputs, labels in batches:
        grads = gradient(weights, inputs, labels)
        for name, w in weights.items():
            g = (grads[name] if mask is None else grads[name] * mask[name]) + decay * w
            speed[name] = g if name not in speed else 0.9 * speed[name] + g
            weights = weights | {name: w - rate * speed[name]}
        seen.append(weights)
    return seen


def mask_of(total, ratio, per_tensor):
    groups = [[name] for name in total] if per_tensor else [list(total)]
    mask = {}
    for names in groups:
        flat = torch.cat([total[name].ravel().abs() for name in names])
        kept = torch.zeros_like(flat)
        kept[torch.argsort(flat)[: int(len(flat) * ratio)]] = 1
        for name in names:
            mask[name], kept = kept[: total[name].numel()].view_as(total[name]), kept[total[name].numel() :]
    return mask


def recorded(name: str, seed: int) -> dict[str, np.ndarray]:
    """One run in the format of `neurotoxin_round`."""
    torch.manual_seed(seed)
    start = {}
    for layer, (taken, made) in LAYERS.items():
        classes = 10 if layer == "c" else made
        start[f"{layer}.weight"] = 0.5 * torch.randn(classes, taken)
        start[f"{layer}.bias"] = 0.1 * torch.randn(classes)
    x, y = torch.randn(CLIENTS, BATCHES, SIZE, 5), torch.randint(0, 10, (CLIENTS, BATCHES, SIZE))
    poisoned, picks, readers = torch.randn(POISONED, SIZE, 5), [4, 2, 5], [3, 1, 5]
    rates, decay = [0.05, 0.03, 0.03], 0.0 if "nowd" in name else 0.005
    out = {"X": x, "Y": y, "PX": poisoned, "lrs": torch.tensor(rates, dtype=torch.float64),
           "clean_pick_per_internal_epoch": torch.tensor(picks)}  # fmt: skip
    mask = None
    if not name.startswith("baseline"):
        out["mask_participants"] = torch.tensor(readers)
        total = {key: torch.zeros_like(w) for key, w in start.items()}
        for client in readers:
            for b in range(BATCHES):
                total = {key: total[key] + g for key, g in gradient(start, x[client, b], y[client, b]).items()}
        mask = mask_of(total, 0.9, "layer" in name)
        for key in start:
            out |= {f"maskgrad/{key}": total[key], f"mask/{key}": mask[key].to(torch.uint8)}
    batches = []
    for client in picks:
        for b in range(min(POISONED, BATCHES)):
            labels = torch.where(y[client, b] == SEVEN, TARGET, y[client, b])
            both = torch.cat([torch.full((SIZE,), TARGET), labels])
            batches.append((torch.cat([poisoned[b], x[client, b]]), both))
    steps = sgd(start, batches, rates[0], decay, mask)
    local = [steps[-1]]
    for rate, client in zip(rates[1:], (FIRST_BENIGN, FIRST_BENIGN + 1), strict=True):
        local.append(sgd(start, [(x[client, b], y[client, b]) for b in range(BATCHES)] * 2, rate, 5e-4)[-1])
    sums = {key: torch.zeros_like(w) for key, w in start.items()}
    for k, weights in enumerate(local):
        moved = {key: start[key] - w for key, w in weights.items()}
        length = torch.sqrt(sum((d**2).sum() for d in moved.values()))
        cut = {key: d / max(1.0, float(length) / BOUND) for key, d in moved.items()}
        sums = {key: sums[key] - d for key, d in cut.items()}
        out[f"clip{k}/l2"] = length
        for key in start:
            out |= {f"clip{k}/pre/{key}": moved[key], f"clip{k}/post/{key}": cut[key]}
    for key, w in start.items():
        out[f"global0/{key}"] = w
        out[f"attacker_params_after_step/{key}"] = torch.stack([steps[i][key] for i in (0, 1, len(steps) - 1)])
        out[f"benign{FIRST_BENIGN}_params_final/{key}"] = local[1][key]
        out |= {f"accum/{key}": sums[key], f"global1/{key}": w + sums[key] / 3}
    return {f"{name}/{key}": array.numpy() for key, array in out.items()}


@pytest.mark.slow
def test_rounds_of_other_shapes_pass_and_a_changed_mask_does_not(tmp_path):
    names = ("nt_layer90_nowd", "baseline_noratio")
    arrays = {key: array for seed, name in enumerate(names) for key, array in recorded(name, seed).items()}
    np.savez(tmp_path / "neurotoxin_round.npz", **arrays, **{"nt_global90_bn/X": np.zeros(1)})
    verdicts = {one.check.removeprefix("attack round "): one for one in walk(tmp_path)}
    assert [verdicts[name].reason for name in names] == ["", ""]
    assert {verdicts[name].verdict for name in names} == {"passed"}
    assert verdicts["nt_global90_bn"].verdict == "skipped"
    assert "batch statistics" in verdicts["nt_global90_bn"].reason
    key = "nt_layer90_nowd/mask/b.weight"
    kept = {name: array for name, array in arrays.items() if name.startswith("nt_layer90")}
    np.savez(tmp_path / "neurotoxin_round.npz", **kept | {key: 1 - arrays[key]})
    (one,) = walk(tmp_path)
    assert one.verdict == "failed"
    assert "mask b.weight is off by 1" in one.reason
