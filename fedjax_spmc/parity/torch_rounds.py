"""Rounds of the simulator and of plain torch loops side by side: `python -m fedjax_spmc.parity --torch`.

In float32 both sides round differently. A ReLU or a max-pool whose input lies within rounding of a switch may then fall
the other way on one side, which moves weights by far more than rounding does; torch's own float32 departs from its
float64 in the same way. Such a round says nothing about who is right, so it is played again with float64 on both sides,
where the two must agree to 1e-9; it is named in the table, and another round is judged in its place, three times at
most.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import models, setup
from fedjax_spmc.federation import FederationState
from fedjax_spmc.metrics import percentages
from fedjax_spmc.one_round import play_round
from fedjax_spmc.parity.comparison import TOLERANCE, Comparison, Outcome, Say, silent
from fedjax_spmc.parity.kinds_local import fixed_batches
from fedjax_spmc.parity.torch_side import (
    CLIENTS,
    Batches,
    TorchSide,
    small_experiment,
    torch_reference,
)
from fedjax_spmc.rounds import make_round
from fedjax_spmc.types import Array, ClientData

ROUNDS = 5
MAX_REPLACED_ROUNDS = 3
"""Rounds that may be replaced, at most."""
WARM_UP = 24
"""Rounds of the simulator alone before the compared ones: by then the model classifies most digits."""
MAX_SWITCH_ERROR = 1e-3
"""A round whose worst error is above this is never replaced, whatever float64 says."""
TOLERANCE_FLOAT64 = 1e-9
METHODS = ("fedavg", "spmc")


class BothSides:
    """One method on both sides, in float32 and in float64."""

    def __init__(self, method: str):
        self.experiment = small_experiment(method)
        self.batches = Batches(self.experiment)
        self.theirs, self._theirs_float64 = (
            TorchSide(self.experiment, method),
            TorchSide(self.experiment, method, "float64"),
        )
        self.play = make_round(self.experiment.federation, self.experiment.arrays, self.experiment.sizes)
        self._play_float64 = Float64Round(self.experiment, self.batches.steps)
        # Averaging keeps no teachers: the torch side then gets the global model in their place and does not look at it.
        self._with_teachers = method == "spmc"

    def vector(self, state: FederationState) -> np.ndarray:
        """The global model as one vector, in torch's order."""
        return np.asarray(models.to_torch(state.variables.params))

    def start_of(self, state: FederationState, side: TorchSide) -> tuple[Any, list[Any]]:
        """The global model and every client's teacher as torch's tensors."""
        shared = side.tensors(models.to_torch_dict(state.variables))
        if not self._with_teachers:
            return shared, [shared] * CLIENTS
        rows = [jax.tree.map(lambda x, k=k: x[k], state.rule.clients) for k in range(CLIENTS)]
        return shared, [side.tensors(models.to_torch_dict(row)) for row in rows]

    def compare(self, comparison: Comparison, name: str, state: FederationState, report: Any, played: Any) -> None:
        """Compares the results of both sides after a round: the model, the server's weights, the teachers."""
        comparison.add(f"{name}: model", self.vector(state), flat(played.state))
        comparison.add(f"{name}: weights", report.verdict.weights, played.weights.numpy())
        if self._with_teachers:
            ours = np.stack([flat(one) for one in self.start_of(state, self.theirs)[1]])
            comparison.add(f"{name}: teachers", ours, np.stack([flat(one) for one in played.teachers]))

    def add_in_float64(self, comparison: Comparison, name: str, state: FederationState) -> None:
        """Plays the round after `state` with float64 on both sides and compares the results."""
        taken = self.batches.of_round(state)
        played = self._theirs_float64.play(*self.start_of(state, self._theirs_float64), taken)
        with jax.enable_x64(True):
            # The images in float64 come from the torch side: no rounding of the float32 pipeline stands between.
            new, report = self._play_float64(state, [self._theirs_float64.arrays(one) for one in taken])
            self.compare(comparison, name, new, report, played)


def flat(state: Any) -> np.ndarray:
    """A torch state dictionary as one vector."""
    return np.concatenate([tensor.numpy().ravel() for tensor in state.values()])


