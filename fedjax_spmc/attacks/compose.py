"""Several attacks at once: their slots run one after another in the order given."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_spmc.types import Array, Attack, AttackContext, AttackState, Context, Params, PRNGKey, Upload


def compose(parts: Sequence[Attack]) -> Attack:
    """One attack that does what all `parts` do; its own state is the tuple of their own states.

    The backdoor that is tested is that of the last part that has one.
    """
    if len(parts) == 1:
        return parts[0]

    def view(state: AttackState, i: int) -> AttackState:
        return AttackState(state.roster, state.own[i])

    def init(ctx: AttackContext, key: PRNGKey) -> AttackState:
        return AttackState(
            ctx.roster, tuple(part.init(ctx, jax.random.fold_in(key, i)).own for i, part in enumerate(parts))
        )

    def begin_round(ctx: Context, state: AttackState, data: Any, key: PRNGKey) -> AttackState:
        begun = [
            part.begin_round(ctx, view(state, i), data, jax.random.fold_in(key, i)) for i, part in enumerate(parts)
        ]
        return AttackState(begun[0].roster, tuple(one.own for one in begun))

    def poison(
        state: AttackState, images: Array, labels: Array, sample_ids: Array, client_id: Array, key: PRNGKey
    ) -> tuple[Array, Array]:
        for i, part in enumerate(parts):
            images, labels = part.poison(
                view(state, i), images, labels, sample_ids, client_id, jax.random.fold_in(key, i)
            )
        return images, labels

    def freezes(state: AttackState, client_id: Array) -> Array:
        return jnp.stack([part.freezes(view(state, i), client_id) for i, part in enumerate(parts)]).any()

    def mask_gradients(state: AttackState, grads: Params, client_id: Array) -> Params:
        for i, part in enumerate(parts):
            grads = part.mask_gradients(view(state, i), grads, client_id)
        return grads

    def after_step(ctx: Context, state: AttackState, params: Params, client_id: Array) -> Params:
        for i, part in enumerate(parts):
            params = part.after_step(ctx, view(state, i), params, client_id)
        return params

    def craft(state: AttackState, upload: Upload, key: PRNGKey) -> Params:
        for i, part in enumerate(parts):
            crafted = part.craft(view(state, i), upload, jax.random.fold_in(key, i))
            upload = upload._replace(client_params=crafted)
        return upload.client_params

    tested = [(i, part.backdoor) for i, part in enumerate(parts) if part.backdoor is not None]
    last, last_backdoor = tested[-1] if tested else (0, None)

    def backdoor(state: AttackState, images: Array, labels: Array) -> tuple[Array, Array]:
        assert last_backdoor is not None
        return last_backdoor(view(state, last), images, labels)

    return Attack(
        init, begin_round, poison, backdoor if last_backdoor else None, freezes, mask_gradients, after_step, craft
    )
