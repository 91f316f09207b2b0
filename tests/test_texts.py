"""Data sets of texts: words and bytes, vocabularies, rows, users, and reading what tensorflow-datasets has prepared."""

import numpy as np
import pytest

from fedjax_spmc import data, setup
from fedjax_spmc.config import resolve
from fedjax_spmc.data import cache, corpus, pydoc_topics, sequences, synthetic_sentiment, text_source, tokens
from fedjax_spmc.errors import ConfigError, DataError
from fedjax_spmc.record import truth
from tests import small, texts

PADDING, UNKNOWN, END, BEGIN = tokens.PADDING, tokens.UNKNOWN, tokens.END, tokens.BEGIN
LINES = (
    texts.role("ANNA", "The sun rises, the SUN sets!", "And then?", ""),
    texts.role("BEN", "Nobody's here", "the end"),
    texts.role("CLEO", "Who says so? I do."),
)
SAID = (texts.role("ANNA", "The moon rises"), texts.role("DORA", "I'm new"))


@pytest.fixture
def load(tmp_path):
    """Reads a data set under tmp_path / "data" with a cache of its own; all examples are trained on."""
    return lambda name="leaf_shakespeare", **options: data.load(
        name, tmp_path / "data", tmp_path / "cache", **{"val_fraction": 0.0, "length": 4, **options}
    )


@pytest.fixture
def roles(tmp_path, load):
    texts.write("leaf_shakespeare", tmp_path / "data", LINES, SAID)
    return load


def read(loaded: data.Dataset, rows: np.ndarray) -> list[str]:
    return [loaded.info.tokenizer.decode(row) for row in rows]


# Words, bytes and rows.


def test_words_are_cut_as_each_kind_says():
    line = "Don't panic, it's 42 o'clock -- a  NICE day"
    assert tokens.words_of("word", line) == ["don't", "panic", "it's", "42", "o'clock", "a", "nice", "day"]
    assert tokens.words_of("neurotoxin", line) == ["don", "panic", "it", "nice", "day"]
    assert tokens.words_of("word", "") == tokens.words_of("neurotoxin", "1 - ?") == []


def test_bytes_come_back():
    tokenizer = tokens.fitted("byte", np.zeros(0, int), (), 0, 1)
    text = "naïve ☕\n"
    ids = tokenizer.encode(text)
    assert len(tokenizer.words) == 259
    assert len(ids) == len(text.encode())
    assert tokenizer.decode([PADDING, *ids, END]) == f"{text}<eos>"
    assert (tokenizer.unknown("☕"), tokenizer.last_word("a ☕")) == ([], 3)


def test_a_vocabulary_has_the_most_frequent_words():
    words = (*tokens.SPECIAL, "b", "a", "rare", "c")
    inputs = np.array([[3, 4, 3, 4], [5, 6, 6, 0], [3, 4, 2, 1]])
    assert tokens.fitted("word", inputs, words, 100, 1).words[3:] == ("a", "b", "c", "rare")
    assert tokens.fitted("word", inputs, words, 100, 2).words[3:] == ("a", "b", "c")
    tokenizer = tokens.fitted("word", inputs, words, 5, 1)
    assert tokenizer.words == (*tokens.SPECIAL, "a", "b")
    assert tokens.renumbering(words, tokenizer).tolist() == [0, 1, 2, 4, 3, UNKNOWN, UNKNOWN]
    assert tokenizer.encode("A b rare") == [3, 4, UNKNOWN]
    assert tokenizer.unknown("a rare one") == ["rare", "one"]
    assert tokenizer.decode([0, 3, 1, 2]) == "a <unk> <eos>"
    assert tokenizer.last_word("a rare one") == 1


