"""Aggregators as one writes them down in NumPy: whole matrices, no care for absent clients or odd input.

Each takes the global model g [D], the clients' models w [K, D] and their numbers of examples [K], all float32, and
returns the new model [D]. Options are the defaults of the package; randomised rules draw from NumPy's generator.
Rules that train or evaluate on the server are left out: their time is that of the network, not of the rule.
"""

from collections.abc import Callable

import numpy as np

Array = np.ndarray
Rule = Callable[[Array, Array, Array], Array]


def pairwise_squared(points: Array) -> Array:
    centred = points - points.mean(axis=0)
    squares = (centred**2).sum(axis=1)
    return np.maximum(squares[:, None] + squares[None, :] - 2 * centred @ centred.T, 0)


def mean(g: Array, w: Array, sizes: Array) -> Array:
    return sizes / sizes.sum() @ w


def spmc(g: Array, w: Array, sizes: Array) -> Array:
    total, count = w.sum(axis=0), len(w)
    cosines = np.zeros(count, np.float32)
    for k in range(count):
        others = (total - w[k]) / (count - 1)
        cosines[k] = w[k] @ others / (np.linalg.norm(w[k]) * np.linalg.norm(others) + 1e-5)
    weights = np.exp(cosines - cosines.max())
    return weights / weights.sum() @ w


def median(g: Array, w: Array, sizes: Array) -> Array:
    return np.median(w, axis=0)


def trimmed_mean(g: Array, w: Array, sizes: Array) -> Array:
    cut = (len(w) - 3) // 2
    return np.sort(w, axis=0)[cut : len(w) - cut].mean(axis=0)


def krum_scores(squared: Array, attackers: int) -> Array:
    nearest = np.sort(squared + np.diag(np.full(len(squared), np.inf)), axis=1)
    return nearest[:, : len(squared) - attackers - 2].sum(axis=1)


