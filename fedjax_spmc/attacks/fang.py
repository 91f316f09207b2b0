"""Fang: uploads that turn the server's step round, made for a server with Krum or with a trimmed mean or median.

Source: Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security
    2020, as the code of Shejwalkar and Houmansadr (NDSS 2021) has it.
Knows: the server's rule, how many clients attack; the benign uploads of the round, or its own alone (`knowledge`).
Controls: its own upload.
Cost: O(K^2 D) and O(K^2 log K) for each trial with Krum, O(K D) with trimmed mean; with `knowledge="own"` in a list
    that reaches into training, a second training of each attacking client.
Deviations: made for gradients, which the server subtracts; here the signs are those of updates.
    * Krum: the first lambda follows that code, in which one of b benign uploads has b - 2 - f neighbours, where the
      original takes b - 2; without the mean of the others in front, unless `center` says so. Where no lambda is let
      through, the last one that was tried is sent.
    * Trimmed mean: that code writes the sum of what goes above the largest and of what goes below the smallest benign
      number wherever the mean is positive, and 0 elsewhere; `fixed` sends the one that opposes the mean.
    * Batch statistics and extras are sent as they were trained.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_spmc.attacks import _trial
from fedjax_spmc.attacks._search import along
from fedjax_spmc.attacks._updates import Knowledge, Known, crafting, mean_of, squared_distances, std_of
from fedjax_spmc.options import refuse_unused
from fedjax_spmc.registry import attacks
from fedjax_spmc.types import Array, Attack, AttackContext, PRNGKey, State, Upload

SMALLEST = 1e-5
"""No smaller lambda is tried."""
STRETCH = 2.0
"""The paper's b: how far beyond the benign numbers a crafted one may lie."""


@attacks.register("fang")
def fang(
    rule: Literal["krum", "trimmed_mean"] = "krum",
    fixed: bool = True,
    center: bool = False,
    knowledge: Knowledge = "benign",
) -> Attack:
    """Uploads whose updates point against the mean m of the updates that are known, number by number.

    Made for Krum, they are g - lambda sign(m), g being the broadcast model; lambda is halved until Krum would choose
    one of them. Made for a trimmed mean (and for the median), each number is drawn beyond all benign ones on the side
    that opposes m; with "own" knowledge between 3 and 4 standard deviations from m.

    Args:
        rule: what the server is taken to run.
        fixed: of "trimmed_mean": False sends what the code sends.
        center: of "krum": whether the upload is g + m - lambda s (the code for FEMNIST).
        knowledge: "benign": all uploads of the round but the attackers'; "own": what the attacking clients train on
            their clean data.
    """
    unused = {"fixed": fixed} if rule == "krum" else {"center": center}
    refuse_unused(fang, f"rule = {rule!r}", unused, "attack")

    def against_krum(ctx: AttackContext, own: State, known: Known, upload: Upload, key: PRNGKey) -> tuple[Array, State]:
        del ctx, upload, key
        return through_krum(known.updates, known.mask, known.pretended, center)[0], own

    def against_trimming(
        ctx: AttackContext, own: State, known: Known, upload: Upload, key: PRNGKey
    ) -> tuple[Array, State]:
        del upload
        keys = jax.vmap(lambda client: jax.random.fold_in(key, client))(ctx.client_ids)
        draws = jax.vmap(lambda one: jax.random.uniform(one, known.updates.shape[1:], known.updates.dtype))(keys)
        return beyond(known.updates, known.mask, draws, knowledge, fixed), own

    return Attack(craft=crafting(knowledge, against_krum if rule == "krum" else against_trimming))


def first_lambda(updates: Array, mask: Array, pairs: Array, attackers: Array | int) -> Array:
    """The lambda that is tried first, of updates [K, D] of which the rows in `mask` are known.

    Args:
        updates, mask: see there.
        pairs: [K, K] squared distances.
        attackers: f.
    """
    count, root = mask.sum(), jnp.sqrt(jnp.asarray(updates.shape[1], updates.dtype))
    lengths = jnp.where(mask[:, None] & mask[None, :], jnp.sqrt(pairs), jnp.inf)
    others = jnp.sort(jnp.where(jnp.eye(len(mask), dtype=bool), jnp.inf, lengths), axis=1)
    near = jnp.where(jnp.arange(len(mask))[None, :] < count - 2 - attackers, others, 0.0).sum(axis=1)
    nearest = jnp.where(mask, near, jnp.inf).min()
    gaps = jnp.where(mask[:, None], updates - mean_of(updates, mask)[None], 0.0)
    farthest = jnp.sqrt(jnp.square(gaps).sum(axis=1)).max()
    return nearest / (jnp.maximum(count - attackers - 1, 1).astype(updates.dtype) * root) + farthest / root


def through_krum(updates: Array, mask: Array, attackers: Array | int, center: bool = False) -> tuple[Array, Array]:
    """The update [D] sent to Krum and its lambda, from updates [K, D] of which the rows in `mask` are known.

    The attackers, f, are at most K / 3 + 1 more than the rows that are not known.
    """
    mean, pairs = mean_of(updates, mask), squared_distances(updates, mask)
    start, signs = mean if center else jnp.zeros_like(mean), jnp.sign(mean)
    to_crafted = along(updates, start, signs)

    def refused(strength: Array) -> Array:
        seen = _trial.crowd(pairs, mask, to_crafted(strength), attackers, len(mask) // 3 + 1)
        return ~_trial.krum_takes_a_copy(seen, attackers) & (strength > SMALLEST)

    strength = jax.lax.while_loop(refused, lambda x: x / 2, first_lambda(updates, mask, pairs, attackers))
    return start - strength * signs, strength


def beyond(updates: Array, mask: Array, draws: Array, knowledge: Knowledge, fixed: bool) -> Array:
    """[K, D]: the updates sent to a trimmed mean or median.

    Args:
        updates: [K, D].
        mask: [K] bool, which rows are known.
        draws: [n, D] in [0, 1), a row for each upload that is made.
        knowledge: "benign" or "own".
        fixed: False makes what the code makes.
    """
    mean = mean_of(updates, mask)
    if knowledge == "own":
        std = std_of(updates, mask)
        above, below = (mean + 3 * std)[None] + draws * std[None], (mean - 4 * std)[None] + draws * std[None]
    else:
        largest = jnp.where(mask[:, None], updates, -jnp.inf).max(axis=0)
        smallest = jnp.where(mask[:, None], updates, jnp.inf).min(axis=0)
        largest, smallest = (jnp.where(mask.any(), x, 0.0) for x in (largest, smallest))
        top = largest * jnp.where(largest > 0, STRETCH, 1 / STRETCH)
        bottom = smallest * jnp.where(smallest < 0, STRETCH, 1 / STRETCH)
        above = largest[None] + draws * (top - largest)[None]
        below = bottom[None] + draws * (smallest - bottom)[None]
    positive = (mean > 0)[None]
    if not fixed:
        return jnp.where(positive, above + below, 0.0)
    return jnp.where(positive, below, jnp.where((mean < 0)[None], above, 0.0))
