"""The guard around every aggregator: nothing non-finite goes in, nothing non-finite comes out."""

import jax
import jax.numpy as jnp

from fedjax_spmc import trees
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.types import Aggregator, Array, Params, PRNGKey, State, Stats, Upload, Verdict


def usable_rows(upload: Upload) -> Array:
    """[K] bool: rows that take part and whose model, batch statistics and their squared norms are finite."""
    return usable_among(upload.participating, upload.client_params, upload.client_stats)


def usable_among(participating: Array, client_params: Params, client_stats: Stats) -> Array:
    """`usable_rows` of [K] bool and stacked trees."""
    return participating & trees.finite_rows(client_params) & trees.finite_rows(client_stats)


def settled(
    verdict: Verdict, participating: Array, usable: Array, min_clients: int, finite: Array
) -> tuple[Array, Verdict]:
    """Whether an aggregation succeeded, and the verdict that is told of it.

    Args:
        verdict: of the rule, on rows of which those that are not usable were zeroed.
        participating, usable: [K] bool.
        min_clients: usable rows that the rule needs.
        finite: bool scalar, whether what it made is finite.

    Returns:
        bool scalar, and the verdict: all weights 0 where it failed; rows that were rejected flagged, with a score above
        all others.
    """
    weights = jnp.where(usable, verdict.weights, 0.0)
    succeeded = (usable.sum() >= min_clients) & (weights.sum() > 0) & finite
    rejected = participating & ~usable
    scores = jnp.nan_to_num(jnp.where(usable, verdict.scores, 0.0))
    scores = jnp.where(rejected, jnp.max(scores) + 1.0, scores)
    return succeeded, Verdict(jnp.where(succeeded, weights, 0.0), scores, (verdict.flagged & usable) | rejected)


def check_shapes(name: str, made: object, upload: Upload, state: State) -> tuple[Params, Verdict, State]:
    """What a rule has returned, where it is what the contract asks for.

    Raises:
        ConfigError: it is not; the rule, the part that is wrong, and what it must be are named.
    """

    def wrong(what: str, must: str) -> ConfigError:
        return ConfigError(f"aggregator {name!r} returns {what}: it must be {must}.")

    if not isinstance(made, tuple) or len(made) != 3 or not isinstance(made[1], Verdict):
        kinds = [type(one).__name__ for one in made] if isinstance(made, tuple) else type(made).__name__
        raise wrong(f"{kinds}", "(params, Verdict(weights, scores, flagged), state)")
    params, verdict, new_state = made
    expected = (
        (params, upload.global_params, "the new model", "a tree like the model that was broadcast"),
        (new_state, state, "the state", "a tree like the one that `init` makes"),
    )
    for tree, like, words, must in expected:
        if jax.tree.structure(tree) != jax.tree.structure(like):
            raise wrong(f"{words} as another tree", must)
        for path, one, other in zip(trees.leaf_names(like), jax.tree.leaves(tree), jax.tree.leaves(like), strict=True):
            if jnp.shape(one) != jnp.shape(other):
                raise wrong(f"{words} with {path or 'a leaf'} of shape {jnp.shape(one)}", f"{jnp.shape(other)}")
    rows = upload.participating.shape
    for field, value in zip(verdict._fields, verdict, strict=True):
        if jnp.shape(value) != rows:
            raise wrong(f"{field} of shape {jnp.shape(value)}", f"{rows}, one number for each client")
    return params, verdict, new_state


def guarded(rule: Aggregator, name: str = "") -> Aggregator:
    """Wraps a rule so that it needs no care for rows that are absent or not finite.

    * A row that is not finite, or whose squared norm is 1e36 or more, counts as not participating. It and the absent
      rows are zeroed before any arithmetic; it is flagged and gets a score above all others.
    * Where fewer than `rule.min_clients` rows are left, or the rule's model or state is not finite, the global model
      and the old state are kept and all weights are 0.
    """

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        num_clients = len(upload.participating)
        usable = usable_rows(upload)
        kind = trees.float_kind(upload.client_params)
        cleaned = upload._replace(
            client_params=trees.zero_rows(usable, upload.client_params),
            client_stats=trees.zero_rows(usable, upload.client_stats),
            extras=trees.zero_rows(usable, upload.extras),
            num_examples=jnp.where(usable, upload.num_examples, 0.0).astype(kind),
            participating=usable,
            client_ids=jnp.arange(num_clients, dtype=jnp.int32) if upload.client_ids is None else upload.client_ids,
            steps=jnp.ones(num_clients, jnp.int32) if upload.steps is None else upload.steps,
        )

        def made(uploads: Upload) -> tuple[Params, Verdict, State]:
            return check_shapes(name, rule.aggregate(uploads, state, key), uploads, state)

        if rule.light:
            whole = cleaned._replace(
                client_params=upload.client_params, client_stats=upload.client_stats, extras=upload.extras
            )
            params, verdict, new_state = jax.lax.cond(usable.all(), lambda: made(whole), lambda: made(cleaned))
        else:
            params, verdict, new_state = made(cleaned)
        finite = trees.all_finite(params) & trees.all_finite(new_state)
        succeeded, verdict = settled(verdict, upload.participating, usable, rule.min_clients, finite)
        guarded_verdict = verdict._replace(weights=verdict.weights.astype(kind), scores=verdict.scores.astype(kind))
        params = jax.tree.map(lambda new, old: new.astype(old.dtype), params, upload.global_params)
        return (
            trees.where(succeeded, params, upload.global_params),
            guarded_verdict,
            trees.where(succeeded, new_state, state),
        )

    return rule._replace(aggregate=aggregate)
