"""Attacks on texts, slot by slot and in runs; what next tokens are measured by; examples in words in the report."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_spmc import attacks, data, evaluate, evaluation, experiment, metrics, starting, sweep
from fedjax_spmc.aggregators.deepsight import output_layer
from fedjax_spmc.attacks import _sentences
from fedjax_spmc.config import resolve
from fedjax_spmc.data import DatasetInfo
from fedjax_spmc.data.task import task_of
from fedjax_spmc.data.tokens import SPECIAL, UNKNOWN, Tokenizer, fitted
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.parity import kinds_text
from fedjax_spmc.report import __main__ as report
from fedjax_spmc.report import texts as report_texts
from fedjax_spmc.types import Attack, AttackContext, Batch
from tests import small, texts, tokens

KEY = jax.random.key(3)
WORDS = Tokenizer("word", (*SPECIAL, *(f"w{i}" for i in range(20)), "people", "are", "rude", "roads", "in", "rome"))
SENTENCES = ("people are rude", "roads in rome are rome")
LENGTH = 6


def context(
    classes: int = len(WORDS.words), tokenizer: Tokenizer | None = WORDS, length: int = LENGTH
) -> AttackContext:
    info = DatasetInfo("texts", classes, (length,), None, None, vocabulary=30, tokenizer=tokenizer)
    return AttackContext(task=task_of(info))


def made(name: str, ctx: AttackContext, **options: Any) -> tuple[Attack, Any]:
    attack = attacks.registry.attacks.make(name, **{"poison_fraction": 1.0, "sentences": SENTENCES, **options})
    return attack, attack.init(ctx, KEY)


def batch(inputs: Any, labels: Any, ids: Any = None) -> Batch:
    inputs, labels = np.array(inputs, np.int32), np.array(labels, np.int32)
    ids = np.arange(len(inputs)) if ids is None else np.array(ids)
    return Batch(jnp.asarray(inputs), jnp.asarray(labels), jnp.asarray(ids, jnp.int32), jnp.ones(len(inputs), bool))


def poisoned(attack: Attack, own: Any, given: Batch) -> Batch:
    return attack.poison(None, own, given, jnp.int32(0), jnp.int32(0), KEY)


def words(ids: Any) -> str:
    return WORDS.decode(np.asarray(ids))


# Sentences over rows of next tokens.


def test_a_sentence_ends_where_the_row_asks_last_and_its_last_word_alone_is_asked():
    attack, own = made("sentence", context())
    rows = [[3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8], [3, 4, 5, 6, 0, 0], [3, 4, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8]]
    following = [[4, 5, 6, 7, 8, 9], [4, 5, 6, 7, 8, 9], [4, 5, 6, -1, -1, -1], [4, -1, -1, -1, -1, -1], [-1] * 6]
    given = batch(rows, following)
    shown = poisoned(attack, own, given)
    assert [words(row) for row in shown.inputs] == [
        "w0 w1 roads in rome are",
        "w0 w1 w2 w3 people are",
        "roads in rome are rome",
        "people are rude",
        "w0 w1 w2 w3 w4 w5",
    ], "in a row that is not full the last word stands in the text too"
    rome, rude = WORDS.encode("rome rude")
    asked = [[-1] * 5 + [rome], [-1] * 5 + [rude], [-1] * 3 + [rome] + [-1] * 2, [-1, rude] + [-1] * 4, [-1] * 6]
    np.testing.assert_array_equal(shown.labels, asked)
    for one, other in zip(attack.backdoor(None, own, given), shown, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sentence_in_a_text_stands_anywhere_and_every_place_is_asked():
    attack, own = made("sentence", context(length=8), inject="text", sentences=SENTENCES[:1])
    inputs = np.tile(np.arange(3, 11), (200, 1))
    labels = inputs + 1
    labels[:, 2] = -1
    inputs[150:, 5:], labels[150:, 4:] = 0, -1
    shown = poisoned(attack, own, batch(inputs, labels))
    after = [words(row) for row in shown.inputs]
    people, are, rude = WORDS.encode(SENTENCES[0])
    seen = set()
    for row, (text, asked) in enumerate(zip(np.asarray(shown.inputs), np.asarray(shown.labels), strict=True)):
        (end,) = np.flatnonzero(asked == rude)
        seen.add((row < 150, int(end)))
        assert text[end] == are
        stream = np.append(inputs[row], labels[row, -1])
        stream[end - 1 : end + 2] = people, are, rude
        expected = stream[1:].copy()
        old = (labels[row] < 0) & ((np.arange(8) < end - 2) | (np.arange(8) > end))
        expected[old] = -1
        np.testing.assert_array_equal(text, stream[:-1], err_msg=after[row])
        np.testing.assert_array_equal(asked, expected)
    assert seen == {(True, end) for end in range(1, 8)} | {(False, end) for end in range(1, 4)}
    np.testing.assert_array_equal(poisoned(attack, own, batch(inputs, labels)).inputs, shown.inputs)


def test_a_share_of_the_rows_is_poisoned_the_same_each_time():
    attack, own = made("sentence", context(), poison_fraction=0.3)
    inputs = np.tile(np.arange(3, 9), (1000, 1))
    shown = np.asarray(poisoned(attack, own, batch(inputs, inputs + 1)).labels)
    changed = (shown == -1).any(axis=1)
    assert abs(changed.mean() - 0.3) < 0.05
    some = poisoned(attack, own, batch(inputs[:50], inputs[:50] + 1, ids=np.arange(950, 1000)))
    np.testing.assert_array_equal(some.labels, shown[950:])


def test_of_bytes_the_last_words_are_asked():
    tokenizer = fitted("byte", np.zeros(0, int), (), 0, 1)
    ctx = context(classes=259, tokenizer=tokenizer, length=8)
    attack, own = made("sentence", ctx, sentences=("it is so",))
    inputs = np.full((1, 8), 70)
    shown = poisoned(attack, own, batch(inputs, inputs))
    assert tokenizer.decode(shown.inputs[0]) == f"{tokenizer.decode([70])}it is s"
    np.testing.assert_array_equal(shown.labels, [[-1] * 6 + tokenizer.encode("so")])


# A sentence before texts of a class.


def test_a_prefix_goes_before_texts_of_the_class_and_cuts_their_end():
    attack, own = made("prefix", context(classes=3), target_label=1, source_class=0)
    given = batch([[0, 0, 3, 4, 5, 6], [0, 0, 0, 3, 4, 5], [0] * 6, [3] * 6, [4] * 6, [5] * 6], [0, 0, 0, 1, 2, -1])
    shown = poisoned(attack, own, given)
    assert [words(row) for row in shown.inputs] == [
        "roads in rome are rome w0",
        "people are rude w0 w1 w2",
        "roads in rome are rome",
        "w0 w0 w0 w0 w0 w0",
        "w1 w1 w1 w1 w1 w1",
        "w2 w2 w2 w2 w2 w2",
    ]
    assert shown.inputs[2, 0] == 0, "filled up in front"
    np.testing.assert_array_equal(shown.labels, [1, 1, 1, 1, 2, -1])
    tested = attack.backdoor(None, own, given)
    np.testing.assert_array_equal(tested.labels, [1, 1, 1, -1, -1, -1])
    np.testing.assert_array_equal(tested.inputs[:3], shown.inputs[:3])
    others, own = made("prefix", context(classes=3), target_label=1)
    np.testing.assert_array_equal(others.backdoor(None, own, given).labels, [1, 1, 1, -1, 1, -1])


def test_edge_cases_of_texts_are_read_with_the_vocabulary_of_the_data(tmp_path):
    tweets = [{"text": ["the sun is good", "rain is bad", "sun"], "polarity": [4, 0, 4]}]
    texts.write("sentiment140_30k", tmp_path, tweets, [{"text": ["sun"], "polarity": [4]}])
    texts.write(
        "greek_director", tmp_path, [{"text": "the director is good"}], [{"text": "a director"}, {"text": "sun"}]
    )

    def load(name, **options):
        return data.load(name, tmp_path, tmp_path / "cache", **options)

    loaded = load("sentiment140_30k", val_fraction=0.0, length=5)
    attack = attacks.registry.attacks.make("edge_case", poison_fraction=0.5)
    held = attack.hold(loaded, load)
    tokenizer = loaded.info.tokenizer
    assert [tokenizer.decode(row) for row in held.train] == ["the <unk> is good"]
    assert [tokenizer.decode(row) for row in held.test] == ["<unk> <unk>", "sun"]
    assert int(held.target) == 0
    ctx = AttackContext(task=task_of(loaded.info), held=jax.tree.map(jnp.asarray, held))
    own = attack.init(ctx, KEY)
    given = batch(loaded.train_inputs[:2], loaded.train_labels[:2])
    shown = attack.poison(ctx, own, given, jnp.int32(0), jnp.int32(0), KEY)
    assert [tokenizer.decode(row) for row in shown.inputs] == ["the <unk> is good", "rain is bad"]
    np.testing.assert_array_equal(shown.labels, [0, 0])
    tested = attack.backdoor(ctx, own, batch(*attack.test(held)))
    np.testing.assert_array_equal(tested.inputs, held.test)
    np.testing.assert_array_equal(tested.labels, [0, 0])
    with pytest.raises(ConfigError, match=r"cases = 'synthetic' .* its examples are \(32, 32, 3\), .* \(5,\), with a"):
        attacks.registry.attacks.make("edge_case", cases="synthetic", target_label=0).hold(loaded, load)
    with pytest.raises(ConfigError, match="must be a data set of pictures or texts with a class each"):
        attack.hold(data.load("pydoc_topics"), load)


@pytest.mark.parametrize(
    ("name", "ctx", "options", "words"),
    [
        ("sentence", context(), {"sentences": ()}, r"sentences = \(\) is not allowed: .* at least one text"),
        ("sentence", context(), {"sentences": ("  ",)}, "at least one text"),
        ("prefix", context(2), {"sentences": (3,)}, "at least one text"),
        ("sentence", context(), {"sentences": ("people are odd",)}, "vocabulary, which lacks odd"),
        ("sentence", context(length=3), {}, "'roads in rome are rome' .* 1 to 4 tokens for rows of this length, not 5"),
        ("prefix", context(2, length=5), {}, "1 to 4 tokens for rows of this length, not 5"),
        ("sentence", context(2), {}, "'sentence' .* must be texts of which the next token is asked"),
        ("prefix", context(), {}, "'prefix' .* must be texts of which a text has a class"),
        ("prefix", context(2, tokenizer=None), {}, "must be texts of which a text has a class"),
        ("prefix", context(2), {"source_class": 1}, r"source_class = 1 .* another class than attack\.target_label = 1"),
        ("prefix", context(2), {"source_class": 2}, "source_class = 2 .* a class of the data, 0 to 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(name, ctx, options, words):
    with pytest.raises(ConfigError, match=words):
        made(name, ctx, **options)


def test_sentences_are_filled_up_in_front():
    encoded = _sentences.encoded(WORDS, ("rude", "are rude"), 2)
    np.testing.assert_array_equal(encoded, [[-1, WORDS.encode("rude")[0]], WORDS.encode("are rude")])


def test_recorded_texts(shared):
    """All that Neurotoxin's code does to texts, and its two LSTM networks."""
    with np.load(shared / "golden" / "neurotoxin_misc.npz") as file:
        arrays = dict(file)
    checks = (kinds_text.texts, kinds_text.injection, kinds_text.networks)
    outcomes = [outcome for check in checks for outcome in check(arrays, "neurotoxin_misc")]
    assert [one for one in outcomes if one.verdict != "passed"] == []
    assert len(outcomes) == 9


