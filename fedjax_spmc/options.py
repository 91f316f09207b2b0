"""Typed settings: one description serves the config fields, the options of every factory, their checks and `--list`.

A factory declares its options in its signature:

    def spmc(temperature: Annotated[float, Range(low=0, low_open=True), TRACED] = 1.0,
             partner: Literal["coalition", "global"] = "coalition") -> Aggregator: ...
"""

import ast
import inspect
import math
import numbers
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from fedjax_spmc.errors import ConfigError
from fedjax_spmc.nearest import did_you_mean


class Range(NamedTuple):
    """An interval of numbers; an open end is not part of it."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float, np.number)):
            return False
        above = self.low < value if self.low_open else self.low <= value
        below = value < self.high if self.high_open else value <= self.high
        return bool(above and below)

    def __str__(self) -> str:
        left = "(" if self.low_open or math.isinf(self.low) else "["
        right = ")" if self.high_open or math.isinf(self.high) else "]"
        return f"{left}{_exact(self.low)}, {_exact(self.high)}{right}"


def _exact(number: float) -> str:
    """Short where that loses nothing: 1e+09, but 4294967295."""
    short = f"{number:g}"
    return short if float(short) == number else str(number)


def quoted(value: Any) -> str:
    """A value as an error message shows it: on one line, and cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a whole number of more than 4300 digits
        return "a number of thousands of digits"
    except Exception:  # lists that hold themselves, objects of the user's own
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"


