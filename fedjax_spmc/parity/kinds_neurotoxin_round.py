"""Whole attack rounds of Neurotoxin's code against `neurotoxin_round`: the real round, fed with the recorded draws."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import aggregators, attacks, local_rules, trees
from fedjax_spmc.aggregators._clipping import clip_factors
from fedjax_spmc.attacking import Attackers
from fedjax_spmc.attacks._pool import clean_gradient
from fedjax_spmc.attacks.mixed_batches import side_by_side, train_once
from fedjax_spmc.federation import Attacker, Federation, initial_state
from fedjax_spmc.keys import root_key
from fedjax_spmc.one_round import aggregate, train
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind, skipped
from fedjax_spmc.parity.kinds_neurotoxin import SCOPES
from fedjax_spmc.parity.recorded_nets import below, linear_layers, named, task_of, variables_of
from fedjax_spmc.types import Array, Attack, Batch, ClientData, PRNGKey, Roster


class Run(NamedTuple):
    """What the name of a recorded round says, by the files' README: scope and ratio of the mask, or none; the decay."""

    scope: str
    ratio: float
    weight_decay: float


MOMENTUM, BENIGN_DECAY, ATTACKERS_DECAY = 0.9, 5e-4, 0.005
BENIGN_EPOCHS, BOUND = 2, 0.2
TARGET, RELABEL = 9, (7,)
"""What the files' README says of all rounds; the bound is the server's, of an update's norm."""


def run_of(name: str) -> Run | None:
    """The settings in the name of a run; None where it is not of this form."""
    found = re.fullmatch(r"(?:nt_(global|layer)(\d+)|baseline_noratio)(_nowd)?", name)
    if found is None:
        return None
    scope, digits, no_decay = found.groups()
    ratio = 1.0 if digits is None else float(f"0.{digits}")
    return Run(SCOPES[scope or "global"], ratio, 0.0 if no_decay else ATTACKERS_DECAY)


class Recorded(NamedTuple):
    """The recorded draws and batches of a round.

    Attributes:
        inputs, labels: [clients, batches, B, ...]; row 0 is not read.
        poisoned, wanted: [batches, B, ...]: what the attacker, client 0, has in its place.
        whose: [internal epochs], whose clean batches stand beside the poisoned ones.
        participants: [K], the attacker first.
    """

    inputs: Array
    labels: Array
    poisoned: Array
    wanted: Array
    whose: Array
    participants: Array

    def data_of(self, client_id: Array) -> ClientData:
        """A client's batches, alike in every epoch."""
        is_attacker = client_id == 0
        count = jnp.where(is_attacker, len(self.poisoned), self.inputs.shape[1])
        size = self.labels.shape[2]

        def gather(step: Array, key: PRNGKey) -> Batch:
            del key
            mine, number = step % len(self.poisoned), step % self.inputs.shape[1]
            inputs = jnp.where(is_attacker, self.poisoned[mine], self.inputs[client_id, number])
            labels = jnp.where(is_attacker, self.wanted[mine], self.labels[client_id, number])
            return Batch(inputs, labels, jnp.arange(size, dtype=jnp.int32), jnp.ones(size, bool))

        return ClientData(gather, count, client_id, count * size)


def recorded(found: Mapping[str, np.ndarray]) -> Recorded:
    """Of the arrays of one run."""
    poisoned = jnp.asarray(found["PX"])
    (first,) = [int(one[1]) for one in map(re.compile(r"benign(\d+)_params_final/.*").fullmatch, found) if one][:1]
    benign = len(found["lrs"]) - 1
    return Recorded(
        inputs=jnp.asarray(found["X"]),
        labels=jnp.asarray(found["Y"], jnp.int32),
        poisoned=poisoned,
        wanted=jnp.full(poisoned.shape[:2], TARGET, jnp.int32),
        whose=jnp.asarray(found["clean_pick_per_internal_epoch"], jnp.int32),
        participants=jnp.asarray([0, *range(first, first + benign)], jnp.int32),
    )


