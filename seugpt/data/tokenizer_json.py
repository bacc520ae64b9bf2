"""tokenizer.json, the form in which Hugging Face keeps a tokenizer: theirs read, and ours written in it.

Characters, GPT-2's tokens and byte-level BPE in GPT-2's manner are the same thing in both forms, and turn into each
other. Any other one stays as it is, and the package tokenizers runs it.
"""

import base64
import hashlib
import itertools
import json

import numpy as np

from seugpt.errors import DataError

END_OF_TEXT = "<|endoftext|>"
# of GPT-2's tokens in order, each in base64 and with a line end
GPT2_SHA256 = "9f5c51677dd3f37bbf0ab2017579262cac437eb5f140a8efb53a235dbdb3ce0b"
# What a token in tokenizer.json writes for a byte: itself where it is printable, else a letter from U+0100 on.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
LETTERS = {byte: chr(byte) for byte in PRINTABLE}
LETTERS |= {
    byte: chr(0x100 + n) for n, byte in enumerate(b for b in range(256) if b not in LETTERS)
}
BYTES = {letter: byte for byte, letter in LETTERS.items()}


def package():
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            "tokenizer.json needs the package tokenizers: python -m pip install tokenizers==0.23.3"
        ) from None
    return tokenizers


def fingerprint(ranks):
    """The checksum of a BPE's tokens, a list of bytes in the order of merging."""
    return hashlib.sha256(b"".join(base64.b64encode(token) + b"\n" for token in ranks)).hexdigest()


def spec_of(text):
    """The description, as data.tokenizer.load_tokenizer takes it, of the text of a tokenizer.json; DataError."""
    try:
        content = json.loads(text)
        model = content["model"]
        if (
            model["type"] == "WordLevel"
            and content["decoder"] == {"type": "Fuse"}
            and not content["normalizer"]
        ):
            chars = "".join(sorted(model["vocab"], key=model["vocab"].get))
            if len(chars) == len(model["vocab"]) and sorted(model["vocab"].values()) == list(
                range(len(chars))
            ):
                return {"kind": "char", "chars": chars}
        ranks = gpt2_like_ranks(content)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"it is no tokenizer.json that can be read ({type(error).__name__}: {error})"
        ) from error
    if ranks is None:
        return {"kind": "huggingface", "json": text}
    if fingerprint(ranks) == GPT2_SHA256:
        return {"kind": "gpt2"}
    return {"kind": "bpe", "ranks": [base64.b64encode(token).decode() for token in ranks]}


def gpt2_like_ranks(content):
    """The tokens in order where tiktoken would cut every text just as this tokenizer.json does; else None."""
    model, cutting = content["model"], content["pre_tokenizer"] or {}
    if model["type"] != "BPE":
        return None
    added = [(token["id"], token["content"]) for token in content["added_tokens"]]
    vocab = {token: i for token, i in model["vocab"].items() if token != END_OF_TEXT}
    ordered = sorted(vocab, key=vocab.get)
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in model.get("merges", [])
    ]
    alike = (
        not (model.get("ignore_merges") or model.get("dropout") or content["normalizer"])
        and (
            cutting.get("type") == "ByteLevel"
            and cutting.get("use_regex", True)
            and not cutting["add_prefix_space"]
        )
        and (content["post_processor"] or {}).get("type") in (None, "ByteLevel")
        and added == [(len(vocab), END_OF_TEXT)]
        and [vocab[token] for token in ordered] == list(range(len(vocab)))
        and set(ordered[:256]) == set(BYTES)
        and ["".join(merge) for merge in merges] == ordered[256:]
    )
    return [bytes(BYTES[letter] for letter in token) for token in ordered] if alike else None


def write_chars(chars):
    """The text of a tokenizer.json for a vocabulary of characters."""
    tokenizers = package()
    result = tokenizers.Tokenizer(tokenizers.models.WordLevel({c: i for i, c in enumerate(chars)}))
    result.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    result.decoder = tokenizers.decoders.Fuse()
    return result.to_str(pretty=True)


