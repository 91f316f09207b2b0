"""Every rule's choice where one upload, a tight group, or both are up to 10^4 times as long as the others.

Held against statements in float64 of the same float32 uploads. Where a rule takes the lowest scores its choice must be
the best up to rounding, elsewhere the same.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import aggregators
from fedjax_spmc.aggregators import _krum
from fedjax_spmc.aggregators.fltrust import combine
from fedjax_spmc.aggregators.multi_metrics import whitened_scores
from fedjax_spmc.aggregators.signguard import draw_coordinates
from fedjax_spmc.preaggregators.nnm import nearest_shares
from tests import boosted as plain
from tests.test_rules_cluster import deepsight_keeps
from tests.uploads import flat, labels_of, model_upload, random_tree, random_upload

KEY = jax.random.key(0)
BOOSTS = (1.0, 1e2, 1e4)
POSITIONS = np.asarray(draw_coordinates(KEY, 131, 0.5))
ROOT = random_tree(np.random.default_rng(9))
OTHERS = (
    *("mean", "crfl", "crfl-reference", "finetuning", "finetuning-reference", "ft_sam", "ft_sam-reference"),
    *("sageflow", "sageflow-reference"),
)
"""Rules whose weights are numbers of examples, or come from losses on the server's data."""


class Rule(NamedTuple):
    """A rule and the uploads on which it is held against its statement.

    Attributes:
        choice: of `plain.Seen`: [K] bool, who is not flagged; (scores, count), as many as that with the lowest scores,
            in each row where they are a matrix, and maybe the rounding of the scores; [K] weights; or a model [D].
        options: of the aggregator.
        kinds: of `plain.GROUPS`.
        clients: K.
        apart, spreads: how tight the group is, and how near the benign uploads are, against a step of 0.5.
        make: uploads.
    """

    choice: Callable[[plain.Seen], Any]
    options: Mapping[str, Any] = MappingProxyType({})
    kinds: tuple[str, ...] = ("one", "few", "both", "most")
    clients: int = 9
    apart: float = 1e-5
    spreads: tuple[float, float] = (0.3, 1e-4)
    make: Callable[..., Any] = random_upload


# More long uploads than a rule withstands, one of nine in Bulyan's case, are no test of its choice among the others.
RULES = {
    "bulyan": Rule(plain.bulyan, kinds=("one", "most")),
    "bulyan-reference": Rule(plain.bulyan_code, kinds=("one", "both"), clients=10),
    "centered_clip": Rule(plain.centered_clip),
    "deepsight": Rule(
        lambda case: deepsight_keeps(case.upload, False)[0], {"ddifs": False}, ("one", "both"), make=model_upload
    ),
    "dnc": Rule(lambda case: plain.projections(case.updates, 4)),
    "dnc-reference": Rule(lambda case: plain.projections(plain.unit(case.updates), 1)),
    "fdcr": Rule(plain.fdcr),
    "fedcpa": Rule(plain.fedcpa),
    "fedcpa-reference": Rule(plain.fedcpa_code),
    "flame": Rule(lambda case: plain.flame(case, case.models)),
    "flame updates": Rule(lambda case: plain.flame(case, case.updates), {"space": "updates"}),
    "fltrust": Rule(lambda case: plain.trust(case, flat(ROOT))),
    "fltrust-reference": Rule(lambda case: plain.trust(case, flat(ROOT), lengths=True)),
    "foolsgold": Rule(plain.foolsgold),
    "foolsgold-reference": Rule(plain.foolsgold_code),
    "krum": Rule(lambda case: plain.krum(case, 1)),
    "krum-reference": Rule(lambda case: plain.medoids(case, 1)),
    "median": Rule(lambda case: np.median(case.models, axis=0)),
    "multi_krum": Rule(lambda case: plain.krum(case, 6)),
    "multi_krum-reference": Rule(lambda case: plain.medoids(case, 5, swapped=True)),
    # It looks at lengths alone, of which float32 keeps seven digits.
    "multi_metrics": Rule(plain.multi_metrics, apart=1e-2, spreads=(0.3, 1e-2)),
    "multi_metrics-reference": Rule(plain.spmc),
    "nnm": Rule(plain.nearest_neighbours),
    "norm_clip": Rule(plain.norm_clip),
    "rfa": Rule(lambda case: plain.weiszfeld(case.updates, plain.share(case.sizes))),
    "rfa broadcast": Rule(
        lambda case: plain.weiszfeld(case.updates, plain.share(case.sizes), start="broadcast"), {"start": "broadcast"}
    ),
    "rfa-reference": Rule(plain.rfa_code),
    "rlr": Rule(lambda case: plain.rlr(case, 5)),
    "rlr-reference": Rule(lambda case: plain.rlr(case, 4)),
    "rsa": Rule(plain.rsa),
    "rsa-reference": Rule(plain.rsa_code),
    "signguard": Rule(lambda case: plain.signguard(case, POSITIONS, plain.largest_mode), {"coordinates": 0.5}),
    "signguard kmeans": Rule(
        lambda case: plain.signguard(case, POSITIONS, plain.larger_half), {"coordinates": 0.5, "cluster": "kmeans"}
    ),
    "spmc": Rule(plain.spmc),
    "spmc minmax": Rule(lambda case: plain.spmc(case, mapping="minmax"), {"mapping": "minmax"}),
    "spmc cold": Rule(lambda case: plain.spmc(case, temperature=1e-3), {"temperature": 1e-3}),
    "spmc euclidean": Rule(lambda case: plain.spmc(case, score="euclidean"), {"score": "euclidean"}),
    "trimmed_mean": Rule(lambda case: plain.trimmed_mean(case, 3)),
    "trimmed_mean-reference": Rule(lambda case: plain.nearest_mean(case, 4)),
}


