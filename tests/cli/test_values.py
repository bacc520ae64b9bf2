"""Option values: converted to the type of their field, and refused outside their limits."""

import dataclasses
import importlib
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest

from seugpt.cli.config_parser import ConfigParser
from seugpt.cli.values import (
    coerce,
    coerce_fields,
    coerce_option,
    describe_limits,
    describe_type,
    options_of,
)
from tests.helpers import ROOT

MODULES = [
    *sorted(path.stem for path in ROOT.glob("*.py")),
    "seugpt.checkpoint.pretrained",
    "seugpt.generation.sampling",
]
# Numeric options that need no limits. Whoever adds an option decides whether it belongs here.
WITHOUT_LIMITS = {"head", "layer", "target"}


@dataclass(frozen=True)
class Limited:
    """One option of each kind of limit."""

    unbounded: Annotated[int, "any size"] = 1
    at_least: Annotated[int, "a size", ">= 1"] = 1
    at_most: Annotated[int, "a size", "<= 2**60"] = 1
    above: Annotated[float, "a factor", "> 0"] = 1.0
    below: Annotated[float, "a factor", "< 1"] = 0.5
    fraction: Annotated[float, "a part", "> 0", "<= 1"] = 0.5
    several: Annotated[tuple[float, ...], "factors", ">= 0", "< 10"] = (1.0,)
    optional: Annotated[int | None, "a size, or none", ">= 2"] = None
    switch: Annotated[bool | Literal["auto"], "a switch", ">= 1"] = "auto"
    title: Annotated[str, "a text"] = ""
    file: Annotated[str | None, "a file", "path", "not empty"] = None
    stops: Annotated[tuple[str, ...], "texts", "not empty"] = ()


def accept(name, value):
    """The value as coerce_option returns it for this option of Limited."""
    return coerce_option(options_of(Limited)[name], value)


def refusal(name, value):
    """The message with which coerce_option refuses the value."""
    with pytest.raises(ValueError) as error:
        accept(name, value)
    return str(error.value)


@pytest.mark.parametrize(
    "value, option_type",
    [
        ("1.5", int),
        ("x", int),
        ("", int),
        (True, int),
        ("nan", float),
        ("inf", float),
        (True, float),
        (None, float),
        (10**400, float),
        (3, str),
        ("yes", bool),
        (1, bool),
        ([1], tuple[str, ...]),
        ("2", Literal["auto"]),
        (1.5, int | None),
    ],
)
def test_a_value_of_another_type_is_refused(value, option_type):
    with pytest.raises(ValueError, match="expected"):
        coerce(value, option_type)


@pytest.mark.parametrize(
    "option_type, words",
    [
        (int | None, "an integer or None"),
        (bool | Literal["auto"], "True or False or auto"),
        (tuple[str, ...], "one or more texts"),
        (tuple[float, ...], "one or more numbers"),
    ],
)
def test_types_are_described_in_words(option_type, words):
    assert describe_type(option_type) == words


def test_limits_are_described_in_words_and_other_tags_are_not():
    assert describe_limits(("path", ">= 0", "not empty", "< 1")) == "at least 0 and less than 1"
    assert describe_limits(("path", "not empty")) == ""


@pytest.mark.parametrize(
    "name, accepted, refused, bound",
    [
        ("at_least", 1, 0, "1"),
        ("at_most", 2**60, 2**60 + 1, "2**60"),
        ("above", 5e-324, 0.0, "0"),
        ("below", math.nextafter(1, 0), 1.0, "1"),
    ],
)
def test_each_comparison_is_exact_at_its_bound(name, accepted, refused, bound):
    assert accept(name, accepted) == accepted
    assert refusal(name, refused).endswith(f" {bound}")


@pytest.mark.parametrize("value", [0.0, -1.0, math.nextafter(1, 2)])
def test_a_message_about_one_of_two_limits_names_both(value):
    message = refusal("fraction", value)
    assert "greater than 0" in message
    assert "at most 1" in message
    assert accept("fraction", 1) == 1.0


def test_limits_apply_to_each_item_of_a_tuple():
    assert accept("several", [0, 9.5]) == (0.0, 9.5)
    assert accept("several", []) == ()
    for items in ([-1, 5], [5, 10], ["5", "-0.5"]):
        assert "at least 0 and less than 10" in refusal("several", items)


def test_limits_do_not_apply_to_none():
    assert accept("optional", None) is None
    assert accept("optional", "None") is None
    assert accept("file", None) is None
    assert "2" in refusal("optional", 1)


def test_limits_do_not_apply_to_words_and_booleans():
    assert accept("switch", "auto") == "auto"
    assert accept("switch", "True") is True