def write_bpe(ranks):
    """The text of a tokenizer.json for a byte-level BPE; ranks: its tokens as bytes in the order of merging."""
    tokenizers = package()
    places = {token: rank for rank, token in enumerate(ranks)}
    letters = ["".join(LETTERS[byte] for byte in token) for token in ranks]
    merges = [
        tuple(letters[places[part]] for part in halves(token, places))
        for token in ranks
        if len(token) > 1
    ]
    vocab = {token: rank for rank, token in enumerate(letters)}
    result = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    result.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = tokenizers.decoders.ByteLevel()
    result.add_special_tokens([END_OF_TEXT])
    return result.to_str(pretty=True)


def halves(token, places):
    """The two tokens that were merged into this one: what merging in order makes of its bytes one step before."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [places.get(a + b, len(places)) for a, b in itertools.pairwise(parts)]
        first = joined.index(min(joined))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


class HuggingFaceTokenizer:
    """A tokenizer.json of any other kind, such as Llama's, run by the package tokenizers."""

    def __init__(self, text):
        """Raises DataError: the package is missing, or the tokens do not say which bytes they stand for."""
        self.text = text
        content = json.loads(text)
        try:
            content["model"].pop(
                "dropout", None
            )  # BPE's, which would cut a text otherwise each time
            self.whole = package().Tokenizer.from_str(json.dumps(content))
            self.inner = package().Tokenizer.from_str(json.dumps(without_prefix(content)))
        except (DataError, KeyboardInterrupt):
            raise
        except (
            BaseException
        ) as error:  # the package raises plain Exception, and its panics are not even that
            raise DataError(
                f"the package tokenizers cannot read tokenizer.json: {error}"
            ) from error
        for tokenizer in (
            self.whole,
            self.inner,
        ):  # transformers writes both into the file, and each loses a text
            tokenizer.no_truncation()
            tokenizer.no_padding()
        vocab = self.whole.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=0) + 1
        if (
            self.vocab_size > 2 * len(vocab) + 1000
        ):  # a model would have a row for each of the ids between
            raise DataError(
                f"tokenizer.json has {len(vocab):,} tokens, and one with the id {self.vocab_size - 1:,}"
            )
        special = {token["id"]: token["content"].encode() for token in content["added_tokens"]}
        spell = speller(content)
        self.table = {i: special.get(i) or spell(token) for token, i in vocab.items()}
        ends = (END_OF_TEXT, "<|end_of_text|>", "</s>")
        self.separator = next((end for end in ends if end in vocab), "\n\n")  # between documents

    def encode(self, text):
        """text -> int32 array of ids, as in the middle of a longer text: no mark of its beginning, no blank before."""
        return np.array(self.inner.encode(text, add_special_tokens=False).ids, dtype=np.int32)

    def prompt(self, text):
        """The ids of a text's beginning, with the mark that the model expects there."""
        return np.array(self.whole.encode(text).ids, dtype=np.int32)

    def decode_bytes(self, ids):
        return b"".join(self.table.get(int(i), b"") for i in ids)

    def spec(self):
        return {"kind": "huggingface", "json": self.text}

    def json(self):
        return self.text


def without_prefix(content):
    """A tokenizer.json that puts no blank before a text, so that a long text can be encoded in pieces."""
    content = json.loads(json.dumps(content))  # a copy, all the way down
    normalizer, cutting = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    normalizers = [
        part
        for part in normalizer.get("normalizers", [normalizer])
        if part.get("type", "Prepend") != "Prepend"
    ]
    content["normalizer"] = (
        {"type": "Sequence", "normalizers": normalizers} if normalizers else None
    )
    for part in cutting.get("pretokenizers", [cutting]):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = False
    return content


def speller(content):
    """The function from a token's text in tokenizer.json to the bytes that it stands for, by its decoder; DataError."""
    decoder = content.get("decoder") or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}
    if "ByteLevel" in kinds:
        return lambda token: bytes(BYTES[letter] for letter in token)
    if kinds & {"ByteFallback", "Metaspace"}:  # sentencepiece's: U+2581 is a blank, <0x0A> a byte
        return lambda token: (
            bytes([int(token[3:5], 16)])
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            else token.replace("\u2581", " ").encode()
        )
    raise DataError(
        f"tokenizer.json has the decoder {decoder.get('type')}; ByteLevel and sentencepiece's are known"
    )
