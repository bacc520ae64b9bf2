"""The values of options: a field's type in words, and what a person gave for it turned into that type."""

import contextlib
import math
import os
import types
import typing
from dataclasses import fields


def in_utf8(text):
    """A text of the command line as the UTF-8 that was typed, also where the locale took its bytes for another code."""
    with contextlib.suppress(UnicodeError):  # they are no UTF-8: the locale may be right
        return os.fsencode(text).decode("utf-8")
    return text


def option_types(cls):
    """{name: (type, help)} of a dataclass whose fields are annotated with their help."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: (hints[f.name].__origin__, hints[f.name].__metadata__[0]) for f in fields(cls)}


def describe(kind):
    """A type in a student's words."""
    names = {
        int: "an integer",
        float: "a number",
        bool: "True or False",
        str: "a text",
        types.NoneType: "None",
    }
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return {str: "one or more texts", float: "one or more numbers"}[typing.get_args(kind)[0]]
    return names.get(kind) or " or ".join(describe(part) for part in typing.get_args(kind))


def to_repr(value):
    """A value as Python writes it; its type, where that fails as for an int of more than 4,300 digits."""
    try:
        return repr(value)
    except Exception:  # of a class in somebody's config file, of any kind
        return f"<{type(value).__name__}>"


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


def to_number(value, kind):
    """An int or a finite float; 1 is a float, 1e3 an int, True neither."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if kind is int and not isinstance(value, float):
        with contextlib.suppress(ValueError):
            return int(value)  # digits, however many; 1e3 comes next
    try:
        number = float(value)
    except OverflowError:  # an int of more than 308 digits
        raise ValueError from None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        raise ValueError
    return kind(number)


def to_text(value):
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    raise ValueError


def to_items(value, kind):
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(convert(item, kind) for item in items)


def to_one_of(value, parts):
    for part in parts:
        with contextlib.suppress(ValueError):
            return convert(value, part)
    raise ValueError


def checked(cls, values):
    """A dataclass's fields from a file, each in its type. Raises ValueError that names the first wrong one."""
    types, result = option_types(cls), {}
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"{name} is unknown")
        try:
            result[name] = convert(value, types[name][0])
        except ValueError as error:
            raise ValueError(f"{name}={to_repr(value)} {error}") from None
    return result


def convert(value, kind):
    """value as `kind`: a Python value from a config file, or a text from the command line. Raises ValueError."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    try:
        if origin in (typing.Union, types.UnionType):
            return to_one_of(value, parts)
        if origin is typing.Literal:
            return parts[parts.index(value)]
        if origin is tuple:
            return to_items(value, parts[0])
        if kind in (int, float):
            return to_number(value, kind)
        return {types.NoneType: to_none, bool: to_bool, str: to_text}[kind](value)
    except ValueError:
        raise ValueError(f"expects {describe(kind)}") from None
