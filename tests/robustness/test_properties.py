"""Property-based tests: configs and texts survive every round trip, and no input crashes.

A config goes through its config file or command line and back, a text through its tokens.
"""

import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import ModelConfig
from seugpt.cli.config_parser import parse_configs, to_source
from seugpt.cli.values import options_of
from seugpt.data.tokenizer import CharTokenizer, decode, load_tokenizer, train_bpe
from seugpt.data.tokenizer_json import END_OF_TEXT, spec_from_json
from seugpt.errors import ConfigError
from seugpt.generation.sampling import SamplingParams
from seugpt.generation.text_stream import TextStream
from tests.external_tokenizers import llama2_like, llama3_like
from tests.helpers import TEXT, train_configs
from train import TrainConfig

property_test = settings(
    max_examples=100,
    derandomize=True,  # the same examples in every run
    database=None,  # hypothesis would write failures to the current folder
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
texts = st.text(st.characters(codec="utf-8"))  # all of Unicode except surrogates
any_text = st.text(st.characters(exclude_categories=()))  # including zero bytes and surrogates
# What an argument or a file name can contain: Python decodes bytes that are not UTF-8 to lone
# surrogates.
undecodable = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"])
arguments = st.text(st.characters(codec="utf-8", exclude_characters="\0") | undecodable)


# Options


@dataclass(frozen=True)
class ExampleConfig:
    """One option of each type, without limits."""

    count: Annotated[int, "an integer"] = 3
    rate: Annotated[float, "a number"] = 0.5
    name: Annotated[str, "100% text"] = "x"
    flag: Annotated[bool, "a switch"] = False
    mode: Annotated[bool | Literal["auto"], "a switch with a default"] = "auto"
    side: Annotated[Literal["left", "right"], "a choice"] = "left"
    limit: Annotated[int | None, "an integer, or none"] = None
    stop: Annotated[tuple[str, ...], "several texts"] = ()


def values_of(option_type, positive):
    """A strategy for values of an option's type; `positive`: that every limit accepts."""
    origin = typing.get_origin(option_type)
    parts = typing.get_args(option_type)
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is tuple:
        return st.lists(arguments).map(tuple)
    if parts:
        return st.one_of(*(values_of(part, positive) for part in parts))
    if option_type is int:
        return st.integers(1 if positive else -(2**53), 2**53)
    if option_type is float:
        fraction = st.floats(0, 1, exclude_min=True, exclude_max=True)
        return fraction if positive else st.floats(allow_nan=False, allow_infinity=False)
    if option_type is str:
        return arguments.filter(len) if positive else arguments
    return {bool: st.booleans(), type(None): st.none()}[option_type]


def instances_of(cls, positive, **others):
    """A strategy for instances of a config dataclass; `others`: strategies for some options."""
    options = options_of(cls).items()
    values = {name: values_of(option.type, positive) for name, option in options}
    return st.builds(cls, **{**values, **others})


configs = st.one_of(
    instances_of(ExampleConfig, positive=False),
    instances_of(
        TrainConfig,
        positive=True,
        rampup_start=st.just(0),  # a batch ramp must fit gradient_accumulation_steps
        rampup_iters=st.just(0),
        dist_timeout_s=st.integers(1, 86400),
    ),
    instances_of(SamplingParams, positive=True),
)
option_names = st.sampled_from([*options_of(ModelConfig), *options_of(TrainConfig)])


def parse(cls, *argv):
    [config] = parse_configs(list(argv), cls, description="Test.")
    return config


@property_test
@given(config=configs)
def test_config_survives_its_config_file(workspace, config):
    Path("again.py").write_text(to_source(config), encoding="utf-8")
    assert parse(type(config), "again.py") == config


@property_test
@given(config=configs, as_two_arguments=st.booleans())
def test_config_survives_its_command_line(workspace, config, as_two_arguments):
    """As --key=value, and as --key value where the value does not look like an option."""
    argv = []
    for field in fields(config):
        value = getattr(config, field.name)
        for text in value if isinstance(value, tuple) else [str(value)]:
            if as_two_arguments and not text.startswith("-"):
                argv += [f"--{field.name}", text]
            else:
                argv.append(f"--{field.name}={text}")
    assert parse(type(config), *argv) == config


ODD_ARGUMENTS = "-- - -h --help --help=3 --= = -1 --n_layer=1e999 --n_embd=-1".split()
ODD_ARGUMENTS.append("--seed=" + "9" * 5000)
command_lines = st.lists(
    st.one_of(
        any_text,
        arguments,
        st.builds("--{}={}".format, option_names, arguments),
        st.builds("--{}".format, option_names | arguments),
        st.sampled_from(ODD_ARGUMENTS),
    ),
    max_size=6,
)


@property_test
@given(argv=command_lines)
def test_any_command_line_gives_configs_or_a_config_error(workspace, capsys, argv):
    try:
        model_config, config = train_configs(argv)
    except ConfigError as error:
        assert str(error)
    except SystemExit as exit:
        assert exit.code == 0  # --help
    else:
        assert isinstance(model_config, ModelConfig)
        assert isinstance(config, TrainConfig)


numbers = st.one_of(st.integers(), st.just(10**400), st.floats())
scalars = st.one_of(st.none(), st.booleans(), numbers, any_text, st.binary())
objects = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(scalars, inner) | st.tuples(inner)
)