def is_array(value: Any) -> bool:
    """Whether a value is an array of JAX, which this module need not import: without it nobody holds one."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)


def _is_traced(value: Any) -> bool:
    core = sys.modules.get("jax.core")
    return core is not None and isinstance(value, core.Tracer)


DEEPEST = 32
"""Lists within each other at most."""


def plain(value: Any, label: str = "a value", depth: int = 0) -> Any:
    """A value as Python's own: scalars and arrays of NumPy and JAX as numbers, texts and lists, also inside of lists.

    A float32 keeps its exact value: np.float32(0.1) is 0.10000000149011612. What is traced stays as it is.

    Args:
        value: anything.
        label: names it in an error.
        depth: of lists around it.

    Raises:
        ConfigError: lists stand too deep in each other, or hold themselves.
    """
    if isinstance(value, (tuple, list)):
        if depth > DEEPEST:
            raise ConfigError(f"{label} is not allowed: it must not hold lists more than {DEEPEST} deep in each other.")
        items = [plain(item, label, depth + 1) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if _is_traced(value) or not (isinstance(value, (np.ndarray, np.generic)) or is_array(value)):
        return value
    try:
        array = np.asarray(value)
    except TypeError:  # a key
        return value
    if array.dtype == np.longdouble:  # which its own `tolist` would leave alone
        array = array.astype(np.float64)
    return plain(array.tolist(), label, depth + 1) if array.dtype == object else array.tolist()


MANY = 12
"""So many choices at most are listed in an error."""
LARGEST = 1e38
"""About the largest number that float32 holds."""
POSITIVE = Range(0, LARGEST, low_open=True)
NON_NEGATIVE = Range(0, LARGEST)
FRACTION = Range(low=0, high=1)
TRACED = "traced"
"""Marks an array option: its value may be a traced scalar, so that a sweep can vmap over it."""


class Option(NamedTuple):
    """One typed setting.

    Attributes:
        name: the keyword, or the dotted path of a config field.
        kind: bool, int, float, str or tuple.
        default: the value that stands when nothing is said.
        optional: whether None is allowed.
        choices: the allowed values, a function that returns them, or None.
        range: the allowed interval of a number, or None.
        traced: whether a traced scalar is accepted.
        note: what None means, or anything else to add after "must be".
        group: of `fedjax-spmc list`, where the choices stand.
        items: of a list, the type of what is in it; None = any.
    """

    name: str
    kind: type
    default: Any
    optional: bool = False
    choices: tuple[Any, ...] | Callable[[], tuple[Any, ...]] | None = None
    range: Range | None = None
    traced: bool = False
    note: str = ""
    group: str = ""
    items: type | None = None

    def known(self) -> tuple[Any, ...] | None:
        """The choices; None where there are none."""
        return self.choices() if callable(self.choices) else self.choices

    def allowed(self, short: bool = False) -> str:
        """The allowed values as text; `short` names the list that has them where they are many."""
        choices = self.known()
        if choices is not None and short and self.group and len(choices) > MANY:
            words = f"one of the {len(choices)} that `fedjax-spmc list {self.group}` names"
        elif choices is not None:
            words = "one of " + ", ".join(str(choice) for choice in choices)
        elif self.kind is bool:
            words = "True or False"
        elif self.kind is int:
            words = f"a whole number in {self.range}" if self.range else "a whole number"
        elif self.kind is float:
            words = f"a finite number in {self.range}" if self.range else "a finite number"
        elif self.kind is tuple:
            words = "a list of whole numbers" if self.items is int else "a list"
        else:
            words = "a text"
        return words + (" or None" if self.optional else "") + (f" ({self.note})" if self.note else "")

    def refusal(self, value: Any, label: str = "", verdict: str = "is not allowed") -> ConfigError:
        """The error that says that `value` is not allowed here."""
        meant = self._meant(value)
        asked = f" ({meant})" if meant else ""
        said = f"{label or self.name} = {quoted(value)} {verdict}: it must be {self.allowed(short=True)}"
        return ConfigError(f"{said}{asked}.")

    def _meant(self, value: Any) -> str:
        """What a value that is not allowed may stand for, as a question; "" where nobody can tell."""
        choices = self.known()
        if choices is not None:
            words = [value] if isinstance(value, str) else value if self.kind is tuple else []
            strange = [word for word in words if isinstance(word, str) and word not in choices]
            return did_you_mean(strange[0], [one for one in choices if isinstance(one, str)]) if strange else ""
        number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
        if self.kind is bool:
            meant = TRUTH.get(value.strip().lower()) if isinstance(value, str) else TRUTH.get(quoted(value))
        elif self.kind is int and isinstance(value, float) and value.is_integer() and self._takes(int(value)):
            meant = int(value)
        elif self.kind is float and isinstance(value, str):
            meant = _number_with_comma(value)
            meant = meant if meant is not None and self._takes(meant) else None
        elif number is not None and self.range is not None and self.range.high <= 1 < number <= 100:
            meant = f"{number / 100:g}, which is {number:g} %" if number / 100 in self.range else None
        else:
            meant = None
        return "" if meant is None else f"did you mean {meant}?"

    def _takes(self, number: float) -> bool:
        return self.range is None or number in self.range

    def check(self, value: Any, label: str = "") -> Any:
        """Returns `value` in the option's own type.

        Raises:
            ConfigError: naming the field, the value and what is allowed.
        """
        if value is None and self.optional:
            return None
        if self.traced and is_array(value):
            return value
        value = plain(value, label or self.name)
        if self.kind is tuple:
            if not isinstance(value, (tuple, list)):
                raise self.refusal(value, label)
            value = _as_tuple(value)
            if self.items is not None and any(type(item) is not self.items for item in value):
                raise self.refusal(value, label)
        elif self.kind is bool:
            if not isinstance(value, bool):
                raise self.refusal(value, label)
        elif self.kind is int:
            if isinstance(value, bool) or not isinstance(value, numbers.Integral):
                raise self.refusal(value, label)
            value = int(value)
        elif self.kind is float:
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise self.refusal(value, label)
            try:
                number = float(value)
            except OverflowError:
                raise self.refusal(value, label) from None
            if not math.isfinite(number):
                raise self.refusal(value, label)
            value = number
        elif not isinstance(value, str):
            raise self.refusal(value, label)
        choices = self.known()
        items: Any = value if self.kind is tuple else (value,)
        if choices is not None and any(item not in choices for item in items):
            raise self.refusal(value, label)
        if self.range is not None and self.kind in (int, float) and value not in self.range:
            raise self.refusal(value, label)
        return value

    def parse(self, text: str, label: str = "") -> Any:
        """Reads a value typed on the command line, then checks it."""
        if self.optional and text.strip().lower() in ("none", "null", "auto"):
            return None
        if self.kind is str:
            return self.check(text, label)
        if self.kind is bool and text.strip().lower() in ("true", "false"):
            return text.strip().lower() == "true"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "1is" is refused below; the parser's own remark on it is noise
                value = ast.literal_eval(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = text
            if self.kind is float:
                try:
                    value = float(text)
                except ValueError:
                    value = text
            elif self.kind is tuple and text.strip()[:1] not in ("(", "["):
                value = tuple(part.strip() for part in text.split(",") if part.strip())
        if self.kind is tuple and isinstance(value, (bool, int, float, str)) and value is not text:
            value = (value,)
        return self.check(value, label)


TRUTH: dict[str, bool] = {
    **dict.fromkeys(("yes", "y", "on", "1", "t"), True),
    **dict.fromkeys(("no", "n", "off", "0", "f"), False),
}
"""What people write for True and False."""


def _number_with_comma(text: str) -> float | None:
    """The number that a text with a decimal comma stands for."""
    parted = re.fullmatch(r"\s*(\d+),(\d+)\s*", text)
    return float(f"{parted[1]}.{parted[2]}") if parted else None


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, (tuple, list)) else value


def option_from_hint(name: str, hint: Any, default: Any) -> Option:
    """Builds an `Option` from a hint such as `Annotated[float, Range(0, 1), TRACED]` or `Literal["a", "b"] | None`."""
    limits: Range | None = None
    traced = optional = False
    choices: tuple[Any, ...] | None = None
    while typing.get_origin(hint) in (typing.Annotated, typing.Union, types.UnionType):
        if typing.get_origin(hint) is typing.Annotated:
            hint, *marks = typing.get_args(hint)
            for mark in marks:
                limits = mark if isinstance(mark, Range) else limits
                traced = traced or mark is TRACED
            continue
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        optional = len(members) < len(typing.get_args(hint))
        if len(members) != 1:
            raise TypeError(f"option {name}: a union of {members} cannot be checked")
        hint = members[0]
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        hint = type(choices[0])
    kind = typing.get_origin(hint) or hint
    if kind not in (bool, int, float, str, tuple):
        raise TypeError(f"option {name}: type {hint!r} is none of bool, int, float, str, tuple, Literal")
    return Option(name, kind, default, optional, choices, limits, traced)


def options_of(factory: Callable[..., Any], given: tuple[str, ...] = ()) -> dict[str, Option]:
    """The options of a factory, read from its signature.

    Args:
        factory: a function whose parameters are all typed and, but for those in `given`, have a default.
        given: names that the simulator itself fills in; they are no options.
    """
    hints = typing.get_type_hints(factory, include_extras=True)
    parameters = inspect.signature(factory).parameters
    return {
        name: option_from_hint(name, hints[name], parameter.default)
        for name, parameter in parameters.items()
        if name not in given
    }


def check_options(
    owner: str, known: Mapping[str, Option], options: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
    """Checks `options` against `known` and returns them in their own types.

    Raises:
        ConfigError: an unknown name (the known ones are listed), a wrong type or a value out of range.
    """
    for name in options:
        if name not in known:
            meant = did_you_mean(name, known)
            raise ConfigError(
                f"{prefix}{name} is no option of {owner}; it knows {', '.join(sorted(known)) or 'no options'}"
                f"{f' ({meant})' if meant else ''}."
            )
    return {name: known[name].check(value, f"{prefix}{name}") for name, value in options.items()}


def refuse_unused(
    factory: Callable[..., Any], setting: str, given: Mapping[str, Any], section: str = "aggregator"
) -> None:
    """Refuses options that a setting leaves without effect, because the user would believe to have changed something.

    Args:
        factory: whose options they are; its signature holds their defaults, which are allowed.
        setting: another option and its value, in words: "variant = 'reference'".
        given: option -> value, for the options that have no effect with the setting.
        section: of the config.

    Raises:
        ConfigError: one of them is not at its default. Of an array that cannot be known, unless the default is None.
    """
    for name, value in given.items():
        default = inspect.signature(factory).parameters[name].default
        changed = default is None if is_array(value) else value != default
        if changed:
            raise ConfigError(
                f"{section}.options.{name} = {quoted(value)} is not allowed with {setting}, where it has no effect: it "
                f"must be {quoted(default)}."
            )
