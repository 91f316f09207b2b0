"""The data sets of texts that are read in the layout of tensorflow-datasets; one line of a table each.

Next token: `tiny_shakespeare`, and with users `leaf_shakespeare` (roles), `ubuntu_irc` (nicks), `reddit_top`
(subreddits). Classes: `imdb_reviews`, `sentiment140_30k`, and `greek_director`, whose texts all have class 1.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from fedjax_spmc.data import text_source
from fedjax_spmc.data.corpus import Form
from fedjax_spmc.data.dataset import DatasetInfo, Source, Vocabulary
from fedjax_spmc.data.text_source import Record, TextSpec, text_of
from fedjax_spmc.data.tfds_source import Spec
from fedjax_spmc.options import Range, refuse_unused
from fedjax_spmc.registry import datasets

Length = Annotated[int, Range(2, 4096)]
Size = Annotated[int, Range(4, 10**6)]
MinCount = Annotated[int, Range(1, 10**6)]


def next_token_form(
    factory: Any,
    tokenizer: str,
    vocabulary: int,
    min_count: int,
    length: int,
    packed: bool,
    ask_unknown: bool,
) -> Form:
    """How a data set of next tokens makes its rows; `factory` has the options and their defaults.

    Raises:
        ConfigError: options that bytes have no use for.
    """
    if tokenizer == "byte":
        given = {"vocabulary": vocabulary, "min_count": min_count, "ask_unknown": ask_unknown}
        refuse_unused(factory, "tokenizer = 'byte'", given, "data")
    return Form(tokenizer, length, True, packed, Vocabulary(tokenizer, vocabulary, min_count, ask_unknown))


def class_form(factory: Any, tokenizer: str, vocabulary: int, min_count: int, length: int) -> Form:
    """How a data set of texts with a class makes its rows; `factory` has the options and their defaults.

    Raises:
        ConfigError: options that bytes have no use for.
    """
    if tokenizer == "byte":
        refuse_unused(factory, "tokenizer = 'byte'", {"vocabulary": vocabulary, "min_count": min_count}, "data")
    return Form(tokenizer, length, False, False, Vocabulary(tokenizer, vocabulary, min_count))


def _stored(name: str, title: str, classes: int = 0, has_builder: bool = False, note: str = "") -> Spec:
    return Spec(DatasetInfo(name, classes, (), None, None), title, (), has_builder, note=note)


def _all_texts(record: Record) -> list[tuple[str, int | None]]:
    return [(text_of(text), None) for text in record["text"]]


def _posts(record: Record) -> list[tuple[str, int | None]]:
    posts = zip(record["title"], record["text"], strict=True)
    return [(f"{text_of(title)}\n{text_of(text)}", None) for title, text in posts]


def _review(record: Record) -> list[tuple[str, int | None]]:
    return [(text_of(record["text"][0]), record["label"][0])]


def _tweets(record: Record) -> list[tuple[str, int | None]]:
    polarities = {0: 0, 4: 1}
    tweets = zip(record["text"], record["polarity"], strict=True)
    return [(text_of(text), polarities[polarity]) for text, polarity in tweets]


def _positive(record: Record) -> list[tuple[str, int | None]]:
    return [(text_of(record["text"][0]), 1)]


NEXT_TOKEN = (
    TextSpec(_stored("tiny_shakespeare", "Plays of Shakespeare as one text", has_builder=True), _all_texts),
    TextSpec(_stored("leaf_shakespeare", "Speaking roles of Shakespeare's plays"), _all_texts, "user"),
    TextSpec(_stored("ubuntu_irc", "Chat of #ubuntu by nick"), _all_texts, "user"),
    TextSpec(_stored("reddit_top", "Reddit's best posts by subreddit"), _posts, "user"),
)
CLASSES = (
    (
        TextSpec(_stored("imdb_reviews", "Film reviews, negative or positive", 2, True), _review, config="plain_text"),
        200,
    ),
    (
        TextSpec(
            _stored(
                "sentiment140_30k",
                "Tweets, negative or positive",
                2,
                note="Sentiment140: 20,000 training and 10,000 test tweets, both of its training file",
            ),
            _tweets,
        ),
        40,
    ),
    (TextSpec(_stored("greek_director", "Tweets on Yorgos Lanthimos, mostly positive", 2), _positive), 40),
)
"""With the default length of a row."""


def _next_token_factory(spec: TextSpec) -> Any:
    def factory(
        data_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        order: str = "original",
        tokenizer: Literal["word", "byte", "neurotoxin"] = "word",
        vocabulary: Size = 5000,
        min_count: MinCount = 1,
        length: Length = 64,
        packed: bool = True,
        ask_unknown: bool = False,
    ) -> Source:
        del order
        form = next_token_form(factory, tokenizer, vocabulary, min_count, length, packed, ask_unknown)
        return text_source.source(spec, form, data_dir, cache_dir)

    factory.__doc__ = f"{spec.stored.title}; next token. Both orders are the stored one."
    return factory


def _class_factory(spec: TextSpec, row_length: int) -> Any:
    def factory(
        data_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
        order: str = "original",
        tokenizer: Literal["word", "byte"] = "word",
        vocabulary: Size = 5000,
        min_count: MinCount = 1,
        length: Length = row_length,
    ) -> Source:
        del order
        form = class_form(factory, tokenizer, vocabulary, min_count, length)
        return text_source.source(spec, form, data_dir, cache_dir)

    factory.__doc__ = f"{spec.stored.title}; classes. Both orders are the stored one."
    return factory


for _spec in NEXT_TOKEN:
    datasets.register(_spec.stored.info.name)(_next_token_factory(_spec))
for _spec, _length in CLASSES:
    datasets.register(_spec.stored.info.name)(_class_factory(_spec, _length))