@property_test
@given(name=option_names, value=objects)
def test_any_value_in_a_config_file_is_accepted_or_a_config_error(workspace, name, value):
    """The error names the option."""
    lines = ["nan = float('nan')", "inf = float('inf')", f"{name} = {value!r}", "del nan, inf"]
    Path("any.py").write_text("\n".join(lines), encoding="utf-8")
    try:
        train_configs(["any.py"])
    except ConfigError as error:
        assert name in str(error)


# Texts


@pytest.fixture(scope="module")
def tokenizers():
    """{name: tokenizer} of tokenizers that can encode any text.

    One is trained here, one is the same from its tokenizer.json; two run in the tokenizers package.
    """
    bpe = train_bpe([TEXT * 3], 320)
    specs = {
        "bpe": bpe.spec(),
        "bpe from JSON": spec_from_json(bpe.to_json()),
        "Llama 3": spec_from_json(llama3_like().to_str()),
        "Llama 2": spec_from_json(llama2_like().to_str()),
    }
    kinds = [spec["kind"] for spec in specs.values()]
    assert kinds == ["bpe", "bpe", "huggingface", "huggingface"]
    return {name: load_tokenizer(spec) for name, spec in specs.items()}


def streamed(tokenizer, ids, stop_sequences=()):
    """The text that a TextStream shows for a list of ids."""
    stream = TextStream(tokenizer, stop_sequences)
    parts = [stream.feed(token, last=n == len(ids)) for n, token in enumerate(ids, start=1)]
    return "".join(parts)


TRICKY_PARTS = [END_OF_TEXT, " ", "\n", "maçã", "'ll", "<s>", "<0x41>"]
TRICKY_PARTS += ["\u0301", "👩‍👩‍👧", "\r\n"]


@property_test
@given(parts=st.lists(st.sampled_from(TRICKY_PARTS) | texts))
def test_any_text_survives_bpe_tokens(tokenizers, parts):
    """Decoded at once or as a stream."""
    for name, tokenizer in tokenizers.items():
        text = "".join(parts)
        if name == "Llama 2":
            text = text.replace("\u2581", "")  # sentencepiece's character for a space
        ids = tokenizer.encode(text)
        assert decode(tokenizer, ids) == text, name
        assert streamed(tokenizer, ids.tolist()) == text, name


@property_test
@given(chars=st.sets(st.characters(codec="utf-8"), min_size=1), data=st.data())
def test_text_survives_character_tokens(chars, data):
    tokenizer = CharTokenizer("".join(sorted(chars)))
    text = data.draw(st.text(st.sampled_from(sorted(chars))))
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert decode(tokenizer, ids) == text
    assert streamed(tokenizer, ids.tolist()) == text
    assert load_tokenizer(spec_from_json(tokenizer.to_json())).chars == tokenizer.chars


@property_test
@given(data=st.data())
def test_stream_shows_the_same_text_as_decoding_at_once(tokenizers, data):
    """For any tokens, as a model may produce bytes that are not UTF-8.

    The stream ends in front of a stop sequence.
    """
    for name, tokenizer in tokenizers.items():
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)), label=name)
        text = decode(tokenizer, ids)
        assert streamed(tokenizer, ids) == text
        start = data.draw(st.integers(0, len(text)), label="start of the stop sequence")
        length = data.draw(st.integers(1, 4), label="length of the stop sequence")
        stop = text[start : start + length]
        expected = text.partition(stop)[0] if stop else text
        assert streamed(tokenizer, ids, (stop,) if stop else ()) == expected