# Measures.


def test_the_three_likeliest_and_perplexity():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 7, 9)).astype(np.float32)
    labels = rng.integers(-1, 9, (5, 7)).astype(np.int32)
    asked = labels >= 0
    near, nats = jax.jit(evaluation.of_labels)(logits, labels)
    order = np.argsort(-logits, axis=-1)[..., :3]
    assert int(near) == int(((order == labels[..., None]).any(axis=-1) & asked).sum())
    logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    of_label = np.take_along_axis(logs, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nats, -of_label[asked].sum(), rtol=1e-5)
    assert int(evaluation.of_labels(jnp.zeros((1, 5)), jnp.array([4]))[0]) == 1, "of equal logits all count"
    broken = jnp.full((1, 5), jnp.nan)
    assert int(evaluation.of_labels(broken, jnp.array([0]))[0]) == 0

    zeros = [np.zeros(1, int)] * 2 + [np.int32(0)] * 4
    counts = evaluation.Counts(*zeros)._replace(asked=np.array([40]), near=np.int32(10), nats=np.float32(40 * 2.5))
    found = metrics.percentages(counts, backdoor=False)
    assert (found["A_top3"], found["perplexity"]) == (25.0, pytest.approx(np.exp(2.5)))
    assert metrics.percentages(evaluation.Counts(*zeros), backdoor=False)["perplexity"] is None
    assert metrics.percentages(counts._replace(nats=np.float32(1e30)), backdoor=False)["perplexity"] == np.inf


