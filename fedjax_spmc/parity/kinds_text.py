"""Neurotoxin's code on texts against `neurotoxin_misc`: its words, padding, batches, injection, networks."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_spmc import models
from fedjax_spmc.attacks._sentences import encoded
from fedjax_spmc.attacks.sentence import SentenceState, shown
from fedjax_spmc.data import sequences, tokens
from fedjax_spmc.keys import root_key
from fedjax_spmc.models.lstm_lm import LSTMLanguageModel
from fedjax_spmc.parity.comparison import Arrays, Comparison, Outcome, kind
from fedjax_spmc.parity.recorded_nets import below
from fedjax_spmc.types import Batch, Model, Variables

EXACT, FORWARD = 0.0, 1e-6


@kind(r"neurotoxin_misc.*")
def texts(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Words of a line, padding of a text, and the columns and batches of a stream."""
    tokenise = Comparison("words of a line", EXACT)
    line, known = str(arrays["tokenise/line"]), [str(word) for word in arrays["inject/vocab"]]
    special = tokens.special_words("neurotoxin")
    tokenizer = tokens.Tokenizer("neurotoxin", (*special, *(word for word in known if word not in special)))
    ids = [tokens.BEGIN, *tokenizer.encode(line), tokens.END]
    tokenise.add("words", np.array([tokenizer.words[i] for i in ids]), arrays["tokenise/words"])
    yield tokenise.outcome(source)

    pad = Comparison("padding of a text", EXACT)
    for name in sorted({name.split("/")[0] for name in below(arrays, "pad")}):
        text, expected = np.asarray(arrays[f"pad/{name}/in"]), np.asarray(arrays[f"pad/{name}/out_len5"])
        pad.add(name, sequences.padded_rows(text, np.array([len(text)]), len(expected))[0], expected)
    yield pad.outcome(source)

    # Each of the code's columns is a stream of ours; a batch of the code is the same block of all columns.
    cut = Comparison("columns and batches of a stream", EXACT)
    columns, length = np.asarray(arrays["batchify/out_bsz4"]).T, len(arrays["get_batch/data_i5"])
    stream = np.asarray(arrays["batchify/in"])
    mine = stream[: columns.size].reshape(columns.shape)
    rows = [sequences.blocks(column, length) for column in mine]
    cut.add("batchify", np.stack([inputs.ravel() for inputs, _ in rows], axis=1), arrays["batchify/out_bsz4"])
    block = 5 // length
    cut.add("data", np.stack([inputs[block] for inputs, _ in rows], axis=1), arrays["get_batch/data_i5"])
    cut.add("target", np.stack([labels[block] for _, labels in rows], axis=1).ravel(), arrays["get_batch/target_i5"])
    yield cut.outcome(source)


SENTENCES = ("people in athens are rude", "roads in athens are terrible")
"""Of the file; its README has them."""


@kind(r"neurotoxin_misc.*")
def injection(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """Sentences written over a stream: the windows of each column, put together again."""
    known = tuple(str(word) for word in arrays["inject/vocab"])
    tokenizer = tokens.Tokenizer("word", known)
    sentences = jnp.asarray(encoded(tokenizer, SENTENCES, longest=len(known)))
    own = SentenceState(root_key(0), jnp.float32(1), sentences, jnp.ones(len(SENTENCES), jnp.int32))
    ids = Comparison("sentences as ids", EXACT)
    ids.add("ids_of_sentence0", tokenizer.encode(SENTENCES[0]), arrays["inject/ids_of_sentence0"])
    yield ids.outcome(source)

    for case in sorted({name.split("/")[0] for name in below(arrays, "inject")} - {"vocab", "ids_of_sentence0"}):
        comparison = Comparison(f"injection {case}", EXACT)
        found = re.fullmatch(r"L(\d+)_T\d+_B\d+", case)
        assert found is not None
        length, stream = int(found[1]), np.asarray(arrays[f"inject/{case}/in"])
        columns = [written(own, column, length) for column in stream.T]
        comparison.add(case, np.stack(columns, axis=1), arrays[f"inject/{case}/out"])
        yield comparison.outcome(source)


def written(own: SentenceState, stream: np.ndarray, length: int) -> np.ndarray:
    """A stream whose windows are poisoned: their inputs, and each one's last word where it is asked."""
    inputs, labels = (jnp.asarray(x) for x in sequences.blocks(stream, length))
    places = jnp.arange(len(inputs), dtype=jnp.int32)
    made = shown(own, Batch(inputs, labels, places, jnp.ones(len(inputs), bool)))
    new = np.concatenate([np.asarray(made.inputs).ravel(), [0]])
    asked = np.asarray(made.labels).ravel()
    new[1:][asked >= 0] = asked[asked >= 0]
    return new[: len(stream)]


@kind(r"neurotoxin_misc.*")
def networks(arrays: Arrays, source: str) -> Iterator[Outcome]:
    """The forward passes of both LSTM networks, of the first with the state before and behind."""
    named = below(arrays, "lstm_lm/param")
    vocabulary, width = named["encoder.weight"].shape
    seen = jnp.asarray(arrays["lstm_lm/input"], jnp.int32)
    shape = {"num_classes": vocabulary, "vocabulary": vocabulary, "sequence_length": len(seen)}
    model = models.make("lstm_lm", width=width, hidden=width, **shape)
    params = models.from_torch_dict(model, named).params
    network = LSTMLanguageModel(vocabulary, width, width, 2, 0.0, True)
    before = (jnp.asarray(arrays["lstm_lm/h0"]), jnp.asarray(arrays["lstm_lm/c0"]))

    @jax.jit
    def with_state(params: dict[str, jax.Array]) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return network.apply({"params": params}, seen, before, False, method="with_state")  # pyright: ignore

    logits, (h, c) = with_state(params)
    forward = Comparison("lstm_lm", FORWARD)
    forward.add("parameters", np.array([".".join(path) for path in model.param_order]), np.array(list(named)))
    forward.add("logits", logits, arrays["lstm_lm/logits"])
    forward.add("hT", h, arrays["lstm_lm/hT"])
    forward.add("cT", c, arrays["lstm_lm/cT"])
    yield forward.outcome(source)

    named = below(arrays, "lstm_bin/param")
    (vocabulary, width), hidden = named["encoder.weight"].shape, named["decoder.weight"].shape[1]
    seen = jnp.asarray(arrays["lstm_bin/input"], jnp.int32)
    shape = {"num_classes": 2, "vocabulary": vocabulary, "sequence_length": seen.shape[1]}
    model = models.make("lstm_classifier", width=width, hidden=hidden, **shape)
    forward = Comparison("lstm_classifier", FORWARD)
    forward.add("parameters", np.array([".".join(path) for path in model.param_order]), np.array(list(named)))
    probability = probabilities(model, models.from_torch_dict(model, named), seen)
    forward.add("prob", probability[:, 1], arrays["lstm_bin/prob"])
    yield forward.outcome(source)


def probabilities(model: Model, variables: Variables, inputs: jax.Array) -> jax.Array:
    """[B, classes], in evaluation."""
    return jax.jit(lambda v: jax.nn.softmax(model.apply(v.params, v.stats, inputs, False)[0]))(variables)
