"""Plays the cells of one group on this machine: data on the devices once, one compiled program, many lanes."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import config as configs
from fedjax_spmc import data, numerics, parts, setup
from fedjax_spmc.data.pipeline import ClientIndices, pad_indices
from fedjax_spmc.errors import UserError
from fedjax_spmc.federation import FederationState, evaluated_model
from fedjax_spmc.keys import root_key
from fedjax_spmc.record.environment import digest_of
from fedjax_spmc.record.lines import Unreported, at_confidence, diverged_message, metrics_line, summary_of
from fedjax_spmc.record.remarks import facts_of
from fedjax_spmc.record.resume import Snapshot
from fedjax_spmc.record.truth import attack_arrays, partition_arrays, roster_content
from fedjax_spmc.starting import StartModel, start_model
from fedjax_spmc.sweep import program as programs
from fedjax_spmc.sweep.plan import Cell, Group
from fedjax_spmc.sweep.program import Lane, Layout, RoundOutcome, SharedData
from fedjax_spmc.sweep.scratch import Scratch
from fedjax_spmc.sweep.table import Outcome
from fedjax_spmc.types import Examples


class Player:
    """The cells of a group, ready to be played.

    Args:
        group: with all of its cells, those that are finished too: index lists are padded to the largest client of all,
            so that a restarted sweep compiles the same program.
        dataset: the group's data.

    Attributes:
        held_sha256: sum of what the attack holds; None where it holds nothing.
        refused: cells that do not fit the data: id -> why.
        compiled: how many programs were compiled.
    """

    def __init__(self, group: Group, dataset: data.Dataset):
        self._config = group.cells[0].config
        self._dataset = dataset
        self.refused: dict[str, str] = {}
        self.compiled = 0
        self._saved: dict[str | None, StartModel | None] = {None: None}  # by model.start
        self._parts: dict[str, list[np.ndarray]] = {}
        model = parts.model_of(self._config, dataset.info)
        for cell in group.cells:
            try:
                parts.check_fits(cell.config, dataset.info)
                parts.check_answers(cell.config, dataset)
                self._parts[cell.id] = setup.divide(cell.config, dataset)
                if cell.config.model.start not in self._saved:
                    self._saved[cell.config.model.start] = start_model(cell.config, model, dataset.info.tokenizer)
            except UserError as error:
                self.refused[cell.id] = str(error)
        self._width = max((len(part) for parts in self._parts.values() for part in parts), default=1)
        self._programs: dict[Layout, Any] = {}
        self._host = SharedData(
            train=_on_host(dataset.train_inputs, dataset.train_labels),
            test=_on_host(dataset.test_inputs, dataset.test_labels),
            server=setup.server_examples(self._config, dataset),
            held=parts.held_by(self._config, dataset),
        )
        self.held_sha256 = digest_of(self._host.held)
        self._shared: tuple[Layout, SharedData] | None = None
        self._start = parts.make_start(self._config, dataset.info, self._host.server)

    def start(self, cell: Cell) -> tuple[FederationState, Lane]:
        """A cell's state before round 0 and its lane: bit for bit those of a single run."""
        key = root_key(cell.config.seed)
        settings, saved = setup.array_settings(cell.config), self._saved[cell.config.model.start]
        with numerics.pinned(self._config.precision):
            variables = None if saved is None else saved.variables
            state = self._start(key, setup.roster(cell.config, key), settings, self._host.held, variables)
        indices = pad_indices(self._parts[cell.id], self._width)
        arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32 if isinstance(x, int) else jnp.float32), settings)
        return state, Lane(key, ClientIndices(*indices), arrays)

    def start_sha256(self, cell: Cell) -> str | None:
        """sha256 of the saved model with which a cell begins; None where its weights are drawn."""
        saved = self._saved[cell.config.model.start]
        return None if saved is None else saved.sha256

    def fit_to_memory(self, layout: Layout, like: Cell) -> Layout:
        """The layout with as many experiments as memory allows, its program compiled.

        Args:
            layout: the largest that is wanted.
            like: any cell, for the shapes.
        """
        needed = programs.bytes_needed(self.program(layout, like))
        usable = programs.bytes_usable(layout.devices[0])
        if needed is not None and usable is not None and needed > usable and layout.batch > 1:
            shared = sum(x.nbytes for x in jax.tree.leaves(self._host))
            batch = programs.largest_batch(needed, layout.batch, shared, usable)
            layout = layout._replace(batch=min(batch, layout.batch - 1))
            self.program(layout, like)
        return layout

    def memory(self, layout: Layout, like: Cell) -> int | None:
        """Bytes that the layout's program takes on each device."""
        return programs.bytes_needed(self.program(layout, like))

    def play(
        self, cells: Sequence[Cell], layout: Layout, scratch: Scratch, on_round: Callable[[int], None] | None = None
    ) -> list[Outcome]:
        """Plays cells to their end, going on from what `scratch` holds.

        Args:
            cells: at most `layout.lanes`; lanes that are left over repeat the first cell and are thrown away.
            layout: from `fit_to_memory`.
            scratch: where checkpoints are kept.
            on_round: called with the number of rounds played.
        """
        rounds, every = self._config.federation.rounds, self._config.federation.eval_every
        checkpoint_every = self._config.checkpoint.every
        run = self.program(layout, cells[0])
        states, lanes = self.stacked(cells, layout)
        nothing = np.zeros(layout.lanes, np.int32)
        done, (states, unreported), evaluated = scratch.resume(Snapshot(states, Unreported(nothing, nothing, nothing)))
        states = programs.place(layout, states, stacked=True)
        shared = self.shared(layout)
        histories = [[line for entry in evaluated if (line := entry["lines"][i])] for i in range(len(cells))]
        # Copies: the program writes on the states.
        malicious = np.array(states.roster.malicious)
        diverged_rounds = np.array(states.diverged)[: len(cells)]
        since = done
        start = began = time.perf_counter()
        while done < rounds and (diverged_rounds < 0).any():
            evaluate = (done + 1) % every == 0 or done + 1 == rounds
            outcome: RoundOutcome = run(
                states, lanes, shared, programs.place(layout, jnp.asarray(evaluate), stacked=False)
            )
            states, before = outcome.states, diverged_rounds
            diverged_rounds = np.array(states.diverged)[: len(cells)]  # waits for the devices
            unreported = unreported.plus(outcome.reports)
            done += 1
            due = [i for i in range(len(cells)) if (evaluate and before[i] < 0) or diverged_rounds[i] != before[i]]
            if due:
                seconds = (time.perf_counter() - start) / (done - since) / len(cells)
                lines = self._metrics_lines(outcome, due, unreported, malicious, done - 1, seconds)
                unreported = Unreported(*(np.where(np.isin(np.arange(layout.lanes), due), 0, x) for x in unreported))
                scratch.add({"round": done - 1, "lines": [lines.get(i) for i in range(len(cells))]})
                for i, line in lines.items():
                    histories[i].append(line)
                since, start = done, time.perf_counter()
            if done < rounds and (done % checkpoint_every == 0 or (diverged_rounds != before).any()):
                scratch.save(done, Snapshot(states, unreported))
            if on_round is not None:
                on_round(done)
        seconds = (time.perf_counter() - began) / max(1, len(cells))
        return self._outcomes(cells, scratch.environment, states, histories, diverged_rounds, seconds)

    def stacked(self, cells: Sequence[Cell], layout: Layout) -> tuple[FederationState, Lane]:
        """States before round 0 and lanes [lanes, ...], on the host's side of the program."""
        starts = [self.start(cell) for cell in cells]
        starts += [starts[0]] * (layout.lanes - len(starts))
        states, lanes = _stack(starts)
        return states, programs.place(layout, lanes, stacked=True)

    def shared(self, layout: Layout) -> SharedData:
        """The images on the layout's devices; they stay there for the next cells."""
        if self._shared is None or self._shared[0]._replace(batch=0) != layout._replace(batch=0):
            self._shared = layout, programs.place(layout, self._host, stacked=False)
        return self._shared[1]

    def program(self, layout: Layout, like: Cell) -> Any:
        """The compiled program of a layout: (states, lanes, shared, evaluate) -> RoundOutcome."""
        if layout not in self._programs:
            program = programs.make_program(self._config, self._dataset.info, layout)
            states, lanes = _shapes(self.start(like), layout.lanes)
            shared, flag = _shapes((self._host, jnp.asarray(True)))
            # The shardings are given here and not by the shapes, so that the clients' training may close over arrays.
            split, whole = (programs.sharding(layout, stacked) for stacked in (True, False))
            # The states are written on: what is kept of every client would else be copied each round.
            shardings = (split, split, whole, whole)
            jitted = jax.jit(program, in_shardings=shardings, out_shardings=split, donate_argnums=0)
            with numerics.pinned(self._config.precision):
                self._programs[layout] = jitted.lower(states, lanes, shared, flag).compile()
            self.compiled += 1
        return self._programs[layout]

    def _metrics_lines(
        self,
        outcome: RoundOutcome,
        due: Sequence[int],
        unreported: Unreported,
        malicious: np.ndarray,
        index: int,
        seconds: float,
    ) -> dict[int, dict[str, Any]]:
        """Lane -> line of the round `index`."""
        federation = parts.assemble(self._config, self._dataset.info, self._host.server)
        backdoor = federation.attack.backdoor is not None
        flags = federation.aggregator(self._host.server).flags
        counts, reports = jax.device_get((outcome.counts, outcome.reports))
        return {
            i: metrics_line(
                round_index=index,
                counts=jax.tree.map(lambda x, i=i: x[i], counts),
                report=jax.tree.map(lambda x, i=i: x[i], reports),
                malicious=malicious[i],
                backdoor=backdoor,
                unreported=Unreported(*(field[i] for field in unreported)),
                seconds={"round_seconds": seconds, "eval_seconds": None},  # the round's program evaluates
                flags=flags,
            )
            for i in due
        }

    def _outcomes(
        self,
        cells: Sequence[Cell],
        environment: Mapping[str, Any],
        states: FederationState,
        histories: Any,
        diverged_rounds: np.ndarray,
        seconds: float,
    ) -> list[Outcome]:
        outcomes = []
        for i, cell in enumerate(cells):
            # Cells of one program may differ in it, and it may have changed since the program was interrupted.
            history = [at_confidence(line, cell.config.evaluation.confidence) for line in histories[i]]
            federation = parts.assemble(cell.config, self._dataset.info, self._host.server)
            state = jax.tree.map(lambda x, i=i: x[i], states)
            note, diverged = self._dataset.info.note, int(diverged_rounds[i])
            idle = setup.idle_clients(cell.config, self._parts[cell.id])
            malicious = np.asarray(state.roster.malicious)
            facts = facts_of(configs.flatten(cell.config), history, malicious, idle)
            outcomes.append(
                Outcome(
                    cell=cell,
                    summary=summary_of(cell.config, history, facts, note, diverged),
                    environment={**environment, "start_sha256": self.start_sha256(cell)},
                    history=history,
                    variables=jax.device_get(evaluated_model(federation, state)),
                    roster=roster_content(state.roster),
                    attack=attack_arrays(state.attack),
                    partition=partition_arrays(self._dataset, self._parts[cell.id]),
                    tokenizer=self._dataset.info.tokenizer,
                    seconds=seconds,
                    error=None if diverged < 0 else diverged_message(diverged, cell.config),
                )
            )
        return outcomes


def _on_host(inputs: np.ndarray, labels: np.ndarray) -> Examples:
    return Examples(np.asarray(inputs), np.asarray(labels, np.int32))  # pyright: ignore[reportArgumentType]


@jax.jit
def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _shapes(tree: Any, *lead: int) -> Any:
    """Shapes and dtypes of a tree, to compile for; `lead` axes come first."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), tree)
