"""Text -> ids -> text with each tokenizer, and the specs that checkpoints store."""

import base64
import json
import re
import sys

import numpy as np
import pytest
import tiktoken

from seugpt.data.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BPETokenizer,
    CharTokenizer,
    decode,
    encode_option,
    load_tokenizer,
    train_bpe,
)
from seugpt.errors import DataError
from tests.helpers import TEXT, gpt2_or_skip

# Text -> ids -> text


def test_decoding_restores_the_text(tokenizer):
    ids = tokenizer.encode(TEXT)
    assert decode(tokenizer, ids) == TEXT
    assert ids.max() < tokenizer.vocab_size


def test_characters_outside_the_vocabulary_are_named():
    with pytest.raises(DataError, match=re.escape("vocabulary: 'ç' (U+00E7), '🦜' (U+1F99C)")):
        CharTokenizer("abc").encode("aç🦜")


def test_bpe_encodes_text_that_it_was_not_trained_on():
    tokenizer = train_bpe(["abcabcabc"], 260)
    assert decode(tokenizer, tokenizer.encode("zz 日本 \x00")) == "zz 日本 \x00"


def test_bpe_merges_until_it_has_vocab_size_tokens():
    tokenizer = train_bpe(["the cat sat on the mat, the cat " * 50], 266)
    assert tokenizer.vocab_size == 266
    assert len(tokenizer.encode("the cat sat")) < 5
    # 256 bytes, one merge and END_OF_TEXT: this text has nothing more to merge.
    assert train_bpe(["ab"], 5000).vocab_size == 258


@pytest.mark.parametrize("kind", ["bpe", "gpt2"])
def test_end_of_text_is_one_token(kind):
    tokenizer = gpt2_or_skip() if kind == "gpt2" else train_bpe([f"one{END_OF_TEXT}two"], 270)
    assert tokenizer.encode(END_OF_TEXT).tolist() == [tokenizer.vocab_size - 1]
    assert decode(tokenizer, tokenizer.encode(f"a{END_OF_TEXT}b")) == f"a{END_OF_TEXT}b"


def test_gpt2_pattern_splits_words_as_tiktokens_own_pattern():
    gpt2 = gpt2_or_skip().encoding
    encoding = tiktoken.Encoding(
        "ours",
        pat_str=GPT2_PATTERN,
        mergeable_ranks=gpt2._mergeable_ranks,
        special_tokens={END_OF_TEXT: 50256},
    )
    text = TEXT + " I've we'LL   x\u3000y \n\n \n end"
    assert BPETokenizer(encoding, {}).encode(text).tolist() == gpt2.encode(text)


def test_invalid_utf8_decodes_to_the_replacement_character():
    tokenizer = train_bpe(["x"], 257)
    assert decode(tokenizer, tokenizer.encode("ç")[:1]) == "\ufffd"


def test_bpe_training_without_rustbpe_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "rustbpe", None)
    with pytest.raises(DataError, match="python -m pip install rustbpe"):
        train_bpe(["x"], 300)


# Prompts


def test_an_empty_prompt_is_refused():
    """Some Hugging Face tokenizers drop blanks, so a prompt of blanks had no token to continue."""
    with pytest.raises(DataError, match="--start "):
        encode_option(CharTokenizer("ab"), "", "start")
    assert encode_option(CharTokenizer("ab"), "ba", "start").tolist() == [1, 0]


def test_a_prompt_with_a_million_blanks_is_encoded():
    """tiktoken fails on such a long word with a ValueError."""
    tokenizer = train_bpe([TEXT * 3], 300)
    text = "o menino" + " " * 1_200_000 + "viu"
    assert decode(tokenizer, tokenizer.encode_prompt(text)) == text
    assert tokenizer.encode_prompt(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


# Specs


def test_a_spec_that_went_through_json_restores_the_tokenizer(tokenizer):
    restored = load_tokenizer(json.loads(json.dumps(tokenizer.spec())))
    assert restored.vocab_size == tokenizer.vocab_size
    assert restored.spec() == tokenizer.spec()
    np.testing.assert_array_equal(restored.encode(TEXT), tokenizer.encode(TEXT))


BYTES = [base64.b64encode(bytes([byte])).decode() for byte in range(256)]
INVALID_SPECS = [
    None,
    [],
    {},
    {"kind": "words"},
    {"kind": "char"},
    {"kind": "char", "chars": 3},
    {"kind": "char", "chars": ["a"]},
    {"kind": "char", "chars": ""},
    {"kind": "char", "chars": "aa"},
    {"kind": "bpe", "ranks": "no"},
    {"kind": "bpe", "ranks": [1]},
    {"kind": "bpe", "ranks": ["not base64!"]},
    {"kind": "bpe", "ranks": BYTES[1:]},
    {"kind": "bpe", "ranks": [*BYTES, BYTES[0]]},
    {"kind": "huggingface", "json": "{}"},
    {"kind": "huggingface", "json": "{"},
]


@pytest.mark.parametrize("spec", INVALID_SPECS, ids=lambda spec: repr(spec)[:60])
def test_an_invalid_spec_is_refused(spec):
    with pytest.raises(DataError, match=r"^best\.pt: "):
        load_tokenizer(spec, "best.pt")
