"""Option values: what a field declares about an option; how a value is converted and checked.

A config dataclass declares an option as `name: Annotated[type, help text, *tags] = default`. Tags
are limits on the value (">= 1", "< 2**63", "not empty") and "path": not empty, with ~ for the home
folder.
"""

import contextlib
import math
import operator
import os
import reprlib
import types
import typing
from dataclasses import dataclass, fields

# The limit of integers without one of their own: sizes near 2**63 overflow in torch and NumPy.
MAX_INT = 2**53
SHORT_REPR = reprlib.Repr()
SHORT_REPR.maxstring = 200  # characters
SHORT_REPR.maxother = 200

LIMITS = {
    ">=": ("at least", operator.ge),
    "<=": ("at most", operator.le),
    ">": ("greater than", operator.gt),
    "<": ("less than", operator.lt),
}


@dataclass(frozen=True)
class Option:
    """One field of a config dataclass."""

    name: str
    type: object
    help: str
    tags: tuple
    default: object


def options_of(cls):
    """{name: Option} of a config dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    options = {}
    for field in fields(cls):
        help_text, *tags = hints[field.name].__metadata__
        option_type = hints[field.name].__origin__
        options[field.name] = Option(field.name, option_type, help_text, tuple(tags), field.default)
    return options


def describe_type(option_type):
    """An option's type in words, as in "an integer or None"."""
    origin = typing.get_origin(option_type)
    parts = typing.get_args(option_type)
    if origin is typing.Literal:
        return " or ".join(map(str, parts))
    if origin is tuple:
        kinds = {str: "texts", int: "integers", float: "numbers"}
        return f"one or more {kinds[parts[0]]}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(part) for part in parts)
    names = {
        int: "an integer",
        float: "a number",
        bool: "True or False",
        str: "a text",
        types.NoneType: "None",
    }
    return names[option_type]


def limits_of(tags):
    """[(symbol, bound)] of those tags that are limits on a number."""
    parts = [tag.partition(" ") for tag in tags]
    return [(symbol, bound) for symbol, _, bound in parts if symbol in LIMITS]


def describe_limits(tags):
    """Limits in words, as in "at least 0 and less than 1"; "" if there are none."""
    return " and ".join(f"{LIMITS[symbol][0]} {bound}" for symbol, bound in limits_of(tags))


def to_repr(value):
    """repr(value), shortened, or the type's name where it fails, as for an int of 5,000 digits."""
    try:
        return SHORT_REPR.repr(value)
    except Exception:  # an object from someone's config file can raise anything
        return f"<{type(value).__name__}>"


def decode_argument(text):
    """Command-line text as the UTF-8 that was typed, whatever the locale made of its bytes."""
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeError:  # the bytes are not UTF-8
        return text


def coerce(value, option_type):
    """`value`, from a config file or the command line, as `option_type`.

    Raises ValueError saying what is expected.
    """
    origin = typing.get_origin(option_type)
    parts = typing.get_args(option_type)
    try:
        if origin in (typing.Union, types.UnionType):
            return to_first_match(value, parts)
        if origin is typing.Literal:
            return parts[parts.index(value)]
        if origin is tuple:
            items = value if isinstance(value, list | tuple) else [value]
            return tuple(coerce(item, parts[0]) for item in items)
        if option_type in (int, float):
            return to_number(value, option_type)
        return {types.NoneType: to_none, bool: to_bool, str: to_text}[option_type](value)
    except ValueError:
        raise ValueError(f"expected {describe_type(option_type)}") from None


def to_first_match(value, option_types):
    for option_type in option_types:
        with contextlib.suppress(ValueError):
            return coerce(value, option_type)
    raise ValueError


def to_none(value):
    if value is None or value in ("None", "none"):
        return None
    raise ValueError


def to_bool(value):
    texts = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in texts:
        return texts[value.strip().lower()]
    raise ValueError


def to_number(value, number_type):
    """An int or a finite float. 1 is a valid float and 1e3 a valid int; True is neither."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if number_type is int and not isinstance(value, float):
        with contextlib.suppress(ValueError):
            return int(value)  # plain digits, exact at any length; 1e3 is handled below
    try:
        number = float(value)
    except OverflowError:  # an int of more than 308 digits
        raise ValueError from None
    if not math.isfinite(number) or (number_type is int and not number.is_integer()):
        raise ValueError
    return number_type(number)


def to_text(value):
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    raise ValueError


def coerce_option(option, value):
    """`value` as the option's type and within its limits.

    Raises ValueError, naming the option and the value.
    """
    try:
        coerced = coerce(value, option.type)
    except ValueError as error:
        raise ValueError(f"{option.name}={to_repr(value)}: {error}") from None
    for item in coerced if isinstance(coerced, tuple) else (coerced,):
        problem = None
        if isinstance(item, str):
            problem = text_problem(item, option.tags)
        elif isinstance(item, int | float):
            problem = number_problem(item, option.tags)
        if problem:
            raise ValueError(f"{option.name}={to_repr(item)}: {problem}")
    if "path" in option.tags and isinstance(coerced, str):
        return os.path.expanduser(coerced)
    return coerced


def text_problem(text, tags):
    """What is wrong with a text, or None."""
    if not text and ("not empty" in tags or "path" in tags):
        return "must not be empty"
    if "\0" in text:
        return "contains a zero byte"
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "contains a lone surrogate, which UTF-8 cannot encode"
    return None


def number_problem(number, tags):
    """What is wrong with a number, or None."""
    has_maximum = False
    for symbol, bound in limits_of(tags):
        has_maximum = has_maximum or symbol.startswith("<")
        if not LIMITS[symbol][1](number, parse_bound(bound)):
            return f"must be {describe_limits(tags)}"
    if isinstance(number, int) and not has_maximum and abs(number) > MAX_INT:
        return "must lie between -2**53 and 2**53"
    return None


def parse_bound(text):
    """The number of a limit, as in "1" or "2**63"."""
    base, _, exponent = text.partition("**")
    return float(base) ** float(exponent or 1)


def coerce_fields(cls, values):
    """Stored values for the fields of `cls`, each checked.

    Raises ValueError naming the first that is wrong.
    """
    options = options_of(cls)
    coerced = {}
    for name, value in values.items():
        if name not in options:
            raise ValueError(f"{name} is unknown")
        coerced[name] = coerce_option(options[name], value)
    return coerced
