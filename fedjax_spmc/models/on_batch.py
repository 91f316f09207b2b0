"""A network on a batch in train mode: rows that are not valid enter no batch statistics."""

import jax

from fedjax_spmc.types import Array, Model, Params, PRNGKey, Stats


def train_logits(
    model: Model, params: Params, stats: Stats, inputs: Array, valid: Array, key: PRNGKey
) -> tuple[Array, Stats]:
    """`Model.apply` in train mode: (logits, new batch statistics).

    A network without batch statistics treats every row by itself, so it is not told which are valid.

    Args:
        model: any network.
        params, stats: its variables.
        inputs: [B, ...].
        valid: [B] bool.
        key: of its random draws.
    """
    rows = (valid,) if jax.tree.leaves(stats) else ()
    return model.apply(params, stats, inputs, True, key, *rows)


def on_whole_batches(model: Model) -> Model:
    """The network for batches whose rows are all valid: it is not told which are, so that one that takes no `valid`
    works too."""
    run = model.apply

    def apply(
        params: Params, stats: Stats, inputs: Array, train: bool, key: PRNGKey, valid: Array | None = None
    ) -> tuple[Array, Stats]:
        del valid
        return run(params, stats, inputs, train, key)

    return model._replace(apply=apply)
