"""The saved model with which a run begins in place of random weights: `model.start`."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from fedjax_spmc import config as configs
from fedjax_spmc import models, reading, trees
from fedjax_spmc.data.tokens import Tokenizer
from fedjax_spmc.errors import ConfigError
from fedjax_spmc.options import quoted
from fedjax_spmc.paths import expanded
from fedjax_spmc.types import Model, Variables


class StartModel(NamedTuple):
    """A saved model: its variables, and the sha256 of its file in hex."""

    variables: Variables
    sha256: str


def start_model(config: configs.Config, model: Model, tokenizer: Tokenizer | None = None) -> StartModel | None:
    """The config's saved model; None where a run begins with random weights.

    Args:
        config: resolved; `model.start` is a `model.npz` or a run folder that holds one.
        model: the config's, into which the file must fit.
        tokenizer: of the data; a `vocabulary.json` beside the model must have its words.

    Raises:
        ConfigError: the file is missing, damaged, of another model or of other words.
    """
    if config.model.start is None:
        return None
    label, path = f"model.start = {quoted(config.model.start)}", expanded(config.model.start, "model.start")
    try:
        path = path / "model.npz" if path.is_dir() else path
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{label} cannot be read ({reading.reason_of(error)}): it must be a model.npz, or a run folder that holds "
            "one."
        ) from None
    try:
        named = reading.arrays_of(content)
    except Exception as error:  # what numpy and zipfile raise on damaged bytes is not documented
        raise ConfigError(f"{label} {reading.UnreadableError(error)}: it must be a whole model.npz.") from None
    try:
        variables = models.from_torch_dict(model, named)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{label} holds another model than model.name = {config.model.name!r} ({reading.reason_of(error)}): it "
            "must be one that was saved with the same model, its options, and data of the same kind."
        ) from None
    if tokenizer is not None:
        _check_words(label, path.parent / "vocabulary.json", tokenizer)
    if not trees.all_finite(variables):
        raise ConfigError(f"{label} holds numbers that are not finite: it must be a model that can be trained on.")
    return StartModel(variables, hashlib.sha256(content).hexdigest())


def _check_words(label: str, path: Path, tokenizer: Tokenizer) -> None:
    """Refuses a model whose tokens stand for other words, though there are as many."""
    try:
        words = reading.json_object(path).get("words")
    except FileNotFoundError:
        return
    except reading.UnreadableError as error:
        raise ConfigError(f"{label}: {path} {error}.") from None
    if words != list(tokenizer.words):
        raise ConfigError(
            f"{label} was trained with another vocabulary ({path}): it must be a model of the same words, as the same "
            "data.name, data.options, data.limit_train and data.val_fraction give."
        )


def without_start(config: configs.Config) -> configs.Config:
    """A copy of a resolved config without `model.start`: who has the run's own model does not need the file."""
    copy = configs.editable_copy(config)
    copy.model.start = None
    return copy