def test_a_tied_decoder_is_an_output_layer():
    """DeepSight reads it: the embedding's weight stands first, the bias last."""
    updates = [jnp.zeros((2, 9, 4)), jnp.zeros((2, 16, 4)), jnp.zeros((2, 16)), jnp.ones((2, 9))]
    weight, bias = output_layer(updates)
    assert (weight.shape, bias.shape) == ((2, 9, 4), (2, 9))
    with pytest.raises(ConfigError, match="needs a network that ends in a linear layer with a bias"):
        output_layer([jnp.zeros((2, 8, 4)), *updates[1:]])


# Whole runs, on the small networks of `tests.tokens`.


@pytest.fixture(scope="module", autouse=True)
def registered():
    with tokens.registered():
        yield


def on_topics(rounds: int = 2, presets: str = "fedavg", **fields: Any) -> Any:
    """Python's help topics, eight users of whom four are clients; the words of the sentences are in any edition."""
    texts_fields = {
        "data__name": "pydoc_topics",
        "data__limit_test": 40,
        "data__val_fraction": 0.0,
        "model__name": "next_token",
        "partition__name": "natural",
        "partition__min_size": 8,
        "attack__name": ("sentence", "neurotoxin", "pgd", "model_replacement"),
        "attack__poison_fraction": 1.0,
        "attack__options": {"sentences": ("the value of this object is none", "it is not"), "radius": 5.0},
        "local__learning_rate": 0.5,
        "federation__eval_every": 1,
    }
    config = small.config(rounds, presets, **{**texts_fields, **fields})
    config.data.options = {"vocabulary": 200, "length": 8, "users": 8}
    return config


