"""Hugging Face's tokenizer.json: read, and written from our tokenizers.

Character vocabularies and GPT-2-style byte-level BPE convert exactly in both directions. Any other
tokenizer.json is kept as it is and run by the tokenizers package.
"""

import base64
import hashlib
import itertools
import json
from dataclasses import replace
from functools import cached_property

import numpy as np

from seugpt.data.special_tokens import SpecialTokens, from_json, read_special_tokens
from seugpt.errors import DataError

END_OF_TEXT = "<|endoftext|>"
# Of GPT-2's tokens in order, each in base64 and followed by a newline.
GPT2_SHA256 = "9f5c51677dd3f37bbf0ab2017579262cac437eb5f140a8efb53a235dbdb3ce0b"
# tokenizer.json spells a byte as itself if it is printable, else as a character from U+0100 on.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
UNPRINTABLE = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_TO_CHAR = {byte: chr(byte) for byte in PRINTABLE}
BYTE_TO_CHAR |= {byte: chr(0x100 + n) for n, byte in enumerate(UNPRINTABLE)}
CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}
SENTENCEPIECE_SPACE = "\u2581"
GPT2_SPECIAL = SpecialTokens(bos=END_OF_TEXT, eos=(END_OF_TEXT,))
END_TOKENS = (END_OF_TEXT, "<|end_of_text|>", "</s>")


def import_tokenizers():
    """The tokenizers package. Raises DataError if it is missing."""
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            "tokenizer.json needs the package tokenizers: python -m pip install tokenizers==0.23.3"
        ) from None
    return tokenizers


def ranks_sha256(ranks):
    """The checksum of a BPE vocabulary: tokens as bytes in merge order."""
    return hashlib.sha256(b"".join(base64.b64encode(token) + b"\n" for token in ranks)).hexdigest()


def spec_from_json(text, folder=None):
    """The spec, as load_tokenizer takes it, of a tokenizer.json's content. Raises DataError.

    `folder`: where the file lies, beside others that name its special tokens.
    """
    try:
        content = json.loads(text)
        chars = chars_of(content)
        ranks = gpt2_style_ranks(content)
        tokens = tokens_by_id(content)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"it is not a readable tokenizer.json ({type(error).__name__}: {error})"
        ) from error
    if chars is not None:
        return {"kind": "char", "chars": chars}
    special = SpecialTokens()
    if folder is not None:
        special = read_special_tokens(folder, tokens)
    if ranks is None:
        return {"kind": "huggingface", "json": text, "special": special.to_json()}
    spec = {"kind": "gpt2"} if ranks_sha256(ranks) == GPT2_SHA256 else bpe_spec(ranks)
    special = replace(
        special, bos=special.bos or GPT2_SPECIAL.bos, eos=special.eos or GPT2_SPECIAL.eos
    )
    return spec if special == GPT2_SPECIAL else {**spec, "special": special.to_json()}


def unknown_ids(model, vocab):
    """The ids, at most one, of the token that stands for unknown characters."""
    unknown = model.get("unk_id")
    if unknown is None:
        unknown = vocab.get(model.get("unk_token"))
    return [] if unknown is None else [unknown]