@pytest.mark.parametrize("size", [0, 1, 2, 5, 6, 7, 11])
def test_blocks_ask_for_every_token_but_the_first_once(size):
    stream = np.arange(10, 10 + size)
    inputs, labels = sequences.blocks(stream, 5)
    asked = labels >= 0
    np.testing.assert_array_equal(labels[asked], stream[1:])
    np.testing.assert_array_equal(inputs[asked], stream[:-1])
    kept = inputs[inputs != PADDING]
    np.testing.assert_array_equal(kept, stream[: len(kept)])
    assert inputs.shape == labels.shape == (max(0, -(-(size - 1) // 5)), 5)


def test_texts_of_a_user_are_one_stream_or_begin_rows_of_their_own():
    ids, lengths, owners = np.arange(1, 11), np.array([3, 4, 2, 1]), np.array([0, 0, 2, 2])
    inputs, labels, first = sequences.next_token_rows(ids, lengths, 3, owners)
    assert inputs.tolist() == [[1, 2, 3], [4, 5, 6], [8, 9, 10]]
    assert labels.tolist() == [[2, 3, 4], [5, 6, 7], [9, 10, -1]]
    assert first.tolist() == [0, 0, 2]
    inputs, labels, first = sequences.next_token_rows(ids, lengths, 3, None)
    assert inputs.tolist() == [[1, 2, 3], [4, 5, 6], [8, 9, 0]], "the last text has one token and asks nothing"
    assert labels.tolist() == [[2, 3, -1], [5, 6, 7], [9, -1, -1]]
    assert first.tolist() == [0, 1, 2]


def test_rows_of_texts_are_filled_up_in_front_and_cut_behind():
    rows = sequences.padded_rows(np.arange(1, 9), np.array([2, 0, 6]), 4)
    assert rows.tolist() == [[0, 0, 1, 2], [0, 0, 0, 0], [3, 4, 5, 6]]
    assert rows.dtype == np.int32


# What is read.


def test_users_texts_become_rows_in_order(roles):
    loaded = roles()
    assert loaded.users == ("ANNA", "BEN", "CLEO")
    assert loaded.owners.tolist() == [0, 0, 0, 1, 1, 2, 2]
    streams = [
        "the sun rises the sun sets <eos> and then <eos> <eos>",
        "nobody's here <eos> the end <eos>",
        "who says so i do <eos>",
    ]
    for user, stream in enumerate(streams):
        mine = loaded.owners == user
        said = " ".join(read(loaded, loaded.train_inputs[mine])).split()
        assert said == stream.split()[: len(said)]
        assert len(stream.split()) - len(said) <= 1, "but for the last token, which can stand as a label alone"
        assert int((loaded.train_labels[mine] >= 0).sum()) == len(stream.split()) - 1
    assert " ".join(read(loaded, loaded.test_inputs)) == "the <unk> rises <eos> <unk> <unk> <eos>"


def test_the_vocabulary_is_that_of_the_training_pool_alone(roles):
    loaded = roles()
    assert "cleo" not in loaded.info.tokenizer.words
    assert not {"moon", "new", "i'm"} & set(loaded.info.tokenizer.words)
    assert {"who", "sun", "here"} <= set(loaded.info.tokenizer.words)
    assert loaded.info.num_classes == loaded.info.vocabulary == len(loaded.info.tokenizer.words)
    held_out = roles(val_fraction=0.3)
    assert held_out.owners.tolist() == [0, 0, 0, 1]
    assert {"sun", "here", "nobody's"} < set(held_out.info.tokenizer.words)
    assert not {"who", "says", "end"} & set(held_out.info.tokenizer.words)
    assert set(held_out.val_inputs.ravel()) >= {UNKNOWN}
    assert roles(limit_train=3).info.tokenizer.words == (*tokens.SPECIAL, "sun", "the", "and", "rises", "sets", "then")


def test_unknown_words_are_asked_only_where_it_is_said(roles):
    loaded, asking = roles(vocabulary=5), roles(vocabulary=5, ask_unknown=True)
    assert loaded.info.tokenizer.words == (*tokens.SPECIAL, "the", "sun")
    np.testing.assert_array_equal(loaded.train_inputs, asking.train_inputs)
    unknown = asking.train_labels == UNKNOWN
    assert 0 < unknown.sum() < (asking.train_labels >= 0).sum()
    np.testing.assert_array_equal(loaded.train_labels, np.where(unknown, -1, asking.train_labels))


def test_other_tokenisers_and_rows(roles):
    loaded = roles(tokenizer="byte")
    assert "".join(read(loaded, loaded.train_inputs[loaded.owners == 1])) == "Nobody's here<eos>the end<eos>"
    assert loaded.info.num_classes == 259
    marked = roles(tokenizer="neurotoxin")
    assert (
        " ".join(read(marked, marked.train_inputs[marked.owners == 1])) == "<bos> nobody here <eos> <bos> the end <eos>"
    )
    apart = roles(packed=False)
    assert read(apart, apart.train_inputs[apart.owners == 1]) == ["nobody's here <eos>", "the end <eos>"]
    assert (roles().train_labels[:2] >= 0).all()


def test_a_decoded_copy_is_kept_for_each_tokeniser(roles, monkeypatch, tmp_path):
    first = roles()
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 1
    monkeypatch.setattr(text_source, "decode", lambda *arguments: pytest.fail("it was decoded again"))
    assert roles().fingerprint == first.fingerprint
    for options in ({"length": 5}, {"packed": False}, {"vocabulary": 6}, {"ask_unknown": True}):
        assert roles(**{"vocabulary": 5, **options}).fingerprint != first.fingerprint
    monkeypatch.undo()
    roles(tokenizer="byte")
    assert len(list((tmp_path / "cache" / "data").iterdir())) == 2


def test_a_fingerprint_sees_words_and_users(tmp_path):
    prints = set()
    for i, name in enumerate(("ANNA", "EVE")):
        for word in ("rises", "falls"):
            where = tmp_path / f"{i}{word}"
            texts.write("leaf_shakespeare", where, [texts.role(name, f"the sun {word}")], SAID)
            loaded = data.load("leaf_shakespeare", where, tmp_path / "cache", val_fraction=0.0)
            prints.add(loaded.fingerprint)
    assert len(prints) == 4


def test_a_known_vocabulary_takes_the_place_of_ones_own(roles, tmp_path):
    known = roles().info.tokenizer
    texts.write("greek_director", tmp_path / "data", [{"text": "The sun and a film"}], [{"text": "sun sets"}])
    loaded = roles("greek_director", like=known, length=6)
    assert loaded.info.tokenizer == known
    assert read(loaded, loaded.train_inputs) == ["the sun and <unk> <unk>"]
    as_bytes = roles("greek_director", like=roles(tokenizer="byte").info.tokenizer, length=30)
    assert read(as_bytes, as_bytes.test_inputs) == ["sun sets"]
    assert loaded.info.num_classes == as_bytes.info.num_classes == 2


@pytest.mark.parametrize(
    ("name", "train", "test", "shown", "labels", "users"),
    [
        ("imdb_reviews", [{"text": "A <br />fine film", "label": 1}, {"text": "No", "label": 0}],
         [{"text": "fine", "label": 0}], ["a br fine film", "no"], [1, 0], ()),
        ("sentiment140_30k", [{"text": ["so good", "so bad"], "polarity": [4, 0]}, {"text": ["ok"], "polarity": [4]}],
         [{"text": ["good"], "polarity": [0]}], ["so good", "so bad", "ok"], [1, 0, 1], ()),
        ("greek_director", [{"text": "a film"}], [{"text": "film"}], ["a film"], [1], ()),
        ("tiny_shakespeare", [{"text": "To be or not"}], [{"text": "to do"}], ["to be or not"], None, ()),
        ("ubuntu_irc", [{"user": "nick", "time": ["t", "t"], "text": ["hi", "there"]}],
         [{"user": "nick", "time": ["t"], "text": ["hi"]}], ["hi <eos> there <eos>"], None, ("nick",)),
        ("reddit_top", [{"user": "trees", "title": ["A tree"], "text": ["is tall"]}],
         [{"user": "trees", "title": ["tree"], "text": [""]}], ["a tree is tall"], None, ("trees",)),
    ],
)  # fmt: skip
def test_every_data_set_is_read_as_it_is_stored(name, train, test, shown, labels, users, tmp_path, load):
    texts.write(name, tmp_path / "data", train, test)
    loaded = load(name)
    assert read(loaded, loaded.train_inputs) == shown
    assert loaded.train_labels.ndim == (2 if labels is None else 1)
    if labels is not None:
        assert loaded.train_labels.tolist() == labels
        assert loaded.info.num_classes == 2
    assert loaded.users == users
    assert loaded.info.input_shape == (4,)
    assert len(loaded.test_labels) == 1


def test_what_cannot_be_read_is_named(tmp_path, load):
    with pytest.raises(
        DataError, match=r"data set imdb_reviews is not prepared in .*imdb_reviews/plain_text/<version>"
    ):
        load("imdb_reviews")
    texts.write("sentiment140_30k", tmp_path / "data", [{"text": ["so"], "polarity": [2]}], [])
    with pytest.raises(DataError, match="has no examples in its split test"):
        load("sentiment140_30k")
    texts.write("ubuntu_irc", tmp_path / "data", [{"time": ["t"], "text": ["hi"]}], [{"user": "a", "text": ["x"]}])
    with pytest.raises(DataError, match=r"data set ubuntu_irc in .* is damaged"):
        load("ubuntu_irc")
    texts.write("leaf_shakespeare", tmp_path / "data", [texts.role("ANNA")], SAID)
    with pytest.raises(DataError, match="has no texts in its split train"):
        load()


@pytest.mark.parametrize("option", ["vocabulary", "min_count", "ask_unknown"])
def test_bytes_have_no_use_for_a_vocabularys_options(option, load):
    with pytest.raises(ConfigError, match=rf"data\.options\.{option} = .* is not allowed with tokenizer = 'byte'"):
        load("pydoc_topics", tokenizer="byte", **{option: 7 if option != "ask_unknown" else True})


def test_shared_texts(shared, cache_folder):
    """Counts that the folder's README states."""
    loaded = data.load("greek_director", shared / "data", cache_folder, val_fraction=0.0, vocabulary=10**6)
    assert (len(loaded.train_labels), len(loaded.test_labels)) == (259, 120)
    assert loaded.info.vocabulary == 875 + len(tokens.SPECIAL)
    play = data.load("tiny_shakespeare", shared / "data", cache_folder, val_fraction=0.0, tokenizer="byte")
    assert int((play.train_labels >= 0).sum()) == 1_003_854
    assert len(np.unique(play.train_inputs[play.train_inputs > END])) == 65


# What needs no files.


def test_pydocs_topics_are_dealt_out_to_users():
    loaded = data.load("pydoc_topics", users=7, val_fraction=0.0)
    assert len(loaded.users) == 7
    sizes = np.bincount(loaded.owners, minlength=7)
    assert sizes.min() > 0
    assert (np.diff(loaded.owners) >= 0).all()
    assert len(loaded.test_labels) > 0
    assert {"the", "python"} <= set(loaded.info.tokenizer.words)
    topics = pydoc_topics.topics()
    for text in topics.values():
        train, test = pydoc_topics.parted(text)
        assert "".join(f"{train}{test}".split()) == "".join(text.split())
    with pytest.raises(
        ConfigError, match=rf"data\.options\.users = 999 .* at most {len(topics)}, the number of topics"
    ):
        data.load("pydoc_topics", users=999)
    assert pydoc_topics.dealt([5, 1, 9, 3], 2) == [1, 1, 0, 1]


def test_a_python_without_help_topics_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"^data set pydoc_topics cannot be read: this Python comes without"):
        data.load("pydoc_topics")


def test_made_up_sentiment_is_told_by_its_lexicons():
    loaded = data.load("synthetic_sentiment", users=5, val_fraction=0.0)
    assert loaded.train_inputs.shape == (1000, 16)
    tokenizer = loaded.info.tokenizer
    words = [set(tokenizer.encode(text)) for text in (synthetic_sentiment.NEGATIVE, synthetic_sentiment.POSITIVE)]
    lean = np.array([sum(t in words[1] for t in row) - sum(t in words[0] for t in row) for row in loaded.test_inputs])
    right = np.where(lean == 0, 0.5, (lean > 0) == (loaded.test_labels == 1))
    assert right.mean() > 0.9
    shares = [loaded.train_labels[loaded.owners == user].mean() for user in range(5)]
    assert max(shares) - min(shares) > 0.05
    assert data.load("synthetic_sentiment", users=5, val_fraction=0.0).fingerprint == loaded.fingerprint
    assert data.load("synthetic_sentiment", seed=1).fingerprint != loaded.fingerprint


def test_corpora_without_texts_of_a_kind_are_empty_arrays():
    made = corpus.tokenised("word", corpus.Texts(["", "a"]), corpus.Texts([""]))
    assert made["train_lengths"].tolist() == [0, 1]
    assert made["test_tokens"].shape == (0,)
    assert cache.root("x").name == "x"


# Users as clients.


def config(**fields):
    fields = {"data__name": "synthetic_sentiment", "partition__name": "natural", "attack__name": "none", **fields}
    made = small.config(**fields)
    del made.data.options["num_train"], made.data.options["num_test"]
    return made


def test_clients_are_users_drawn_by_the_seed():
    loaded = data.load("synthetic_sentiment", users=12, val_fraction=0.0)
    drawn = []
    for seed in range(3):
        resolved = resolve(config(seed=seed, data__val_fraction=0.0))
        shares = setup.divide(resolved, loaded)
        users = [set(loaded.owners[share]) for share in shares]
        assert [len(one) for one in users] == [1] * 4
        for share, (user,) in zip(shares, users, strict=True):
            np.testing.assert_array_equal(share, np.flatnonzero(loaded.owners == user))
        drawn.append([user for (user,) in users])
        assert len(set(drawn[-1])) == 4
        for one, other in zip(setup.divide(resolved, loaded), shares, strict=True):
            np.testing.assert_array_equal(one, other)
        arrays = truth.partition_arrays(loaded, shares)
        assert arrays["users"].tolist() == [loaded.users[user] for user in drawn[-1]]
        assert arrays["sizes"].tolist() == [len(share) for share in shares]
    assert len({tuple(one) for one in drawn}) == 3
    shuffled = setup.divide(resolve(config(partition__name="iid")), loaded)
    assert "users" not in truth.partition_arrays(loaded, shuffled)


def test_users_with_too_little_are_no_clients():
    loaded = data.load("synthetic_sentiment", users=12, val_fraction=0.0)
    loaded = loaded._replace(owners=np.minimum(loaded.owners, 3))
    sizes = np.bincount(loaded.owners)
    least = int(np.sort(sizes)[1]) + 1
    with pytest.raises(ConfigError) as caught:
        setup.divide(resolve(config(data__val_fraction=0.0, partition__min_size=least)), loaded)
    able = int((sizes >= least).sum())
    assert str(caught.value) == (
        "federation.num_clients = 4 is not allowed with partition.name = 'natural': it must be at most "
        f"{able}, the number of users with at least partition.min_size = {least} training examples."
    )


def test_data_without_users_have_no_natural_clients():
    with pytest.raises(ConfigError, match=r"^partition\.name = 'natural' is not allowed with data whose examples"):
        setup.divide(resolve(small.config(partition__name="natural")), data.load("synthetic"))
