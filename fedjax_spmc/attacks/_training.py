"""What attacks share that train by themselves."""

from typing import Any

from fedjax_spmc.types import AttackContext, Context


def rule_context(ctx: AttackContext, **changed: Any) -> Context:
    """What an attacker's local rule sees, with some fields changed."""
    fields: dict[str, Any] = {name: getattr(ctx, name) for name in Context._fields}
    return Context(**fields | changed)
