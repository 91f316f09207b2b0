"""Pre-aggregators: what mixes or cuts the uploads in front of an aggregator, one file each. A list of them is a chain.

`make(names, **{"NAME.option": value})` builds a chain, `in_front` puts it before a rule, inside of the rule's guard.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_spmc import registry, trees
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.keys import name_key, root_key
from fedjax_spmc.types import TRUTH, Aggregator, Array, Params, PreAggregator, PRNGKey, State, Upload, Verdict

names = registry.preaggregators.names
describe = registry.preaggregators.describe

Chain = Mapping[str, PreAggregator]
"""Pre-aggregators by name, in the order in which uploads pass them."""


def make(listed: Sequence[str], /, **options: Any) -> dict[str, PreAggregator]:
    """The chain of these names.

    Args:
        listed: names, in order; a name stands once.
        options: "NAME.option" -> value.

    Raises:
        ConfigError: (a ValueError) a name that stands twice or is unknown, an unknown option, a value out of range.
    """
    check_once(listed)
    given: dict[str, dict[str, Any]] = {name: {} for name in listed}
    for path, value in options.items():
        name, _, option = path.partition(".")
        if name not in given:
            raise ConfigError(f"{path} is no option of the pre-aggregators {', '.join(listed) or '()'}.")
        given[name][option] = value
    return {name: registry.preaggregators.make(name, **own) for name, own in given.items()}


def check_once(listed: Sequence[str]) -> None:
    """Refuses a list in which a name stands twice.

    Raises:
        ConfigError: see there.
    """
    if len(set(listed)) < len(listed):
        raise ConfigError(f"aggregator.pre = {', '.join(listed)} is not allowed: a name must stand once.")


def chosen(chain: Chain, num_clients: int) -> dict[str, Any]:
    """ "NAME.option" -> the options that were left open, as the chain fills them in for K uploads a round."""
    filled: dict[str, Any] = {}
    for name, part in chain.items():
        filled |= {f"{name}.{option}": value for option, value in part.chosen(num_clients).items()}
        num_clients = part.rows(num_clients)
    return filled


def in_front(chain: Chain, rule: Aggregator, name: str = "") -> Aggregator:
    """The rule behind a chain, not guarded; its verdicts are on the rows that came in.

    Args:
        chain: from `make`; an empty one leaves the rule as it is.
        rule: not guarded; it gets a key of its own.
        name: of the rule, for the error.

    Raises:
        ConfigError: a part of the chain that gives up whose row is whose, before a rule that must know.
    """
    if not chain:
        return rule
    parts = list(chain.values())
    per_client = all(part.per_client for part in parts)
    if not per_client:
        _check_rows_may_go(chain, rule, name)

    def mixed(upload: Upload, key: PRNGKey) -> tuple[Upload, list[Any]]:
        backs = []
        for part_name, part in chain.items():
            upload, back = part.mix(upload, name_key(key, part_name))
            backs.append(back)
        return upload, backs

    def aggregate(upload: Upload, state: State, key: PRNGKey) -> tuple[Params, Verdict, State]:
        seen, backs = mixed(upload, key)
        params, verdict, state = rule.aggregate(seen, state, name_key(key, "aggregator"))
        for back in reversed(backs):
            verdict = back(verdict)
        return params, verdict, state

    def details(upload: Upload) -> dict[str, Array]:
        if not per_client:
            return {}
        present = upload.participating
        cleaned = upload._replace(
            client_params=trees.zero_rows(present, upload.client_params),
            client_stats=trees.zero_rows(present, upload.client_stats),
            extras=trees.zero_rows(present, upload.extras),
        )
        return rule.details(mixed(cleaned, root_key(0))[0])  # parts that keep rows draw nothing

    needed = rule.min_clients
    for part in reversed(parts):
        needed = part.fewest(needed)

    def rows(num_clients: int) -> int:
        for part in parts:
            num_clients = part.rows(num_clients)
        return num_clients

    return rule._replace(
        aggregate=aggregate,
        traits=rule.traits._replace(
            linear=rule.traits.linear and all(part.linear for part in parts),
            consensus=rule.traits.consensus and all(part.consensus for part in parts),
            permutation=rule.traits.permutation and all(part.permutation for part in parts),
        ),
        min_clients=needed,
        chosen=lambda num_clients: rule.chosen(rows(num_clients)),
        details=details,
        coefficients=None,
        pictures=rule.pictures if per_client else (),
    )


def _check_rows_may_go(chain: Chain, rule: Aggregator, name: str) -> None:
    guilty = next(part_name for part_name, part in chain.items() if not part.per_client)
    reasons = []
    if keeps_client_state(rule):
        reasons.append("keeps a state of every client")
    sent = [name for name in rule.needs if name != TRUTH]
    if sent:
        reasons.append(f"reads the clients' {', '.join(sent)}")
    if TRUTH in rule.needs:
        reasons.append("is told which of them are malicious")
    if reasons:
        raise ConfigError(
            f"aggregator.pre = {', '.join(chain)} is not allowed with aggregator.name = {name!r}, which "
            f"{' and '.join(reasons)}, while {guilty} sends it means of several clients: it must be a list without "
            f"{guilty}."
        )


def keeps_client_state(rule: Aggregator) -> bool:
    """Whether a rule's state grows with the number of clients."""
    params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    few, many = (jax.tree.leaves(jax.eval_shape(lambda n=n: rule.init(params, n))) for n in (2, 5))
    return [leaf.shape for leaf in few] != [leaf.shape for leaf in many]


__all__ = ["Chain", "check_once", "chosen", "describe", "in_front", "keeps_client_state", "make", "names"]
