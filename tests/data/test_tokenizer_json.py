"""tokenizer.json: ours written and read again, any other run by the tokenizers package."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import prepare
import sample
import train
from seugpt.data.dataset import Dataset
from seugpt.data.tokenizer import (
    END_OF_TEXT,
    decode,
    load_tokenizer,
    read_spec,
    same_vocabulary,
    train_bpe,
)
from seugpt.data.tokenizer_json import CHAR_TO_BYTE, spec_from_json
from seugpt.errors import DataError
from tests.external_tokenizers import llama2_like, llama3_like
from tests.helpers import TEXT

external = pytest.mark.parametrize("make", [llama3_like, llama2_like])


def load_from_json(hf_tokenizer):
    return load_tokenizer(spec_from_json(hf_tokenizer.to_str()))


# Our own tokenizers


def test_our_tokenizer_json_restores_the_spec_and_encodes_alike_in_hugging_face(tokenizer):
    text = tokenizer.to_json()
    assert spec_from_json(text) == tokenizer.spec()
    hf_tokenizer = tokenizers.Tokenizer.from_str(text)
    ids = tokenizer.encode(TEXT).tolist()
    assert hf_tokenizer.encode(TEXT).ids == ids
    assert hf_tokenizer.decode(ids, skip_special_tokens=False) == TEXT
    assert hf_tokenizer.get_vocab_size() == tokenizer.vocab_size


def test_end_of_text_is_one_token_in_hugging_face_too():
    ours = train_bpe([TEXT * 3], 320)
    hf_tokenizer = tokenizers.Tokenizer.from_str(ours.to_json())
    text = f"menino{END_OF_TEXT}menino"
    assert hf_tokenizer.encode(text).ids == ours.encode(text).tolist()


def test_bpe_whose_merges_are_not_in_id_order_stays_with_hugging_face():
    """tiktoken merges the lowest id first, so it would split words into other tokens."""
    content = json.loads(train_bpe([TEXT * 3], 320).to_json())
    content["model"]["merges"].reverse()
    spec = spec_from_json(json.dumps(content))
    assert spec["kind"] == "huggingface"
    hf_tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    assert load_tokenizer(spec).encode(TEXT).tolist() == hf_tokenizer.encode(TEXT).ids


# External tokenizers


@external
def test_an_external_tokenizer_encodes_as_in_hugging_face(make):
    hf_tokenizer = make()
    spec = spec_from_json(hf_tokenizer.to_str())
    assert spec["kind"] == "huggingface"
    ours = load_tokenizer(json.loads(json.dumps(spec)))
    assert ours.to_json() == hf_tokenizer.to_str()
    assert same_vocabulary(ours.spec(), spec)
    assert ours.vocab_size == hf_tokenizer.get_vocab_size()
    assert ours.encode_prompt("o menino viu").tolist() == hf_tokenizer.encode("o menino viu").ids
    text = " o menino viu a maçã 🦜\n\n e não"
    ids = ours.encode(text)
    assert decode(ours, ids) == text
    assert b"".join(ours.decode_bytes([i]) for i in ids) == text.encode()


@external
def test_stored_truncation_and_padding_are_ignored(make):
    """save_pretrained writes both into tokenizer.json, and 7,000 tokens of text became 64."""
    hf_tokenizer = make()
    plain = load_from_json(hf_tokenizer)
    hf_tokenizer.enable_truncation(3)
    hf_tokenizer.enable_padding(length=50)
    loaded = load_from_json(hf_tokenizer)
    text = "o menino viu a maçã e não comeu"
    assert loaded.encode(text).tolist() == plain.encode(text).tolist()
    assert loaded.encode_prompt(text).tolist() == plain.encode_prompt(text).tolist()


def test_bpe_dropout_is_ignored():
    hf_tokenizer = llama3_like()
    hf_tokenizer.model.dropout = 0.9
    tokenizer = load_from_json(hf_tokenizer)
    encodings = {tuple(tokenizer.encode(TEXT).tolist()) for _ in range(5)}
    assert len(encodings) == 1


def test_add_prefix_space_applies_to_prompts_only():
    hf_tokenizer = llama3_like()
    hf_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = load_from_json(hf_tokenizer)
    assert decode(tokenizer, tokenizer.encode("menino")) == "menino"
    assert decode(tokenizer, tokenizer.encode_prompt("menino")[1:]) == " menino"


@external
def test_encoding_in_chunks_equals_encoding_the_whole_text(make):
    """A tokenizer that puts a blank before a text must not put one before each chunk of it."""
    tokenizer = load_from_json(make())
    chunks = ["o menino", " viu a maçã", " e", " não men"]
    ids = np.concatenate([tokenizer.encode(chunk) for chunk in chunks])
    np.testing.assert_array_equal(ids, tokenizer.encode("".join(chunks)))


@external
def test_prepare_train_and_sample_with_an_external_tokenizer(workspace, run, capsys, make):
    Path("external").mkdir()
    make().save("external/tokenizer.json")
    text = "o menino viu a maçã e não comeu\n" * 100
    Path("text.txt").write_text(text, encoding="utf-8")
    prepare.main(["text", "--input=text.txt", "--tokenizer=external"])
    dataset = Dataset("data/text")
    ids = np.concatenate([dataset.ids["train"][:], dataset.ids["val"][:]])
    assert decode(dataset.tokenizer, ids) == text
    train.main(run(dataset="text", max_iters=2))
    sample.main(["--device=cpu", "--num_samples=1", "--max_new_tokens=5", "--start=o menino"])
    assert "o menino" in capsys.readouterr().out


def test_a_decoder_that_does_not_map_tokens_to_bytes_is_refused():
    hf_tokenizer = llama3_like()
    hf_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(DataError, match=r"decoder WordPiece\b.*ByteLevel"):
        load_from_json(hf_tokenizer)


@pytest.mark.parametrize(
    "content, fragment",
    [
        ("{", "JSONDecodeError"),
        ("null", "TypeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError"),
        ('{"model": 1}', "not a readable tokenizer.json"),
    ],
)
def test_a_file_without_a_tokenizer_is_refused(workspace, content, fragment):
    Path("meta.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_spec("meta.json")
    assert "the tokenizer of meta.json" in str(error.value)
    assert fragment in str(error.value)


def test_a_regular_expression_that_backtracks_too_much_is_one_error():
    """The package panics then, which is no Exception, and ended in a traceback."""
    tokenizer = tokenizers.Tokenizer(models.BPE(CHAR_TO_BYTE, []))
    pattern = tokenizers.Regex("(x+x+)+y")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    loaded = load_tokenizer(spec_from_json(tokenizer.to_str()))
    assert loaded.encode("ab").tolist() == [CHAR_TO_BYTE["a"], CHAR_TO_BYTE["b"]]
    with pytest.raises(DataError, match=r"tokenizer\.json cannot encode this text"):
        loaded.encode("x" * 40)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model":' * 100_000])
def test_a_deeply_nested_tokenizer_json_is_one_error(tmp_path, text):
    path = tmp_path / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        read_spec(path)
    with pytest.raises(DataError, match="x: not a valid tokenizer spec: RecursionError"):
        load_tokenizer({"kind": "huggingface", "json": text}, "x")
