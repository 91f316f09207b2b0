"""Several attacks at once: their slots run one after another in the order given.

Each part keeps a state of its own and draws from keys of its own, which are folded with its name: a part does the same
alone and in company.
"""

from collections.abc import Callable, Mapping
from typing import Any

from fedjax_spmc import trees
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.keys import name_key
from fedjax_spmc.types import Array, Attack, AttackContext, Batch, Params, PRNGKey, State, Upload

ALONE = ("train", "gradients")
"""Slots that only one part of a list may have."""


def compose(parts: Mapping[str, Attack]) -> Attack:
    """One attack that does what all parts do; its state is a dict of their states by name.

    Triggered test examples are those of the last part that has a `backdoor`, shown on that part's own examples where it
    has any.

    Args:
        parts: name -> attack, in order.

    Raises:
        ConfigError: two parts want to train, or to state the gradients.
    """
    for slot in ALONE:
        several = [name for name, part in parts.items() if getattr(part, slot) is not None]
        if len(several) > 1:
            raise ConfigError(
                f"attack.name = {', '.join(parts)} is not allowed: {' and '.join(several)} each have {slot} of their "
                "own; it must have one such part at most."
            )

    def having(slot: str) -> list[tuple[str, Callable[..., Any]]]:
        return [(name, fn) for name, part in parts.items() if (fn := getattr(part, slot)) is not None]

    def init(ctx: AttackContext, key: PRNGKey) -> State:
        return {
            name: part.init(held_of(ctx, name), name_key(key, name)) if part.init is not None else ()
            for name, part in parts.items()
        }

    def begin_round(ctx: AttackContext, own: State, key: PRNGKey) -> State:
        own = dict(own)
        for name, fn in having("begin_round"):
            own[name] = fn(held_of(ctx, name), own[name], name_key(key, name))
        return own

    def poison(ctx: AttackContext, own: State, batch: Batch, client_id: Array, step: Array, key: PRNGKey) -> Batch:
        for name, fn in having("poison"):
            batch = fn(held_of(ctx, name), own[name], batch, client_id, step, name_key(key, name))
        return batch

    def mask_gradients(
        ctx: AttackContext, own: State, grads: Params, params: Params, client_id: Array, step: Array
    ) -> Params:
        for name, fn in having("mask_gradients"):
            grads = fn(held_of(ctx, name), own[name], grads, params, client_id, step)
        return grads

    def after_step(ctx: AttackContext, own: State, params: Params, client_id: Array, step: Array) -> Params:
        for name, fn in having("after_step"):
            params = fn(held_of(ctx, name), own[name], params, client_id, step)
        return params

    def craft(ctx: AttackContext, own: State, upload: Upload, key: PRNGKey) -> tuple[Upload, State]:
        own = dict(own)
        attacking = ctx.roster.attacks_now(ctx.client_ids)
        for name, fn in having("craft"):
            crafted, own[name] = fn(held_of(ctx, name), own[name], upload, name_key(key, name))
            upload = fenced_upload(attacking, crafted, upload)
        return upload, own

    def gradients(ctx: AttackContext, own: State, *rest: Any) -> Any:
        ((name, fn),) = having("gradients")
        *arguments, key = rest
        return fn(held_of(ctx, name), own[name], *arguments, name_key(key, name))

    def train(rule: Any, ctx: AttackContext, own: State, *rest: Any) -> Any:
        ((name, fn),) = having("train")
        *arguments, key, hooks = rest
        return fn(rule, held_of(ctx, name), own[name], *arguments, name_key(key, name), hooks)

    def hold(dataset: Any, load: Callable[..., Any]) -> dict[str, Any]:
        return {name: fn(dataset, load) for name, fn in having("hold")}

    shown, fn_shown = having("backdoor")[-1] if having("backdoor") else ("", None)
    fn_tested = parts[shown].test if fn_shown is not None else None

    def test(held: Mapping[str, Any]) -> Any:
        assert fn_tested is not None
        return fn_tested(held.get(shown, ()))

    def backdoor(ctx: AttackContext, own: State, batch: Batch) -> Batch:
        assert fn_shown is not None
        return fn_shown(held_of(ctx, shown), own[shown], batch)

    return Attack(
        hold=hold if having("hold") else None,
        test=test if fn_tested is not None else None,
        init=init,
        begin_round=begin_round if having("begin_round") else None,
        poison=poison if having("poison") else None,
        gradients=gradients if having("gradients") else None,
        mask_gradients=mask_gradients if having("mask_gradients") else None,
        after_step=after_step if having("after_step") else None,
        train=train if having("train") else None,
        craft=craft if having("craft") else None,
        backdoor=backdoor if fn_shown is not None else None,
    )


def held_of(ctx: AttackContext, name: str) -> AttackContext:
    """The context as one part sees it: with the arrays that it holds itself."""
    return ctx._replace(held=ctx.held.get(name, ()) if isinstance(ctx.held, Mapping) else ctx.held)


def fenced_upload(attacking: Array, crafted: Upload, upload: Upload) -> Upload:
    """Of what an attack made of an upload, the attacking rows' models, statistics, extras and numbers of examples."""
    return upload._replace(
        client_params=trees.where_rows(attacking, crafted.client_params, upload.client_params),
        client_stats=trees.where_rows(attacking, crafted.client_stats, upload.client_stats),
        num_examples=trees.where_rows(attacking, crafted.num_examples, upload.num_examples),
        extras=trees.where_rows(attacking, dict(crafted.extras), dict(upload.extras)),
    )