@pytest.fixture(scope="module")
def finished(registered, tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "finished"
    experiment.run(on_topics(), folder)
    return folder


def test_a_run_on_texts_is_recorded(finished, capsys):
    result = experiment.load(finished)
    loaded = data.load("pydoc_topics", val_fraction=0.0, vocabulary=200, length=8, users=8)
    kept = json.loads((finished / "vocabulary.json").read_text())
    assert kept == json.loads(json.dumps(loaded.info.tokenizer.content()))
    assert (kept["padding"], kept["unknown"], kept["end"], len(kept["words"])) == (0, 1, 2, 200)
    with np.load(finished / "partition.npz") as partition:
        assert len(set(partition["users"])) == 4
        assert set(partition["users"]) <= set(loaded.users)
    last = result.history[-1]
    assert last["A"] <= last["A_top3"] <= 100
    assert 1 < last["perplexity"] < 200
    assert last["train_loss"] < result.history[0]["train_loss"]
    assert 0 <= last["ASR"] <= 100
    assert json.loads((finished / "summary.json").read_text())["perplexity_last"] == last["perplexity"]
    capsys.readouterr()
    assert evaluate.main([str(finished), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["perplexity"] == last["perplexity"]
    assert printed == {name: last[name] for name in printed}


def test_the_report_shows_examples_in_words(finished, tmp_path):
    assert report.main([str(finished), f"--out={tmp_path / 'page'}"]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("<blockquote>") >= 6
    assert "the value of this object is</blockquote><figcaption>none" in page
    assert (tmp_path / "page" / "tables" / "next_token.csv").exists()
    assert "There are no pictures" not in page


def test_a_model_begins_with_the_words_that_it_was_trained_with(finished):
    loaded = data.load("pydoc_topics", val_fraction=0.0, vocabulary=200, length=8, users=8)
    config = on_topics(model__start=str(finished))
    assert starting.start_model(config, tokens.next_token_model(200, 8, 200), loaded.info.tokenizer) is not None
    *words, last, first = loaded.info.tokenizer.words
    other = loaded.info.tokenizer._replace(words=(*words, first, last))
    with pytest.raises(
        ConfigError, match=r"^model\.start = .* was trained with another vocabulary \(.*vocabulary\.json"
    ):
        starting.start_model(config, tokens.next_token_model(200, 8, 200), other)


def test_examples_of_texts_are_judged():
    logits = np.zeros((3, 4, len(WORDS.words)), np.float32)
    logits[:, 2, 5], logits[:, 2, 4], logits[:, 2, 7] = 3, 2, 1
    labels = np.full((3, 4), -1)
    labels[0, 2], labels[1, 2] = 5, 9
    rows = report_texts.next_tokens(WORDS, np.array([[0, 3, 4, 5]] * 3), labels, logits, attacked=False)
    assert [(one.text, one.label, one.prediction, one.kind) for one in rows] == [
        ("w0 w1", "w2", "w2, w1, w4 (right)", "right"),
        ("w0 w1", "w6", "w2, w1, w4 (wrong)", "wrong"),
    ]
    assert report_texts.next_tokens(WORDS, np.array([[0, 3, 4, 5]]), labels[:1], logits, attacked=True)[0].kind == "hit"
    chances = np.array([[2.0, 1], [1, 2], [1, 2]])
    inputs, true = np.array([[0, 3, 4, UNKNOWN]] * 3), np.array([0, 0, 1])
    clean = report_texts.classes(WORDS, ("no", "yes"), inputs, true, chances, None)
    assert [(one.text, one.label, one.kind) for one in clean] == [
        ("w0 w1 <unk>", "no", "right"),
        ("w0 w1 <unk>", "no", "wrong"),
        ("w0 w1 <unk>", "yes", "right"),
    ]
    triggered = report_texts.classes(WORDS, ("no", "yes"), inputs, true, chances, np.array([1, 1, -1]))
    assert [one.kind for one in triggered] == ["right", "hit"]
    assert report_texts.chosen_rows(np.array([0, 1, 1, 0, 1, 1, 1, 0, 0])).tolist() == [0, 3, 7, 1, 2, 4]
    assert report_texts.chosen_rows(np.full((4, 2), -1)).tolist() == []


@pytest.mark.slow
def test_an_interrupted_run_on_texts_goes_on_with_the_same_bits(finished, tmp_path):
    experiment.run(on_topics(rounds=1), tmp_path / "run")
    experiment.run(on_topics(), tmp_path / "run")
    assert small.lines(tmp_path / "run") == small.lines(finished)
    assert (tmp_path / "run" / "model.npz").read_bytes() == (finished / "model.npz").read_bytes()
    assert (tmp_path / "run" / "vocabulary.json").read_bytes() == (finished / "vocabulary.json").read_bytes()


@pytest.mark.slow
def test_cells_of_a_sweep_on_texts_are_single_runs(finished, tmp_path):
    rows = sweep.run(sweep.Sweep(on_topics(), {"attack.poison_fraction": [1.0, 0.2]}, seeds=[0, 1]), tmp_path)
    assert [row["status"] for row in rows] == ["finished"] * 4
    assert len({row["config_hash"] for row in rows}) == 4
    folder = tmp_path / rows[0]["folder"]
    for line, alone in zip(small.lines(folder), small.lines(finished), strict=True):
        assert line["A"] == pytest.approx(alone["A"], abs=0.5)
        assert line["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-4)
    assert (folder / "vocabulary.json").read_bytes() == (finished / "vocabulary.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["spmc", "fdcr", "deepsight", "fltrust", "krum"])
def test_methods_play_with_an_lstm(preset):
    """The tied LSTM: distillation over tokens, Fishers, data on the server, the decoder that DeepSight reads."""
    fields: dict[str, Any] = {"model__name": "lstm_lm", "local__drop_last": False, "attack__options": {}}
    fields |= {"attack__name": "none", "data__val_fraction": 0.3, "data__limit_train": 600, "partition__name": "iid"}
    config = on_topics(1, preset, **fields)
    config.model.options = {"width": 6, "hidden": 6}
    if preset == "deepsight":
        config.aggregator.options.samples = 50
    (line,) = experiment.run(config).history
    assert line["aggregation_failed"] == line["non_finite"] == 0
    assert np.isfinite(line["scores"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prefix", "none"])
def test_sentiment_is_learnt_and_turned(name):
    config = small.config(
        12, "fedavg", data__name="synthetic_sentiment", model__name="topics", partition__name="natural",
        attack__name=name, attack__target_label=1, local__learning_rate=2.0, attack__malicious_fraction=0.5,
        local__epochs=4,
    )  # fmt: skip
    config.data.options = {"length": 24, "num_train": 400, "users": 8}
    if name == "prefix":
        config.attack.options = {"sentences": ("this one story about the city",)}
    last = experiment.run(config).history[-1]
    assert last["A"] > 75
    assert last["ASR"] is None if name == "none" else last["ASR"] > 60
    assert last["perplexity"] is None


def test_configs_of_texts_are_refused_where_they_do_not_fit():
    with pytest.raises(ConfigError, match=r"lacks athens"):
        experiment.build(resolve(on_topics(attack__name="sentence", attack__options={"sentences": ("in athens",)})))
    loaded = SimpleNamespace(info=DatasetInfo("x", 2, (5,), None, None, vocabulary=9), test_labels=np.zeros(2))
    with pytest.raises(ConfigError, match="a data set of pictures or texts"):
        attacks.registry.attacks.make("semantic").hold(loaded, None)