def tokens_by_id(content):
    """{id: token} of a tokenizer.json's vocabulary, whichever model it has."""
    vocab = content["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram's pairs of a token and its score
        tokens = {i: pair[0] for i, pair in enumerate(vocab)}
    else:
        tokens = {i: token for token, i in vocab.items()}
    return tokens | {token["id"]: token["content"] for token in content["added_tokens"]}


def bpe_spec(ranks):
    """The spec of byte-level BPE; `ranks`: tokens as bytes in merge order."""
    return {"kind": "bpe", "ranks": [base64.b64encode(token).decode() for token in ranks]}


def chars_of(content):
    """The characters of a tokenizer.json that chars_to_json wrote, else None."""
    model = content["model"]
    if (
        model["type"] != "WordLevel"
        or content["decoder"] != {"type": "Fuse"}
        or content["normalizer"]
    ):
        return None
    vocab = model["vocab"]
    chars = "".join(sorted(vocab, key=vocab.get))
    in_order = len(chars) == len(vocab) and sorted(vocab.values()) == list(range(len(chars)))
    return chars if in_order else None


def gpt2_style_ranks(content):
    """The tokens in merge order, if tiktoken splits all texts as this tokenizer.json does."""
    model = content["model"]
    if model["type"] != "BPE":
        return None
    pre_tokenizer = content["pre_tokenizer"] or {}
    post_processor = content["post_processor"] or {}
    vocab = {token: i for token, i in model["vocab"].items() if token != END_OF_TEXT}
    tokens = sorted(vocab, key=vocab.get)
    merges = [
        merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", [])
    ]
    added_tokens = [(token["id"], token["content"]) for token in content["added_tokens"]]
    equivalent = (
        not model.get("ignore_merges")
        and not model.get("dropout")
        and not content["normalizer"]
        and pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex", True)
        and not pre_tokenizer["add_prefix_space"]
        and post_processor.get("type") in (None, "ByteLevel")
        and added_tokens == [(len(vocab), END_OF_TEXT)]
        and [vocab[token] for token in tokens] == list(range(len(vocab)))
        and set(tokens[:256]) == set(CHAR_TO_BYTE)
        and ["".join(merge) for merge in merges] == tokens[256:]
    )
    if not equivalent:
        return None
    return [bytes(CHAR_TO_BYTE[char] for char in token) for token in tokens]


def chars_to_json(chars):
    """The content of a tokenizer.json for a character vocabulary."""
    tokenizers = import_tokenizers()
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({c: i for i, c in enumerate(chars)})
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"[\s\S]"), "isolated"
    )
    tokenizer.decoder = tokenizers.decoders.Fuse()
    return tokenizer.to_str(pretty=True)


