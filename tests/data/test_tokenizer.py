"""Text -> ids -> text, for every tokenizer, and through the JSON that travels in checkpoints."""

import json
import re

import numpy as np
import pytest
import tiktoken

from seugpt.data.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BPETokenizer,
    CharTokenizer,
    decode,
    load_tokenizer,
    prompt_ids,
    train_bpe,
)
from seugpt.errors import DataError
from tests.helpers import TEXT, gpt2_or_skip


@pytest.fixture(params=["char", "bpe", "gpt2"])
def tokenizer(request):
    if request.param == "char":
        return CharTokenizer("".join(sorted(set(TEXT))))
    return gpt2_or_skip() if request.param == "gpt2" else train_bpe([TEXT * 3], 300)


def test_round_trip(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert decode(tokenizer, ids) == TEXT
    assert ids.max() < tokenizer.vocab_size


def test_the_description_is_json_and_gives_the_same_tokenizer(tokenizer):
    again = load_tokenizer(json.loads(json.dumps(tokenizer.spec())))
    assert again.vocab_size == tokenizer.vocab_size and again.spec() == tokenizer.spec()
    np.testing.assert_array_equal(again.encode(TEXT), tokenizer.encode(TEXT))


def test_characters_outside_the_vocabulary_are_named():
    with pytest.raises(DataError, match=re.escape("vocabulary: 'ç' (U+00E7), '🦜' (U+1F99C)")):
        CharTokenizer("abc").encode("aç🦜")


def test_a_text_without_tokens_is_no_prompt():
    """Some of Hugging Face's tokenizers leave out blanks, and a text of blanks had no last token to go on from."""
    with pytest.raises(DataError, match="the text has no tokens in it"):
        prompt_ids(CharTokenizer("ab"), "", "text")
    assert prompt_ids(CharTokenizer("ab"), "ba", "text").tolist() == [1, 0]


def test_a_prompt_of_a_million_blanks_is_encoded():
    """tiktoken gives up on so long a word: ValueError."""
    tokenizer = train_bpe([TEXT * 3], 300)
    text = "o menino" + " " * 1_200_000 + "viu"
    assert decode(tokenizer, tokenizer.prompt(text).tolist()) == text
    assert tokenizer.prompt(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_bpe_encodes_text_that_it_was_not_trained_on():
    tokenizer = train_bpe(["abcabcabc"], 260)
    assert decode(tokenizer, tokenizer.encode("zz 日本 \x00")) == "zz 日本 \x00"


def test_bpe_shortens_its_text_and_keeps_to_the_size():
    tokenizer = train_bpe(["the cat sat on the mat, the cat " * 50], 266)
    assert tokenizer.vocab_size == 266
    assert len(tokenizer.encode("the cat sat")) < 5
    assert (
        train_bpe(["ab"], 5000).vocab_size <= 258 + 1
    )  # a text with nothing left to merge gives a smaller one


@pytest.mark.parametrize("name", ["bpe", "gpt2"])
def test_end_of_text_is_one_token(name):
    tokenizer = gpt2_or_skip() if name == "gpt2" else train_bpe([f"one{END_OF_TEXT}two"], 270)
    assert list(tokenizer.encode(END_OF_TEXT)) == [tokenizer.vocab_size - 1]
    assert decode(tokenizer, tokenizer.encode(f"a{END_OF_TEXT}b")) == f"a{END_OF_TEXT}b"


def test_gpt2s_pattern_is_tiktokens_in_effect():
    """Same tokens with our way of writing GPT-2's pattern as with tiktoken's."""
    gpt2 = gpt2_or_skip().encoding
    ours = BPETokenizer(tiktoken.Encoding("x", pat_str=GPT2_PATTERN, mergeable_ranks=gpt2._mergeable_ranks,
                                          special_tokens={END_OF_TEXT: 50256}), {})  # fmt: skip
    text = TEXT + " I've we'LL   x\u3000y \n\n \n end"
    assert list(ours.encode(text)) == gpt2.encode(text)


def test_broken_bytes_show_as_the_replacement_character():
    tokenizer = train_bpe(["x"], 257)
    assert decode(tokenizer, tokenizer.encode("ç")[:1]) == "\ufffd"


@pytest.mark.parametrize(
    "spec",
    [{}, None, [], {"kind": "words"}, {"kind": "char"}, {"kind": "char", "chars": 3}, {"kind": "bpe", "ranks": "no"},
     {"kind": "bpe", "ranks": ["not base64!"]}, {"kind": "bpe", "ranks": [1]}],
)  # fmt: skip
def test_what_is_no_description_is_refused(spec):
    with pytest.raises(DataError, match="not a tokenizer description"):
        load_tokenizer(spec)


def test_without_rustbpe_the_install_command_is_given(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rustbpe", None)
    with pytest.raises(DataError, match="python -m pip install rustbpe"):
        train_bpe(["x"], 300)
