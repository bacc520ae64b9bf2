"""What must hold for any input: options survive their file and their command line, texts survive their tokens."""

import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model import ModelConfig
from seugpt.cli.options import Options, to_source
from seugpt.cli.values import option_types
from seugpt.data.tokenizer import CharTokenizer, decode, load_tokenizer, train_bpe
from seugpt.data.tokenizer_json import END_OF_TEXT, spec_of
from seugpt.errors import ConfigError
from seugpt.generation.decoder import Sampling, TextStream
from tests.helpers import TEXT, llama2_like, llama3_like
from train import TrainConfig

# The same examples in every run, and no folder that remembers them.
any_input = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
texts = st.text(st.characters(codec="utf-8"))  # all of Unicode, and no halves of characters
# What an argument or a file's name can hold: bytes that are no UTF-8 are lone surrogates in Python.
words = st.text(
    st.characters(codec="utf-8", exclude_characters="\0")
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"])
)


@dataclass(frozen=True)
class Anything:
    """An option of each type, with no limits of its own."""

    size: Annotated[int, "how many"] = 3
    rate: Annotated[float, "how fast"] = 0.5
    name: Annotated[str, "what 100% of people call it"] = "x"
    flag: Annotated[bool, "whether"] = False
    mode: Annotated[bool | Literal["auto"], "which"] = "auto"
    kind: Annotated[Literal["left", "right"], "of them"] = "left"
    limit: Annotated[int | None, "how far"] = None
    stop: Annotated[tuple[str, ...], "where"] = ()


def values(kind, positive):
    """Values of an option's type; positive: those that an option with limits takes, too."""
    parts, origin, limits = (
        typing.get_args(kind),
        typing.get_origin(kind),
        (0, 1) if positive else (None, None),
    )
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is tuple:
        return st.lists(words).map(tuple)
    if parts:
        return st.one_of(*(values(part, positive) for part in parts))
    return {
        int: st.integers(1 if positive else -(2**53), 2**53),
        float: st.floats(
            *limits,
            exclude_min=positive,
            exclude_max=positive,
            allow_nan=False,
            allow_infinity=False,
        ),
        bool: st.booleans(),
        str: words.filter(len) if positive else words,
        type(None): st.none(),
    }[kind]


def instances(cls, positive):
    return st.builds(
        cls, **{name: values(kind, positive) for name, (kind, _) in option_types(cls).items()}
    )


configs = st.one_of(
    instances(Anything, False), instances(TrainConfig, True), instances(Sampling, True)
)


def parsed(cls, *argv):
    (result,) = Options(list(argv), cls, description="Test.").build()
    return result


@any_input
@given(config=configs)
def test_a_config_survives_the_file_that_is_written_of_it(workspace, config):
    Path("again.py").write_text(to_source(config), encoding="utf-8")
    assert parsed(type(config), "again.py") == config


@any_input
@given(config=configs, two_words=st.booleans())
def test_a_config_survives_its_command_line(workspace, config, two_words):
    argv = []
    for field in fields(config):
        value = getattr(config, field.name)
        for text in value if isinstance(value, tuple) else [str(value)]:
            together = text.startswith("-") or not two_words
            argv += [f"--{field.name}={text}"] if together else [f"--{field.name}", text]
    assert parsed(type(config), *argv) == config


any_text = st.text(st.characters(exclude_categories=()))  # with zero bytes and all surrogates
names = st.sampled_from([*option_types(ModelConfig), *option_types(TrainConfig)])
odd = [
    "--",
    "-",
    "-h",
    "--help",
    "--help=3",
    "--=",
    "=",
    "-1",
    "--n_layer=1e999",
    "--n_embd=-1",
    "--seed=" + "9" * 5000,
]
arguments = st.one_of(
    any_text,
    words,
    st.builds("--{}={}".format, names, words),
    st.builds("--{}".format, names | words),
    st.sampled_from(odd),
)


@any_input
@given(argv=st.lists(arguments, max_size=6))
def test_any_arguments_are_options_or_a_message(workspace, capsys, argv):
    try:
        model_config, options = Options(argv, ModelConfig, TrainConfig, description="Test.").build()
    except ConfigError as error:
        assert str(error)
    except SystemExit as exit:
        assert exit.code == 0  # --help
    else:
        assert isinstance(model_config, ModelConfig) and isinstance(options, TrainConfig)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), any_text, st.binary()
)
objects = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(scalars, inner) | st.tuples(inner)
)


@any_input
@given(name=names, value=objects)
def test_a_config_file_with_any_value_is_options_or_a_message(workspace, name, value):
    lines = "nan, inf = float('nan'), float('inf')", f"{name} = {value!r}", "del nan, inf"
    Path("any.py").write_text("\n".join(lines), encoding="utf-8")
    try:
        Options(["any.py"], ModelConfig, TrainConfig, description="Test.").build()
    except ConfigError as error:
        assert name in str(error)


@pytest.fixture(scope="module")
def tokenizers():
    """Those for any text: trained here; from its own tokenizer.json; byte-level and sentencepiece's, run as is."""
    bpe = train_bpe([TEXT * 3], 320)
    specs = {"bpe": bpe.spec(), "ours from JSON": spec_of(bpe.json())}
    specs |= {
        "llama 3": spec_of(llama3_like().to_str()),
        "llama 2": spec_of(llama2_like().to_str()),
    }
    assert [spec["kind"] for spec in specs.values()] == ["bpe", "bpe", "huggingface", "huggingface"]
    return {name: load_tokenizer(spec) for name, spec in specs.items()}


pieces = st.lists(
    st.sampled_from(
        [END_OF_TEXT, " ", "\n", "maçã", "'ll", "<s>", "<0x41>", "\u0301", "👩‍👩‍👧", "\r\n"]
    )
    | texts
)


@any_input
@given(text=pieces.map("".join))
def test_any_text_survives_its_tokens(tokenizers, text):
    for name, tokenizer in tokenizers.items():
        if name == "llama 2":
            text = text.replace("\u2581", "")  # sentencepiece's own sign for a blank
        ids = tokenizer.encode(text)
        assert decode(tokenizer, ids) == text, name
        assert streamed(tokenizer, ids.tolist()) == text, name


@any_input
@given(chars=st.sets(st.characters(codec="utf-8"), min_size=1), data=st.data())
def test_a_text_survives_in_its_own_characters(chars, data):
    tokenizer = CharTokenizer("".join(sorted(chars)))
    text = data.draw(st.text(st.sampled_from(sorted(chars))))
    ids = tokenizer.encode(text)
    assert len(ids) == len(text) and decode(tokenizer, ids) == text == streamed(
        tokenizer, ids.tolist()
    )
    assert load_tokenizer(spec_of(tokenizer.json())).chars == tokenizer.chars


def streamed(tokenizer, ids, stop=()):
    stream = TextStream(tokenizer, stop)
    return "".join(
        stream.feed(token, last=number == len(ids)) for number, token in enumerate(ids, start=1)
    )


@any_input
@given(data=st.data())
def test_a_stream_shows_what_decoding_at_once_shows(tokenizers, data):
    """For any tokens: a model may write bytes that are no UTF-8. A stop text ends the stream where it begins."""
    for name, tokenizer in tokenizers.items():
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)), label=name)
        text = decode(tokenizer, ids)
        assert streamed(tokenizer, ids) == text
        start = data.draw(st.integers(0, len(text)), label="start of the stop text")
        stop = text[start : start + data.draw(st.integers(1, 4), label="its length")]
        assert streamed(tokenizer, ids, (stop,) if stop else ()) == (
            text.partition(stop)[0] if stop else text
        )