def bpe_to_json(ranks):
    """The content of a tokenizer.json for byte-level BPE; `ranks`: tokens in merge order."""
    tokenizers = import_tokenizers()
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    spelled = ["".join(BYTE_TO_CHAR[byte] for byte in token) for token in ranks]
    merges = []
    for token in ranks:
        if len(token) > 1:
            left, right = merged_halves(token, rank_of)
            merges.append((spelled[rank_of[left]], spelled[rank_of[right]]))
    vocab = {token: rank for rank, token in enumerate(spelled)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer.to_str(pretty=True)


def merged_halves(token, rank_of):
    """The two tokens that merge into this one: its bytes, merged until two parts are left."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranks = [rank_of.get(a + b, len(rank_of)) for a, b in itertools.pairwise(parts)]
        first = ranks.index(min(ranks))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


class HuggingFaceTokenizer:
    """Any other tokenizer.json, such as Llama's, run by the tokenizers package."""

    keeps_every_byte = False

    def __init__(self, text, special=None):
        """Raises DataError if the package is missing, or if tokens cannot be turned to bytes.

        `special`: the JSON of SpecialTokens, None if only tokenizer.json is known.
        """
        self.text = text
        content = json.loads(text)
        from_str = import_tokenizers().Tokenizer.from_str
        try:
            content["model"].pop("dropout", None)  # would encode a text differently each time
            self.prompt_encoder = from_str(json.dumps(content))
            self.encoder = from_str(json.dumps(without_prefix(content)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the package's panics are no Exception
            raise DataError(
                f"the package tokenizers cannot read tokenizer.json: {error}"
            ) from error
        for encoder in (self.prompt_encoder, self.encoder):  # transformers saves both settings
            encoder.no_truncation()
            encoder.no_padding()
        vocab = self.prompt_encoder.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=0) + 1
        if self.vocab_size > 2 * len(vocab) + 1000:  # a model would need a row for each unused id
            raise DataError(
                f"tokenizer.json has {len(vocab):,} tokens but ids up to {self.vocab_size - 1:,}"
            )
        added = {token["id"]: token["content"].encode() for token in content["added_tokens"]}
        to_bytes = token_decoder(content)
        self.bytes_of = {i: added.get(i) or to_bytes(token) for token, i in vocab.items()}
        self.token_sizes = np.zeros(self.vocab_size, dtype=np.int64)  # in bytes
        for i, token in self.bytes_of.items():
            self.token_sizes[i] = len(token)
        self.token_sizes[unknown_ids(content["model"], vocab)] = 0
        self.special = self.complete(from_json(special) if special else SpecialTokens(), vocab)
        ends = [token for token in (*END_TOKENS, *self.special.eos) if token in vocab]
        self.document_separator = ends[0] if ends else "\n\n"

    def complete(self, special, vocab):
        """Special tokens that no file names: what encoding puts in front, and the usual end."""
        if special.bos is None:
            first = self.prompt_encoder.encode("").tokens[:1]
            special = replace(special, bos=first[0] if first else None)
        if not special.eos:
            special = replace(special, eos=tuple(token for token in END_TOKENS if token in vocab))
        return special

    def num_bytes(self, ids):
        """How many bytes of a text its ids stand for; an unknown token stands for none."""
        return int(self.token_sizes[ids].sum())

    def token_id(self, token):
        return self.prompt_encoder.token_to_id(token)

    def encode(self, text):
        """text -> int32 array of ids, as inside a longer text: nothing is put in front."""
        return encoded_ids(self.encoder, text, add_special_tokens=False)

    def encode_document(self, text):
        """As encode, but special tokens in the text are text."""
        return encoded_ids(self.document_encoder, text, add_special_tokens=False)

    @cached_property
    def document_encoder(self):
        encoder = import_tokenizers().Tokenizer.from_str(self.encoder.to_str())
        encoder.encode_special_tokens = True
        return encoder

    def encode_prompt(self, text):
        """The ids of the beginning of a text, with the begin-of-text token if there is one."""
        return encoded_ids(self.prompt_encoder, text)

    def decode_bytes(self, ids):
        return b"".join(self.bytes_of.get(int(i), b"") for i in ids)

    def spec(self):
        return {"kind": "huggingface", "json": self.text, "special": self.special.to_json()}

    def to_json(self):
        return self.text


def encoded_ids(encoder, text, **options):
    """The ids of a text, int32. Raises DataError if the tokenizer lacks what it needs for it."""
    try:
        return np.array(encoder.encode(text, **options).ids, dtype=np.int32)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic, as of a regular expression that backtracks too much
        raise DataError(f"tokenizer.json cannot encode this text: {error}") from error


def without_prefix(content):
    """A copy of tokenizer.json that puts no space in front of a text, to encode it in chunks."""
    content = json.loads(json.dumps(content))  # a deep copy
    normalizer = content.get("normalizer") or {}
    parts = normalizer.get("normalizers", [normalizer])
    kept = [part for part in parts if part.get("type", "Prepend") != "Prepend"]
    content["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    pre_tokenizer = content.get("pre_tokenizer") or {}
    for part in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = False
    return content


def token_decoder(content):
    """The function from a token's spelling in tokenizer.json to its bytes, by the decoder.

    Raises DataError.
    """
    decoder = content.get("decoder") or {}
    types = {part["type"] for part in decoder.get("decoders", [decoder]) if "type" in part}
    if "ByteLevel" in types:
        return byte_level_to_bytes
    if types & {"ByteFallback", "Metaspace"}:
        return sentencepiece_to_bytes
    raise DataError(
        f"tokenizer.json has the decoder {decoder.get('type')}; "
        "supported are ByteLevel and sentencepiece's"
    )


def byte_level_to_bytes(token):
    return bytes(CHAR_TO_BYTE[char] for char in token)


def sentencepiece_to_bytes(token):
    """U+2581 is a space, <0x0A> a single byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace(SENTENCEPIECE_SPACE, " ").encode()