class Float64Round:
    """The simulator's round with all models and images in float64; to be called where jax has 64 bits.

    Args:
        experiment: the parts of the round.
        steps: of every client, for one epoch.
    """

    def __init__(self, experiment: setup.Experiment, steps: list[int]):
        self._longest, self._key = max(steps), experiment.key
        counts = np.asarray(steps, np.int32)

        def client_data(arrays: Any, client_id: Array, frozen: Array, round_index: Array, key: Array) -> ClientData:
            del frozen, round_index, key
            own = fixed_batches(arrays[0][client_id], arrays[1][client_id], client_id)
            return own._replace(num_batches=jnp.asarray(counts)[client_id])

        # The batches that come from the torch side are poisoned already.
        attack = experiment.federation.attack._replace(poison=None)
        federation = experiment.federation._replace(client_data=client_data, epochs=1, attack=attack)
        sizes = experiment.sizes
        self._program = jax.jit(lambda arrays, state, key: play_round(federation, arrays, sizes, state, key))

    def __call__(
        self, state: FederationState, batches: list[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[FederationState, Any]:
        """One round.

        Args:
            state: before the round, in float32.
            batches: of every client, images [steps, B, H, W, C] in float64 and labels [steps, B].
        """

        def widened(tree: Any) -> Any:
            return jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

        padded = [[np.resize(x, (self._longest, *x.shape[1:])) for x in own] for own in batches]
        images, labels = (np.stack(column) for column in zip(*padded, strict=True))
        wide = state._replace(
            variables=widened(state.variables), previous=widened(state.previous), rule=widened(state.rule)
        )
        return self._program((jnp.asarray(images, jnp.float64), jnp.asarray(labels, jnp.int32)), wide, self._key)


def compare_method(method: str, say: Say = silent) -> Iterator[Outcome]:
    """Five rounds in float32, each from the simulator's own state; then one round in float64 on both sides.

    Args:
        method: a preset.
        say: takes a line for each round, before it is compared.
    """
    say(f"beside torch: {method}, a round in float64")
    sides = BothSides(method)
    experiment, theirs = sides.experiment, sides.theirs
    comparison, success = Comparison(f"{method}, {ROUNDS} rounds"), Comparison(f"{method}, A and ASR", 1e-9)
    exact = Comparison(f"{method}, one round in float64", TOLERANCE_FLOAT64)
    state, free, drifts, replaced, judged = experiment.state, None, [], [], 0
    for _ in range(WARM_UP):
        state, _ = sides.play(state, experiment.key)
    sides.add_in_float64(exact, "round 0", state)
    while judged < ROUNDS:
        index, before = judged + len(replaced), state
        say(f"beside torch: {method}, round {judged + 1} of {ROUNDS}")
        taken = sides.batches.of_round(state)
        played = theirs.play(*sides.start_of(state, theirs), taken)
        free = theirs.play(free.state, free.teachers, taken) if free else played
        state, report = sides.play(state, experiment.key)
        drifts.append(np.abs(sides.vector(state) - flat(free.state)).max())
        alone = Comparison(f"round {index}")
        sides.compare(alone, f"round {index}", state, report, played)
        error = alone.outcome("torch").error or 0.0
        if TOLERANCE < error <= MAX_SWITCH_ERROR and len(replaced) < MAX_REPLACED_ROUNDS:
            sides.add_in_float64(exact, f"round {index}", before)
            replaced.append(f"round {index} ({error:.1e})")
            continue
        judged += 1
        comparison.include(alone)
        counts = experiment.evaluate(state.variables, experiment.test, state.roster, state.attack)
        ours = percentages(counts, backdoor=True)
        success.add(f"round {index}", np.array([ours["A"], ours["ASR"]]), np.array(theirs.percentages(played.state)))
    rounds = comparison.outcome("torch")
    if replaced and rounds.verdict == "passed":
        rounds = rounds._replace(reason=f"replaced, judged in float64: {', '.join(replaced)}")
    yield rounds
    yield success.outcome("torch")
    drift = ", ".join(f"{one:.1e}" for one in drifts)
    reason = f"each side from its own models, worst difference after each round: {drift}"
    yield Outcome(f"{method}, free-running", "torch", len(drifts), float(drifts[-1]), None, "not judged", reason)
    yield exact.outcome("torch")


def against_torch(say: Say = silent) -> list[Outcome]:
    """All rows of `--torch`; `say` takes a line for each round.

    Raises:
        ConfigError: torch or the repository's torch loops are not there.
    """
    torch_reference()
    return [outcome for method in METHODS for outcome in compare_method(method, say)]