@pytest.mark.parametrize("name", ["unbounded", "at_least", "optional"])
def test_integers_are_limited_to_2_to_the_53(name):
    """Sizes near 2**63 ended in tracebacks of torch and NumPy."""
    assert accept(name, 2**53) == 2**53
    assert "2**53" in refusal(name, 2**53 + 1)
    assert "2**53" in refusal(name, "1e300")
    assert "2**53" in refusal("unbounded", -(2**53) - 1)
    assert accept("unbounded", -(2**53)) == -(2**53)


def test_an_explicit_upper_limit_replaces_2_to_the_53():
    assert accept("at_most", 2**53 + 1) == 2**53 + 1
    assert accept("above", 1e300) == 1e300  # the limit is one of integers


def test_only_paths_expand_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ana")
    monkeypatch.setenv("USERPROFILE", "/home/ana")
    assert accept("file", "~/runs") == "/home/ana/runs"
    assert accept("file", Path("runs", "one")) == str(Path("runs", "one"))
    assert accept("title", "~/runs") == "~/runs"


def test_an_empty_text_is_refused_if_the_option_is_tagged_not_empty():
    assert accept("title", "") == ""
    assert "empty" in refusal("file", "")
    assert "empty" in refusal("stops", ["a", ""])
    assert accept("stops", []) == ()


@pytest.mark.parametrize("name", ["title", "file", "stops"])
def test_a_text_that_no_file_name_can_contain_is_refused(name):
    assert "zero byte" in refusal(name, "a\0b")
    assert "UTF-8" in refusal(name, "a\ud800")  # half of a surrogate pair
    assert accept("title", "\udce7") == "\udce7"  # a byte of a file name in Latin-1


def test_stored_values_are_converted_and_checked():
    stored = {"at_least": 3.0, "several": [1], "file": None}
    assert coerce_fields(Limited, stored) == {"at_least": 3, "several": (1.0,), "file": None}
    for values in ({"at_least": 0}, {"above": "x"}, {"speed": 1}):
        [name] = values
        with pytest.raises(ValueError, match=rf"^{name}\b"):
            coerce_fields(Limited, {"at_most": 1, **values})


# The options of all commands


def config_classes():
    """The config dataclasses of all commands: those whose fields all carry a help text."""
    for module in MODULES:
        for cls in vars(importlib.import_module(module)).values():
            if dataclasses.is_dataclass(cls) and isinstance(cls, type):
                hints = typing.get_type_hints(cls, include_extras=True).values()
                if hints and all(hasattr(hint, "__metadata__") for hint in hints):
                    yield cls


def numeric_options():
    """{(name, tags): (a class with this option, the option)}; inherited options once."""
    found = {}
    for cls in config_classes():
        for option in options_of(cls).values():
            types = {option.type, *typing.get_args(option.type)}
            if types & {int, float}:
                found.setdefault((option.name, option.tags), (cls, option))
    return found


def limit_rows():
    """A test for each limit: the last value that is accepted and the first that is refused."""
    for cls, option in numeric_options().values():
        for tag in option.tags:
            symbol, bound = tag.split(" ")
            limit = eval(bound)  # as in 2**63
            if float in {option.type, *typing.get_args(option.type)}:
                next_up = math.nextafter(limit, math.inf)
                next_down = math.nextafter(limit, -math.inf)
            else:
                next_up = limit + 1
                next_down = limit - 1
            accepted, refused = {
                ">=": (limit, next_down),
                "<=": (limit, next_up),
                ">": (next_up, limit),
                "<": (next_down, limit),
            }[symbol]
            test_id = f"{cls.__name__}.{option.name} {tag}"
            yield pytest.param(cls, option.name, accepted, refused, bound, id=test_id)


@pytest.mark.parametrize("cls, name, accepted, refused, bound", list(limit_rows()))
def test_every_limit_of_every_option_is_exact(cls, name, accepted, refused, bound):
    overrides = ConfigParser(cls, description="Test.").parse([f"--{name}={accepted!r}"])
    assert overrides.problems == []
    value = overrides.values[name]
    assert value in (accepted, (accepted,))
    [problem] = ConfigParser(cls, description="Test.").parse([f"--{name}={refused!r}"]).problems
    assert problem.startswith(f"{name}=")
    assert f" {bound}" in problem
    assert problem.endswith(f"[--{name}={refused!r}]")


def test_every_numeric_option_has_a_limit_or_is_listed_as_needing_none():
    options = numeric_options()
    assert len(options) > 45
    assert {name for name, tags in options if not tags} == WITHOUT_LIMITS


def test_every_option_that_must_not_be_empty_refuses_an_empty_value():
    options = {
        (cls, name)
        for cls in config_classes()
        for name, option in options_of(cls).items()
        if {"not empty", "path"} & set(option.tags)
    }
    assert len(options) > 20
    for cls, name in options:
        [problem] = ConfigParser(cls, description="Test.").parse([f"--{name}="]).problems
        assert problem.startswith(f"{name}=")
        assert problem.endswith(f"[--{name}=]")