@functools.cache
def compiled(label):
    """The rule under jit; the same program as that of the contract's tests, where options are the default."""
    name, _, variant = label.partition(" ")[0].partition("-")
    rule = aggregators.make(name, **RULES[label].options, **({"variant": variant} if variant else {}))

    def aggregate(upload, state, key):
        return rule.aggregate(upload, state, key)

    return rule._replace(aggregate=jax.jit(aggregate))


@jax.jit
def mixed(upload):
    """NNM's: [K, K] bool, whom it mixes with whom."""
    return nearest_shares(_krum.squared_distances(upload), upload.participating, len(upload.participating) // 2 + 1) > 0


trusted = jax.jit(lambda upload, reference: combine(upload, ROOT, reference, 1.0), static_argnums=1)


def ours(label, upload):
    """Who is not flagged, weights, model."""
    if label == "nnm":
        return mixed(upload), None, None
    if label.startswith("fltrust"):
        model, verdict = trusted(upload, label.endswith("reference"))
    else:
        rule = compiled(label)
        model, verdict, _ = rule.aggregate(upload, rule.init(upload.global_params, len(upload.participating)), KEY)
    return ~verdict.flagged, verdict.weights, flat(model)


def check(expected, kept, weights, model, size):
    if isinstance(expected, tuple):
        all_scores, count, rounding = expected if len(expected) == 3 else (*expected, 0.0)
        for scores, chosen in zip(np.atleast_2d(all_scores), np.atleast_2d(kept), strict=True):
            assert chosen.sum() == count
            above = scores - scores.min()  # which leaves the digits in which the others differ where one is far
            assert above[chosen].max() <= above[~chosen].min() * (1 + 1e-4) + rounding
    elif expected.dtype == bool:
        np.testing.assert_array_equal(kept, expected)
    elif expected.shape == (size,):
        np.testing.assert_allclose(weights, expected, atol=2e-4)
    else:
        np.testing.assert_allclose(model, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("label", RULES)
def test_choices_are_those_of_float64(label):
    rule = RULES[label]
    for seed, spread in enumerate(rule.spreads):
        for kind in rule.kinds:
            for boost in BOOSTS:
                case = plain.boosted(kind, boost, spread, seed, rule.clients, rule.apart, rule.make)
                kept, weights, model = ours(label, case.upload)
                try:
                    check(rule.choice(case), np.asarray(kept), weights, model, rule.clients)
                except AssertionError as error:
                    raise AssertionError(f"{kind}, {boost:g} times as long, spread {spread}") from error


def test_every_rule_is_held_against_a_statement():
    labels = [label for name in aggregators.names() for label in labels_of(aggregators.describe(name), name)]
    assert {label for label in RULES if " " not in label} - {"nnm"} | set(OTHERS) == set(labels)


def test_distances_of_a_tight_group_far_away():
    """A Gram matrix around their mean gives 0 for the first three."""
    numbers = np.array([100, 100.001, 100.003, 0, 0.5, -3, 2e6], np.float32)
    case = random_upload(7)._replace(
        global_params={"w": jnp.zeros(1)}, client_params={"w": jnp.asarray(numbers)[:, None]}
    )
    exact = np.square(numbers[:, None].astype(np.float64) - numbers)
    np.testing.assert_allclose(jax.jit(_krum.squared_distances)(case), exact, rtol=1e-4)


def test_multi_metrics_with_one_long_upload_by_hand():
    features = np.array([[1, 1, 1], [1.1, 1, 2], [1.2, 1.3, 1.5], [1.3, 1.1, 1.2], [100, 100, 3]])
    scores = jax.jit(whitened_scores)(jnp.asarray(features, jnp.float32), jnp.ones(5, bool))
    np.testing.assert_allclose(scores, [16.930, 17.599, 16.387, 14.876, 16.670], atol=3e-3)
    np.testing.assert_allclose(plain.whitened(features), [16.930, 17.599, 16.387, 14.876, 16.670], atol=5e-4)
