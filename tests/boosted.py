"""Uploads of which one, a tight group, or both are long, and what the rules must choose of them, in float64 NumPy."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.test_fedcpa_code import code_importances, code_scores
from tests.test_rules_cluster import flame_keeps
from tests.test_rules_direction import centered_clip_statement, foolsgold_statement
from tests.test_rules_server import similarity64
from tests.test_spmc import numpy_spmc
from tests.uploads import flat

GROUPS = {"one": [], "few": [1, 6, 8], "both": [1, 6], "most": [0, 1, 2, 3, 5, 6, 7, 8]}
"""The tight group of each kind; in "one" and "both" a single upload, row 4, is long too."""


class Seen(NamedTuple):
    """An upload, and in float64 the vectors and sizes of its clients."""

    upload: Any
    start: np.ndarray
    models: np.ndarray
    updates: np.ndarray
    sizes: np.ndarray


def seen(upload) -> Seen:
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(upload.client_params)]
    start = flat(upload.global_params).astype(np.float64)
    models = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    return Seen(upload, start, models, models - start, np.asarray(upload.num_examples, np.float64))


@functools.cache
def boosted(kind: str, boost: float, spread: float, seed: int, clients: int, apart: float, make: Any) -> Seen:
    """Benign uploads around a common step of 0.5, and those of a group elsewhere.

    Args:
        kind: of `GROUPS`; in "both" the single upload is 10^4 times as long.
        boost: how many times as long the group is, or the single upload.
        spread: of the benign uploads.
        seed: of all draws.
        clients: K.
        apart: how far the group's lie from each other, against their length.
        make: what makes the benign uploads.
    """
    upload, rng = make(clients, seed=seed, spread=spread), np.random.default_rng(seed + 100)

    def changed(rows, start):
        start = np.asarray(start, np.float64)
        updates = np.asarray(rows, np.float64) - start
        if kind in ("one", "both"):
            updates[4] *= boost if kind == "one" else 1e4
        direction = 0.5 * rng.normal(size=start.shape)
        for row in GROUPS[kind]:
            updates[row] = boost * (direction + apart * rng.normal(size=start.shape))
        return jnp.asarray(start + updates, jnp.float32)

    return seen(upload._replace(client_params=jax.tree.map(changed, upload.client_params, upload.global_params)))


def distances(rows):
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def share(raw):
    return raw / raw.sum() if raw.any() else raw


def everybody(case):
    return np.ones(len(case.models), bool)


def krum_scores(gaps, attackers):
    """Sums of the n - f - 2 least squares of a row of distances, but for the row's own 0."""
    return np.square(np.sort(gaps, axis=1)[:, 1 : max(len(gaps) - attackers - 1, 2)]).sum(axis=1)