def krum(g: Array, w: Array, sizes: Array) -> Array:
    return w[krum_scores(pairwise_squared(w), (len(w) - 3) // 2).argmin()]


def multi_krum(g: Array, w: Array, sizes: Array) -> Array:
    attackers = (len(w) - 3) // 2
    order = np.argsort(krum_scores(pairwise_squared(w), attackers), kind="stable")
    return w[order[: len(w) - attackers]].mean(axis=0)


def bulyan(g: Array, w: Array, sizes: Array) -> Array:
    attackers = (len(w) - 3) // 4
    theta, squared, left, chosen = len(w) - 2 * attackers, pairwise_squared(w), list(range(len(w))), []
    for _ in range(theta):
        among = squared[np.ix_(left, left)] + np.diag(np.full(len(left), np.inf))
        count = max(min(len(left) - attackers - 2, len(left) - 1), min(len(left) - 1, 1))
        scores = np.sort(among, axis=1)[:, :count].sum(axis=1)
        chosen.append(left.pop(int(scores.argmin())))
    selected = w[chosen]
    gaps = np.abs(selected - np.median(selected, axis=0))
    nearest = np.argsort(gaps, axis=0, kind="stable")[: theta - 2 * attackers]
    return np.take_along_axis(selected, nearest, axis=0).mean(axis=0)


def dnc(g: Array, w: Array, sizes: Array) -> Array:
    updates, count = w - g, len(w)
    attackers, rng, good = (count - 1) // 2, np.random.default_rng(0), np.ones(count, bool)
    for _ in range(5):
        some = updates[:, rng.permutation(updates.shape[1])[:10_000]]
        centred = some - some.mean(axis=0)
        direction = np.linalg.svd(centred, full_matrices=False)[2][0]
        order = np.argsort((centred @ direction) ** 2)
        good[order[count - attackers :]] = False
    return g + updates[good].mean(axis=0) if good.any() else g


def rfa(g: Array, w: Array, sizes: Array) -> Array:
    alpha = sizes / sizes.sum()
    weights = alpha
    for _ in range(3):
        center = weights @ w
        weights = alpha / np.maximum(np.linalg.norm(w - center, axis=1), 1e-6)
        weights = weights / weights.sum()
    return weights @ w


def rlr(g: Array, w: Array, sizes: Array) -> Array:
    updates = w - g
    agreed = np.abs(np.sign(updates).sum(axis=0)) >= (len(w) - 1) // 2 + 1
    return g + np.where(agreed, 1, -1) * (sizes / sizes.sum() @ updates)


def rsa(g: Array, w: Array, sizes: Array) -> Array:
    return g - 0.02 * (0.07 * np.sign(g - w).sum(axis=0) + 0.01 * g)


def crfl(g: Array, w: Array, sizes: Array) -> Array:
    model = sizes / sizes.sum() @ w
    model = model / max(1.0, float(np.linalg.norm(model)) / 30.0)
    return model + 0.01 * np.random.default_rng(0).standard_normal(len(g), np.float32)


def foolsgold(g: Array, w: Array, sizes: Array) -> Array:
    history = w - g  # of the first round
    unit = history / np.linalg.norm(history, axis=1, keepdims=True)
    cosines = unit @ unit.T - np.eye(len(w))
    largest = cosines.max(axis=1)
    ratio = largest[:, None] / largest[None, :]
    cosines = np.where(largest[:, None] < largest[None, :], cosines * ratio, cosines)
    rates = np.clip(1 - cosines.max(axis=1), 0, None)
    rates = rates / rates.max()
    with np.errstate(divide="ignore"):
        rates = np.clip(np.log(rates / (1 - rates)) + 0.5, 0, 1)
    return g + rates / rates.sum() @ history


def clipped(updates: Array, bound: float) -> Array:
    norms = np.linalg.norm(updates, axis=1)
    return np.minimum(1, bound / norms)[:, None] * updates


def norm_clip(g: Array, w: Array, sizes: Array) -> Array:
    updates = w - g
    return g + clipped(updates, float(np.median(np.linalg.norm(updates, axis=1)))).mean(axis=0)


def centered_clip(g: Array, w: Array, sizes: Array) -> Array:
    updates, center = w - g, np.zeros_like(g)
    for _ in range(3):
        gaps = updates - center
        center = center + clipped(gaps, float(np.median(np.linalg.norm(gaps, axis=1)))).mean(axis=0)
    return g + center


def multi_metrics(g: Array, w: Array, sizes: Array) -> Array:
    updates = w - g
    cosines = w @ g / (np.linalg.norm(w, axis=1) * np.linalg.norm(g))
    features = np.stack([np.abs(updates).sum(axis=1), np.linalg.norm(updates, axis=1), cosines], axis=1)
    sums = np.abs(features[:, None] - features[None]).sum(axis=1)
    inverse = np.linalg.pinv(np.cov(sums.T))
    scores = np.einsum("ki,ij,kj->k", sums, inverse, sums)
    kept = np.argsort(scores, kind="stable")[: max(1, int(0.3 * len(w) + 1e-4))]
    return sizes[kept] / sizes[kept].sum() @ w[kept]


def fedcpa(g: Array, w: Array, sizes: Array) -> Array:
    updates, count = w - g, max(10, len(g) // 100)
    importance = np.abs(updates * w)  # biases too, which the paper leaves out
    scores = np.zeros(len(w))
    for signed in (importance, -importance):
        lists = np.argsort(-signed, axis=1)[:, :count]
        for i in range(len(w)):
            for j in range(i):
                common, mine, theirs = np.intersect1d(lists[i], lists[j], assume_unique=True, return_indices=True)
                n = len(common)
                gaps = np.argsort(np.argsort(mine)) - np.argsort(np.argsort(theirs))
                spearman = 1 - 6 * (gaps**2).sum() / (n * (n * n - 1)) if n > 1 else 0.0
                scores[[i, j]] += (n / (2 * count - n) + (spearman + 1) / 2) / (2 * len(w))
    scaled = np.clip((scores - scores.min()) / (scores.max() - scores.min()), 0.01, 0.99)
    factors = np.clip(np.log(scaled / (1 - scaled)) + 0.5, 0, 1)
    return g + factors.astype(np.float32) @ updates / (factors > 0).sum()


def signguard(g: Array, w: Array, sizes: Array) -> Array:
    from sklearn.cluster import MeanShift, estimate_bandwidth

    updates = w - g
    norms = np.linalg.norm(updates, axis=1)
    middle = float(np.median(norms))
    usual = (norms >= 0.1 * middle) & (norms <= 3 * middle)
    some = updates[:, np.random.default_rng(0).permutation(len(g))[: round(0.1 * len(g))]]
    statistics = np.stack([(some > 0).mean(axis=1), (some == 0).mean(axis=1), (some < 0).mean(axis=1)], axis=1)
    labels = MeanShift(bandwidth=estimate_bandwidth(statistics, quantile=0.5)).fit_predict(statistics)
    trusted = usual & (labels == np.bincount(labels).argmax())
    return g + clipped(updates[trusted], middle).mean(axis=0)


def flame(g: Array, w: Array, sizes: Array) -> Array:
    from sklearn.cluster import HDBSCAN

    unit = w / np.linalg.norm(w, axis=1, keepdims=True)
    distances = np.clip(1 - unit @ unit.T, 0, None).astype(np.float64)
    clusters = HDBSCAN(
        min_cluster_size=len(w) // 2 + 1, min_samples=1, metric="precomputed", allow_single_cluster=True, copy=True
    )
    admitted = clusters.fit_predict(distances) >= 0
    updates = w - g
    bound = float(np.median(np.linalg.norm(updates, axis=1)))
    noise = np.random.default_rng(0).standard_normal(len(g), np.float32)
    return g + clipped(updates[admitted], bound).mean(axis=0) + 0.001 * bound * noise


RULES: dict[str, Rule] = {
    "mean": mean, "spmc": spmc, "median": median, "trimmed_mean": trimmed_mean, "krum": krum, "multi_krum": multi_krum,
    "bulyan": bulyan, "dnc": dnc, "rfa": rfa, "rlr": rlr, "rsa": rsa, "crfl": crfl, "foolsgold": foolsgold,
    "norm_clip": norm_clip, "centered_clip": centered_clip, "multi_metrics": multi_metrics, "signguard": signguard,
    "flame": flame, "fedcpa": fedcpa,
}  # fmt: skip
"""Name of an aggregator -> its plain statement."""

NOT_THE_SAME = ("dnc", "crfl", "signguard", "flame", "fedcpa")
"""Rules whose result depends on draws of their own, and FedCPA, which here sees the biases too."""
