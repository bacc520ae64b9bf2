"""tokenizer.json: ours written and read again, theirs run as they are."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, pre_tokenizers

import prepare
import sample
import train
from seugpt.data.dataset import Dataset
from seugpt.data.tokenizer import CharTokenizer, decode, load_tokenizer, read_spec, train_bpe
from seugpt.data.tokenizer_json import spec_of
from seugpt.errors import DataError
from tests.helpers import TEXT, gpt2_or_skip, llama2_like, llama3_like


@pytest.mark.parametrize("kind", ["char", "bpe", "gpt2"])
def test_ours_comes_back_as_it_was_and_cuts_alike(kind):
    if kind == "char":
        ours = CharTokenizer("".join(sorted(set(TEXT))))
    else:
        ours = gpt2_or_skip() if kind == "gpt2" else train_bpe([TEXT * 3], 320)
    assert spec_of(ours.json()) == ours.spec()
    theirs = tokenizers.Tokenizer.from_str(ours.json())
    assert theirs.encode(TEXT).ids == ours.encode(TEXT).tolist()
    assert theirs.decode(ours.encode(TEXT).tolist(), skip_special_tokens=False) == TEXT
    assert theirs.get_vocab_size() == ours.vocab_size


def test_ids_that_are_not_in_the_order_of_merging_stay_as_they_are():
    """tiktoken merges the lowest id first; another order of merging would cut other tokens."""
    content = json.loads(train_bpe([TEXT * 3], 320).json())
    content["model"]["merges"].reverse()
    theirs = tokenizers.Tokenizer.from_str(json.dumps(content))
    spec = spec_of(json.dumps(content))
    assert (
        spec["kind"] == "huggingface"
        and load_tokenizer(spec).encode(TEXT).tolist() == theirs.encode(TEXT).ids
    )


def test_the_end_of_a_text_is_one_token_in_both_forms():
    ours = train_bpe([TEXT * 3], 320)
    text = "menino<|endoftext|>menino"
    assert tokenizers.Tokenizer.from_str(ours.json()).encode(text).ids == ours.encode(text).tolist()


@pytest.mark.parametrize("make", [llama3_like, llama2_like])
def test_another_tokenizer_is_run_as_it_is(make):
    theirs = make()
    spec = spec_of(theirs.to_str())
    ours = load_tokenizer(json.loads(json.dumps(spec)))
    assert spec["kind"] == "huggingface" and ours.json() == theirs.to_str() and ours.spec() == spec
    assert ours.prompt("o menino viu").tolist() == theirs.encode("o menino viu").ids
    assert ours.vocab_size == theirs.get_vocab_size()
    text = " o menino viu a maçã 🦜\n\n e não"
    assert decode(ours, ours.encode(text)) == text
    assert b"".join(ours.decode_bytes([i]) for i in ours.encode(text)) == text.encode()


@pytest.mark.parametrize("make", [llama3_like, llama2_like])
def test_what_transformers_cuts_and_pads_is_kept_whole(make):
    """save_pretrained writes truncation and padding into tokenizer.json: 7,000 tokens became 64."""
    plain, cutting = make(), make()
    cutting.enable_truncation(3)
    cutting.enable_padding(length=50)
    text = "o menino viu a maçã e não comeu"
    expected = load_tokenizer(spec_of(plain.to_str()))
    tokenizer = load_tokenizer(spec_of(cutting.to_str()))
    assert tokenizer.encode(text).tolist() == expected.encode(text).tolist()
    assert tokenizer.prompt(text).tolist() == expected.prompt(text).tolist()


def test_bpe_dropout_does_not_reach_the_data():
    theirs = llama3_like()
    theirs.model.dropout = 0.9
    tokenizer = load_tokenizer(spec_of(theirs.to_str()))
    assert len({tuple(tokenizer.encode(TEXT).tolist()) for _ in range(5)}) == 1


def test_a_byte_level_tokenizer_with_a_blank_before_puts_none_before_a_piece():
    theirs = llama3_like()
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = load_tokenizer(spec_of(theirs.to_str()))
    assert decode(tokenizer, tokenizer.encode("menino")) == "menino"
    assert decode(tokenizer, tokenizer.prompt("menino")[1:]) == " menino"


@pytest.mark.parametrize("make", [llama3_like, llama2_like])
def test_a_long_text_in_pieces_is_the_whole_text(make):
    """A tokenizer that puts a blank before each text must not put one before each piece."""
    tokenizer = load_tokenizer(spec_of(make().to_str()))
    pieces = ["o menino", " viu a maçã", " e", " não men"]
    in_pieces = np.concatenate([tokenizer.encode(piece) for piece in pieces])
    np.testing.assert_array_equal(in_pieces, tokenizer.encode("".join(pieces)))


@pytest.mark.parametrize("make", [llama3_like, llama2_like])
def test_a_data_set_is_prepared_trained_on_and_sampled_with_it(workspace, run, capsys, make):
    Path("foreign").mkdir()
    make().save("foreign/tokenizer.json")
    text = "o menino viu a maçã e não comeu\n" * 100
    Path("text.txt").write_text(text, encoding="utf-8")
    prepare.main(["text", "--input=text.txt", "--tokenizer=foreign"])
    dataset = Dataset("data/text")
    ids = np.concatenate([dataset.ids["train"][:], dataset.ids["val"][:]])
    assert decode(dataset.tokenizer, ids.tolist()) == text
    train.main(run(dataset="text", max_iters=2))
    sample.main(["--device=cpu", "--num_samples=1", "--max_new_tokens=5", "--start=o menino"])
    assert "o menino" in capsys.readouterr().out


@pytest.mark.parametrize("text, words", [
    ("{", "JSONDecodeError|cannot take"), ("[]", "cannot take the tokenizer"), ('{"model": 1}', "no tokenizer.json"),
    ('{"tokenizer": 1}', "not a tokenizer description"), ("null", "cannot take the tokenizer"),
    ('{"tokenizer": {"kind": "char", "chars": ["a"]}}', "text without repetitions"),
    ('{"tokenizer": {"kind": "char", "chars": ""}}', "text without repetitions"),
    ('{"tokenizer": {"kind": "char", "chars": "aa"}}', "text without repetitions"),
    ('{"tokenizer": {"kind": "bpe", "ranks": ["YQ==", "YQ=="]}}', "not a tokenizer description"),
    ('{"tokenizer": {"kind": "bpe", "ranks": "YQ=="}}', "not a tokenizer description"),
    ('{"tokenizer": {"kind": "huggingface", "json": "{}"}}', "not a tokenizer description|cannot read"),
])  # fmt: skip
def test_a_damaged_description_is_refused(workspace, text, words):
    Path("meta.json").write_text(text)
    with pytest.raises(DataError, match=words):
        load_tokenizer(read_spec("meta.json"))


def test_a_decoder_that_does_not_say_which_bytes_is_refused():
    theirs = llama3_like()
    theirs.decoder = decoders.WordPiece()
    with pytest.raises(
        DataError, match="decoder WordPiece; ByteLevel and sentencepiece's are known"
    ):
        load_tokenizer(spec_of(theirs.to_str()))