def federation_of(found: Mapping[str, np.ndarray], run: Run, drawn: Recorded, steps: Array) -> Federation:
    """The round of a file, of which the attacker trains the first `steps` steps."""
    model = linear_layers(below(found, "global0"))

    def mixed(
        rule: Any,
        ctx: Any,
        own: Any,
        variables: Any,
        client_state: Any,
        data: Any,
        client_id: Any,
        key: Any,
        hooks: Any,
    ) -> Any:
        del own, client_id
        batches, hooks = side_by_side(ctx, data, drawn.whose, RELABEL, TARGET, hooks)
        batches = batches._replace(num_batches=jnp.minimum(batches.num_batches, steps))
        return train_once(rule, ctx, variables, client_state, batches, key, hooks)

    parts = {"mixed_batches": Attack(train=mixed)}
    if run.ratio < 1:
        pool = len(found["mask_participants"])
        settings = {"source": "clean_grad", "ratio": run.ratio, "scope": run.scope, "strict": False, "mask_pool": pool}
        parts["neurotoxin"] = attacks.registry.attacks.make("neurotoxin", **settings)
    hyper = {"momentum": MOMENTUM, "weight_decay": BENIGN_DECAY}
    return Federation(
        model=model,
        task=task_of(model),
        rule=local_rules.make("sgd"),
        aggregator=lambda server: aggregators.make("norm_clip", threshold=BOUND),
        attack=attacks.compose(parts),
        sample=lambda key, roster: drawn.participants,
        client_data=lambda arrays, client_id, frozen, round_index, key: drawn.data_of(client_id),
        hyper={"learning_rate": float(found["lrs"][1]), **hyper},
        epochs=BENIGN_EPOCHS,
        client_batch=1,
        attacker=Attacker(
            epochs=len(drawn.whose),
            hyper={"learning_rate": float(found["lrs"][0]), **hyper, "weight_decay": run.weight_decay},
        ),
    )


@kind(r"neurotoxin_round.*")
def attack_rounds(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Whole attack rounds by the real round, with the recorded draws: mask, masked training, clipping, average."""
    for name in dict.fromkeys(name.split("/")[0] for name in arrays):
        run = run_of(name)
        if name.endswith("_bn"):
            reason = "batch statistics leak from client to client in the reference: not rebuilt"
            yield skipped(f"attack round {name}", source, reason)
        elif run is None:
            yield skipped(f"attack round {name}", source, "a run of another name than those that the README explains")
        else:
            yield attack_round(below(arrays, name), run, f"attack round {name}").outcome(source)


def attack_round(found: Mapping[str, np.ndarray], run: Run, title: str) -> Comparison:
    """One of them."""
    drawn = recorded(found)
    sizes = jnp.ones(len(drawn.inputs), jnp.int32)
    start = variables_of(federation_of(found, run, drawn, jnp.int32(0)).model, below(found, "global0"))
    malicious = jnp.arange(len(drawn.inputs)) == 0
    key = root_key(0)

    @jax.jit
    def play(steps: Array) -> Any:
        federation = federation_of(found, run, drawn, steps)
        roster = Roster(malicious, jnp.int32(0), jnp.int32(0), jnp.int32(0))
        state = initial_state(federation, start, len(malicious), roster, key)
        total = ()
        if run.ratio < 1:
            pool = jnp.asarray(found["mask_participants"], jnp.int32)
            own = state.attack["neurotoxin"]._replace(pool=pool)
            state = state._replace(attack=state.attack | {"neurotoxin": own})
            attackers = Attackers(federation, (), state, key, drawn.participants)
            total = clean_gradient(attackers.context(state.attack), pool, jnp.ones(len(pool), bool), key)
        trainings = train(federation, (), sizes, state, key)
        after, _ = aggregate(federation, (), sizes, state, key, trainings)
        return total, trainings, after

    comparison = Comparison(title, 1e-6)
    wanted = below(found, "attacker_params_after_step")
    rows = len(next(iter(wanted.values())))
    total, trainings, after = play(jnp.int32(2**30))
    for row in range(rows):
        seen = trainings if row == rows - 1 else play(jnp.int32(row + 1))[1]
        for name, ours in named(seen.trained.variables.params).items():
            comparison.add(f"attacker, row {row} of its steps, {name}", ours[0], wanted[name][row])
    local, center = trainings.trained.variables.params, start.params
    if run.ratio < 1:
        for name, ours in named(total).items():
            comparison.add(f"maskgrad {name}", ours, found[f"maskgrad/{name}"])
        for name, ours in named(trainings.attack["neurotoxin"].mask).items():
            comparison.add(f"mask {name}", ours, found[f"mask/{name}"])
    for name, ours in named(local).items():
        comparison.add(f"benign {name}", ours[1], found[f"benign{int(drawn.participants[1])}_params_final/{name}"])
    moved = jax.tree.map(lambda rows, g: g[None] - rows, local, center)
    lengths = trees.client_norm(moved)
    cut = jax.tree.map(lambda d: trees.column(clip_factors(lengths, BOUND), d) * d, moved)
    for k in range(len(lengths)):
        comparison.add(f"clip{k} l2", lengths[k], found[f"clip{k}/l2"])
        for name in named(moved):
            comparison.add(f"clip{k} pre {name}", named(moved)[name][k], found[f"clip{k}/pre/{name}"])
            comparison.add(f"clip{k} post {name}", named(cut)[name][k], found[f"clip{k}/post/{name}"])
    for name, ours in named(cut).items():
        comparison.add(f"accum {name}", -ours.sum(axis=0), found[f"accum/{name}"])
    for name, ours in named(after.variables.params).items():
        comparison.add(f"global1 {name}", ours, found[f"global1/{name}"])
    return comparison