def krum(case, count):
    return krum_scores(distances(case.models), (len(case.models) - 3) // 2), count


def medoids(case, count, swapped=False):
    """The SPMC code's, which may swap the scores of the first two."""
    scores = distances(case.models).sum(axis=1)
    return scores[[1, 0, *range(2, len(scores))]] if swapped else scores, count


def bulyan(case):
    gaps, left, attackers = distances(case.models), list(range(len(case.models))), (len(case.models) - 3) // 4
    for _ in range(len(left) - 2 * attackers):
        left.pop(np.argmin(krum_scores(gaps[np.ix_(left, left)], attackers)))
    return ~np.isin(np.arange(len(case.models)), left)


def bulyan_code(case):
    """Repeated medoids, but for the last two of an even number of clients."""
    gaps, left = distances(case.models), list(range(len(case.models)))
    while len(left) > 2:
        left.remove(min(left, key=lambda row: gaps[row, left].sum()))
    return ~np.isin(np.arange(len(case.models)), left)


def projections(rows, dropped):
    """DnC's."""
    centred = rows - rows.mean(axis=0)
    return (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2, len(rows) - dropped


def foolsgold(case):
    return share(foolsgold_statement(case.updates))


def foolsgold_code(case):
    """The SPMC code's, whose cosines see as many coordinates as there are clients."""
    count = len(case.updates)
    updates = case.updates / (np.linalg.norm(case.updates, axis=1, keepdims=True) + 0.1)
    similarity = 1 - np.square(distances(unit(updates[:, :count]))) / 2 - np.eye(count)
    largest = similarity.max(axis=1) + 1e-5
    similarity *= np.minimum(largest[:, None] / largest[None], 1)
    rates = np.clip(1 - similarity.max(axis=1), 0, 1)
    rates = np.where(rates == rates.max(), 0.99, rates / rates.max())
    return share(np.clip(np.log(rates / (1 - rates) + 1e-5) + 0.5, 0, 1))


def multi_metrics(case):
    cosines = np.square(unit(case.models) - unit(case.start)).sum(axis=1) / 2
    lengths = [np.abs(case.updates).sum(axis=1), np.linalg.norm(case.updates, axis=1), cosines]
    scores = whitened(np.stack(lengths, axis=1))
    return scores, int(0.3 * len(case.models)), 1e-3 * scores.max()


def whitened(features):
    """Multi-Metrics' scores, in which axes below a millionth of the longest do not count."""
    sums = np.abs(features[:, None] - features[None]).sum(axis=1)
    sums /= sums.std(axis=0, ddof=1)
    singular, axes = np.linalg.svd(sums - sums.mean(axis=0), full_matrices=False)[1:]
    inverse = np.where(singular > 1e-6 * singular[0], 1 / singular, 0)
    return np.linalg.norm(sums @ axes.T * inverse, axis=1) * np.sqrt(len(sums) - 1)


def weiszfeld(points, alpha, nu=1e-6, start="mean"):
    """RFA's weights after three steps."""
    center = alpha @ points if start == "mean" else np.zeros_like(points[0])
    for _ in range(3):
        weights = share(alpha / np.maximum(np.linalg.norm(points - center, axis=1), nu))
        center = weights @ points
    return weights


def rfa_code(case):
    sizes = [leaf.size for leaf in jax.tree.leaves(case.upload.global_params)]
    pieces = np.split(case.updates, np.cumsum(sizes)[:-1], axis=1)
    return sum(n * weiszfeld(x, share(case.sizes), 1e-5) for n, x in zip(sizes, pieces, strict=True)) / sum(sizes)


def fdcr(case):
    """Who is not in the cluster of first neighbours that is farthest from the mean."""
    fisher = seen(case.upload._replace(client_params=case.upload.extras["fisher"])).models
    low, high = fisher.min(axis=1, keepdims=True), fisher.max(axis=1, keepdims=True)
    weighted = -case.updates / 0.01 * (fisher - low) / (high - low)
    values = np.linalg.norm(weighted - share(case.sizes) @ weighted + 1e-6, axis=1)
    labels = np.arange(len(values))
    for row, nearest in enumerate((np.abs(values[:, None] - values) + np.diag(np.inf + 0 * values)).argmin(axis=1)):
        labels[labels == labels[nearest]] = labels[row]
    means = [values[labels == label].mean() for label in labels]
    return means < max(means) if len(set(labels)) > 1 else everybody(case)


def layer_weights(case):
    """The linear and the convolution layer of models, in float32, and those of the global model."""
    chosen = (case.upload.client_params, case.upload.global_params)
    models, start = ([np.asarray(tree[name]) for name in ("conv", "head")] for tree in chosen)
    return np.concatenate([x.reshape(len(x), -1) for x in models], axis=1), np.concatenate([x.ravel() for x in start])


def multipliers(scores):
    """FedCPA's, scaled to sum 1; alike where nothing tells the clients apart."""
    if np.ptp(scores) < 1e-6:
        return share(np.ones(len(scores)))
    scaled = np.clip((scores - scores.min()) / np.ptp(scores), 0, 1)
    scaled = np.where(scaled == 1, 0.99, np.where(scaled == 0, 0.01, scaled))
    return share(np.clip(np.log(scaled / (1 - scaled)) + 0.5, 0, 1))


def fedcpa(case):
    models, start = (x.astype(np.float64) for x in layer_weights(case))
    moved = np.abs((models - start) * models)
    return multipliers(np.array([sum(similarity64(a, b, 10) for b in moved) for a in moved]) / len(moved))


def fedcpa_code(case):
    importances = code_importances(*layer_weights(case))
    return multipliers(code_scores(importances, importances.shape[1] // 2))


def flame(case, points):
    return flame_keeps(points, everybody(case))[0]


def signguard(case, positions, alike):
    """`alike` finds the largest cluster of sign statistics, which no boost changes."""
    lengths, signs = np.linalg.norm(case.updates, axis=1), np.sign(case.updates[:, positions])
    points = np.stack([(signs == sign).mean(axis=1) for sign in (1, 0, -1)], axis=1)
    usual = (lengths >= 0.1 * np.median(lengths)) & (lengths <= 3 * np.median(lengths))
    return usual & alike(tuple(map(tuple, points)))


@functools.cache
def largest_mode(points):
    """By mean shift with a flat kernel, as wide as half of the points are far on average."""
    points = np.array(points)
    width = np.sort(distances(points), axis=1)[:, len(points) // 2 - 1].mean() + 1e-9

    def climb(point):
        near = points[np.linalg.norm(points - point, axis=1) <= width]
        moved = near.mean(axis=0)
        return climb(moved) if np.linalg.norm(moved - point) > 1e-3 * width else (len(near), *moved)

    modes = []
    for _, *mode in sorted(map(climb, points), reverse=True):
        if all(np.linalg.norm(np.subtract(mode, other)) > width for other in modes):
            modes.append(mode)
    gaps = np.linalg.norm(points[:, None] - np.array(modes), axis=2)
    labels = np.where(gaps.min(axis=1) <= width, gaps.argmin(axis=1), -1)
    return labels == np.bincount(labels[labels >= 0]).argmax()


@functools.cache
def larger_half(points):
    """Of the best of all ways to part the points in two; all where they are equal."""
    points = np.array(points)
    if (points == points[0]).all():
        return np.ones(len(points), bool)
    ways = [np.array(way, bool) for way in itertools.product((0, 1), repeat=len(points)) if 0 < sum(way) < len(points)]
    side = min(ways, key=lambda way: sum(len(part) * part.var(axis=0).sum() for part in (points[way], points[~way])))
    return side if 2 * side.sum() > len(side) else ~side


def centered_clip(case):
    return case.start + centered_clip_statement(case.updates, 0.0, None, 3)


def norm_clip(case):
    lengths = np.linalg.norm(case.updates, axis=1)
    return share(np.minimum(1, np.median(lengths) / lengths))


def trimmed_mean(case, cut):
    return np.sort(case.models, axis=0)[cut : len(case.models) - cut].mean(axis=0)


def nearest_mean(case, count):
    """The SPMC code's trimmed mean."""
    gaps = np.abs(case.updates - np.median(case.updates, axis=0))
    nearest = np.argsort(gaps, axis=0, kind="stable")[:count]
    return case.start + np.take_along_axis(case.updates, nearest, axis=0).mean(axis=0)


def rlr(case, theta):
    votes = np.abs(np.sign(case.updates).sum(axis=0))
    return case.start + np.where(votes >= theta, 1, -1) * (share(case.sizes) @ case.updates)


def rsa(case):
    return case.start - 0.02 * (0.01 * case.start - 0.07 * np.sign(case.updates).sum(axis=0))


def rsa_code(case):
    total = 0.0
    for row in np.sign(case.updates):
        total = np.clip(total + row, -3, 3)
    return case.start + 0.05 * (0.1 * total - 0.001 * case.start)


def spmc(case, **options):
    default = {"score": "cosine", "space": "weights", "partner": "coalition", "coalition_weights": "uniform"}
    default |= {"mapping": "softmax", "temperature": 1.0, "eps": 1e-5}
    return numpy_spmc(case.upload, None, **(default | options))


def trust(case, root, lengths=False):
    """FLTrust's weights, `root` being the server's own update; in the SPMC code over the updates' lengths."""
    cosines = np.maximum(unit(case.updates) @ unit(root), 0)
    return share(cosines / np.linalg.norm(case.updates, axis=1) if lengths else cosines)


def nearest_neighbours(case):
    """Whom NNM mixes with whom."""
    return distances(case.models), len(case.models) - (len(case.models) - 1) // 2
