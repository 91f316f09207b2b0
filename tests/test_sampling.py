"""Who takes part in a round: like everyone, forced, or forced and never else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import sampling
from fedjax_spmc.types import Roster

MALICIOUS = np.array([0, 0, 1, 0, 1, 0, 0, 0, 1, 0], bool)


@pytest.mark.parametrize("order", ["sorted", "drawn"])
@pytest.mark.parametrize("attackers", ["drawn", "forced", "forced_only"])
def test_attackers_take_part_as_told(order, attackers):
    """Rounds 2, 4 and 6 are attack rounds, one attacker after another."""
    sample = jax.jit(sampling.make("uniform", order=order, attackers=attackers)(10, 4))
    roster = Roster(jnp.asarray(MALICIOUS), jnp.int32(2), jnp.int32(6), jnp.int32(0), every=2, turns=1)
    seen = []
    for now in range(40):
        at = roster._replace(round=jnp.int32(now))
        attacking = np.flatnonzero(at.attacks_now(jnp.arange(10)))
        drawn = np.asarray(sample(jax.random.fold_in(jax.random.key(0), now), at))
        assert len(set(drawn.tolist())) == 4
        assert order == "drawn" or (np.diff(drawn) > 0).all()
        if attackers != "drawn":
            assert set(attacking) <= set(drawn.tolist())
        if attackers == "forced_only":
            assert set(np.flatnonzero(MALICIOUS)) & set(drawn.tolist()) == set(attacking)
        seen.append(frozenset(drawn.tolist()))
    assert len(set(seen)) > 20
    if attackers == "drawn":
        counts = np.bincount(np.concatenate([list(one) for one in seen]), minlength=10)
        assert counts[MALICIOUS].min() > 5


def test_without_an_attacker_in_the_round_forced_is_as_drawn():
    roster = Roster(jnp.zeros(10, bool), jnp.int32(0), jnp.int32(9), jnp.int32(3))
    key = jax.random.key(5)
    usual, forced = (sampling.make("uniform", attackers=how)(10, 4)(key, roster) for how in ("drawn", "forced"))
    np.testing.assert_array_equal(usual, forced)
