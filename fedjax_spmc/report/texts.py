"""Examples in words, for runs on texts: what the global model makes of test texts, clean and with the trigger; and the
table of what next tokens are measured by."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_spmc.data.tokens import Tokenizer
from fedjax_spmc.report.examples import JUDGED, Prediction, TestImages
from fedjax_spmc.report.settings import Setting, labels, num_seeds, rounds_played
from fedjax_spmc.report.tables import INTERVALS, Cell, Row, Table

NUM_TEXTS = 6
"""Test texts that are shown of a run, at most."""
LONGEST = 160
"""Letters of a text that are shown, at most."""
LIKELIEST = 3
"""So many predictions are shown of a next word."""


def test_texts(
    tokenizer: Tokenizer,
    names: Sequence[str],
    tests: tuple[np.ndarray, np.ndarray],
    own_tests: tuple[np.ndarray, np.ndarray] | None,
    trigger: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None,
    predict: Callable[[np.ndarray], np.ndarray],
) -> TestImages:
    """Test texts with predictions, clean and triggered.

    Args:
        tokenizer: of the data.
        names: of the classes, where texts have a class.
        tests: inputs and labels of the test set.
        own_tests: the attack's own, in place of triggered ones of the test set; None = it has none.
        trigger: (inputs, labels, rows) -> what is shown to the model, and what is wanted; None = no such attack.
        predict: inputs -> logits.
    """
    inputs, true = tests

    def judged(inputs: np.ndarray, true: np.ndarray, wanted: np.ndarray | None = None) -> list[Prediction]:
        if true.ndim > 1:
            asked = last_asked(true) if wanted is None else wanted
            return next_tokens(tokenizer, inputs, asked, predict(inputs), wanted is not None)
        return classes(tokenizer, names, inputs, true, predict(inputs), wanted)

    rows = chosen_rows(true)
    clean = judged(inputs[rows], true[rows])
    if trigger is None:
        return TestImages(clean, [], "", "There was no attack with a trigger.")
    caption, note = "with the trigger", "What is asked stands before the arrow."
    if own_tests is not None:
        (inputs, true), caption = own_tests, "test texts of the attack's own, without a trigger"
        rows = np.unique(np.linspace(0, len(true) - 1, NUM_TEXTS).astype(int))
    shown, wanted = trigger(inputs[rows], true[rows], rows)
    if own_tests is None and np.array_equal(shown, inputs[rows]):
        caption = "the same: the attack has no trigger"
    return TestImages(clean, judged(shown, true[rows], wanted), caption, note)


test_texts.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]  (no test, whatever pytest makes of its name)


def chosen_rows(labels: np.ndarray) -> np.ndarray:
    """Rows to show: of next tokens some that ask, spread over the test; else the first of each class."""
    if labels.ndim > 1:
        asking = np.flatnonzero((labels >= 0).any(axis=1))
        spread = np.linspace(0, len(asking) - 1, min(NUM_TEXTS, len(asking)))
        return asking[np.unique(spread.astype(int))]
    known = np.unique(labels[labels >= 0])
    each = max(1, NUM_TEXTS // max(1, len(known)))
    rows = [np.flatnonzero(labels == label)[:each] for label in known]
    return np.concatenate([np.zeros(0, int), *rows])[:NUM_TEXTS]


def last_asked(labels: np.ndarray) -> np.ndarray:
    """[B, T] labels of which only the last asked one of each row is left."""
    places = np.arange(labels.shape[1])[None]
    return np.where(places == np.where(labels >= 0, places, -1).max(axis=1, keepdims=True), labels, -1)


def next_tokens(
    tokenizer: Tokenizer, inputs: np.ndarray, labels: np.ndarray, logits: np.ndarray, attacked: bool
) -> list[Prediction]:
    """Of each row the text up to the first place asked, what follows there, and the likeliest tokens.

    Args:
        tokenizer: of the data.
        inputs: [B, T].
        labels: [B, T], of one place or of those of one word; rows without any are left out.
        logits: [B, T, vocabulary].
        attacked: whether labels are what an attacker wants.
    """
    made = []
    for row, asked in enumerate(labels >= 0):
        if asked.any():
            places = np.flatnonzero(asked)
            before, wanted = tokenizer.decode(inputs[row, : places[0] + 1]), labels[row, places]
            order = np.argsort(-logits[row, places], axis=-1, kind="stable")[:, :LIKELIEST]
            reached = bool((order[:, 0] == wanted).all())
            # Of a word of several bytes the likeliest at each place, of a single token the next ones too.
            says = (
                tokenizer.decode(order[:, 0])
                if len(places) > 1
                else ", ".join(map(tokenizer.decode, order[0][:, None]))
            )
            kind = ("hit" if attacked else "right") if reached else "wrong"
            cut = before if len(before) <= LONGEST else f"… {before[-LONGEST:]}"
            made.append(Prediction("", None, tokenizer.decode(wanted), f"{says} ({JUDGED[kind]})", kind, cut))
    return made


def classes(
    tokenizer: Tokenizer,
    names: Sequence[str],
    inputs: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    wanted: np.ndarray | None,
) -> list[Prediction]:
    """Of each row the text, its class, and the class that it is taken for.

    Args:
        tokenizer: of the data.
        names: of the classes.
        inputs: [B, T].
        labels: [B], the true classes.
        logits: [B, classes].
        wanted: [B], what an attacker wants, -1 = nothing: such rows are left out; None = there is no trigger.
    """
    made = []
    for row, predicted in enumerate(logits.argmax(axis=-1)):
        if wanted is not None and wanted[row] < 0:
            continue
        hit = wanted is not None and predicted == wanted[row]
        kind = "hit" if hit else "right" if predicted == labels[row] else "wrong"
        text = tokenizer.decode(inputs[row])
        cut = text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
        made.append(Prediction("", None, names[int(labels[row])], f"{names[predicted]} ({JUDGED[kind]})", kind, cut))
    return made


def next_token_table(settings: Sequence[Setting]) -> Table:
    """A line per setting whose data ask for the next token: A, top-3 accuracy, perplexity, ASR."""
    columns = {"A": "A", "A top 3": "A_top3", "perplexity": "perplexity", "ASR": "ASR"}
    rows = []
    for setting, label in zip(settings, labels(settings), strict=True):
        if not math.isnan(setting.estimate("perplexity").mean):
            cells = [Cell(text=num_seeds(setting)), Cell(text=rounds_played(setting))]
            cells += [Cell(setting.estimate(name), marks=setting.marks()) for name in columns.values()]
            rows.append(Row("", (label,), cells))
    notes = [
        INTERVALS,
        "A and A top 3: asked tokens that are the likeliest, or among the three likeliest. Perplexity: exp of the mean "
        "of -log p over the asked tokens. ASR: triggered places at which the wanted token is the likeliest.",
    ]
    heads = ["seeds", "rounds", *columns]
    return Table("next_token", "Next tokens", notes, ("setting",), [("", len(heads))], heads, rows)


def predicting(model: Any, variables: Any, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """inputs -> logits of a model, in evaluation."""
    import jax
    import jax.numpy as jnp

    from fedjax_spmc import numerics

    apply = jax.jit(lambda inputs: model.apply(variables.params, variables.stats, inputs, False)[0])

    def predict(inputs: np.ndarray) -> np.ndarray:
        with numerics.pinned(precision):
            return np.asarray(apply(jnp.asarray(inputs)))

    return predict
