"""Text <-> token ids, by characters or byte-level BPE, and the JSON description that travels in every checkpoint."""

import base64
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import tiktoken

from seugpt.data.download import download
from seugpt.data.text import cut_between_words
from seugpt.data.tokenizer_json import (
    END_OF_TEXT,
    HuggingFaceTokenizer,
    spec_of,
    write_bpe,
    write_chars,
)
from seugpt.errors import DataError

# How GPT-2 cuts text into words before merging. A word never reaches past its last letter into white space,
# which is what lets prepare.py cut a long text between words and still get the same tokens.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What tiktoken downloads once, under the names that it keeps them by (the sha1 of their addresses). They are fetched
# for it: tiktoken tries only once, and a server that falls silent would keep it waiting for ever.
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_FILES = {
    "6d1cbeee0f20b3d9449abfede4726ed8212e3aee": {
        "url": GPT2_URL + "vocab.bpe",
        "sha256": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "size": 456_318,
    },
    "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6": {
        "url": GPT2_URL + "encoder.json",
        "sha256": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "size": 1_042_301,
    },
}


class CharTokenizer:
    """One token per character of `chars`, a string without repetitions; the id is the position in it."""

    separator = "\n\n"  # between documents

    def __init__(self, chars):
        self.chars = chars
        self.vocab_size = len(chars)
        self.table = np.full(0x110000, -1, dtype=np.int32)  # code point -> id
        self.table[code_points(chars)] = np.arange(len(chars))

    def encode(self, text):
        """text -> int32 array of ids, (characters,). Raises DataError that names the unknown characters."""
        ids = self.table[code_points(text)]
        if (ids < 0).any():
            unknown = sorted(set(text) - set(self.chars))
            named = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:8]) + (
                ", ..." if len(unknown) > 8 else ""
            )
            raise DataError(
                f"not among the {self.vocab_size} characters of this vocabulary: {named}"
            )
        return ids

    def prompt(self, text):
        """The ids of the beginning of a text, which a model goes on from; elsewhere they may have a mark in front."""
        return self.encode(text)

    def decode_bytes(self, ids):
        return "".join(self.chars[i] for i in ids).encode()

    def spec(self):
        return {"kind": "char", "chars": self.chars}

    def json(self):
        """The text of a tokenizer.json, Hugging Face's form. Raises DataError: the package tokenizers is missing."""
        return write_chars(self.chars)


class BPETokenizer:
    """Byte-level BPE by tiktoken: GPT-2's own, or one that was trained here."""

    separator = END_OF_TEXT

    def __init__(self, encoding, spec):
        self.encoding = encoding
        self.vocab_size = encoding.n_vocab
        self._spec = spec

    def encode(self, text):
        """text -> uint32 array of ids. Any text can be encoded; "<|endoftext|>" in it becomes one token."""
        return self.encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT})

    def prompt(self, text):
        pieces = cut_between_words([text])  # a million blanks in a row are too many for tiktoken
        return np.concatenate([self.encode(piece) for piece in pieces])

    def decode_bytes(self, ids):
        return self.encoding.decode_bytes(list(ids))

    def spec(self):
        return self._spec

    def json(self):
        end_of_text = 1  # the last id
        return write_bpe(
            [
                self.encoding.decode_single_token_bytes(i)
                for i in range(self.vocab_size - end_of_text)
            ]
        )


def code_points(text):
    """The text's Unicode code points, a uint32 array (characters,)."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def characters_in(token):
    """How many characters begin in a token's bytes: UTF-8 marks the bytes that only go on."""
    return sum(byte & 0xC0 != 0x80 for byte in token)


def decode(tokenizer, ids):
    """ids -> text; bytes that are no UTF-8, as a BPE model can produce, show as U+FFFD."""
    return tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")


def prompt_ids(tokenizer, text, called):
    """The ids of a text that a model is to read. Raises DataError that names the characters which it does not know."""
    try:
        ids = tokenizer.prompt(text)
    except DataError as error:
        known = getattr(tokenizer, "chars", "")
        raise DataError(
            f"the {called} has what the model never saw in training: {error}. It knows: {known!r}"
        ) from error
    if not len(ids):  # some of Hugging Face's leave out blanks
        raise DataError(f"the {called} has no tokens in it; give a longer one")
    return ids


def gpt2_tokenizer():
    """GPT-2's 50,257 tokens. They are downloaded once; TIKTOKEN_CACHE_DIR names a folder that keeps them."""
    folder = gpt2_folder()
    advice = (
        "It is downloaded once: connect to the network, set TIKTOKEN_CACHE_DIR to a folder that has it, or use "
        "--tokenizer=bpe, which needs no download"
    )
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, file in GPT2_FILES.items():
                download(folder / name, advice, **file)
        return BPETokenizer(tiktoken.get_encoding("gpt2"), {"kind": "gpt2"})
    except DataError as error:
        raise DataError(f"cannot get GPT-2's vocabulary: {error}") from error
    except OSError as error:
        raise DataError(
            f"cannot keep GPT-2's vocabulary in {folder}: {error.strerror}. Set TIKTOKEN_CACHE_DIR to a folder of yours"
        ) from error
    except Exception as error:  # tiktoken's own
        raise DataError(
            f"cannot get GPT-2's vocabulary ({type(error).__name__}: {error}). {advice}"
        ) from error


def gpt2_folder():
    """Where tiktoken looks for its files; None: told to keep none, it downloads them itself each time."""
    default = Path(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    return Path(folder) if folder != "" else None


def bpe_tokenizer(ranks):
    """A tokenizer from its tokens, a list of bytes in the order of merging, with END_OF_TEXT after them; ValueError."""
    if len(set(ranks)) < len(ranks) or not {bytes([byte]) for byte in range(256)} <= set(ranks):
        raise ValueError("the ranks must hold every byte, and no token twice")
    encoding = tiktoken.Encoding(
        "bpe",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
        special_tokens={END_OF_TEXT: len(ranks)},
    )
    return BPETokenizer(
        encoding, {"kind": "bpe", "ranks": [base64.b64encode(token).decode() for token in ranks]}
    )


def train_bpe(texts, vocab_size):
    """Train a byte-level BPE of at most vocab_size tokens on an iterable of texts, with the extra package rustbpe."""
    try:
        import rustbpe
    except ImportError:
        raise DataError(
            "--tokenizer=bpe needs the package rustbpe: python -m pip install rustbpe==0.1.0"
        ) from None
    trainer = rustbpe.Tokenizer()
    parts = (part for text in texts for part in text.split(END_OF_TEXT))
    trainer.train_from_iterator(
        parts, vocab_size=vocab_size - 1, buffer_size=16, pattern=GPT2_PATTERN
    )  # texts in memory
    return bpe_tokenizer(
        [
            bytes(token)
            for token, _ in sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
        ]
    )


def load_tokenizer(spec, source="tokenizer"):
    """The tokenizer that `spec()` described. Raises DataError, which names `source`, for what is no description."""
    if spec == {"kind": "gpt2"}:
        return gpt2_tokenizer()
    try:
        if spec["kind"] == "char":
            return char_tokenizer(spec["chars"])
        if spec["kind"] == "bpe":
            return bpe_tokenizer(
                [base64.b64decode(token, validate=True) for token in spec["ranks"]]
            )
        if spec["kind"] == "huggingface":
            return HuggingFaceTokenizer(spec["json"])
        raise ValueError(spec["kind"])
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError) as error:  # the last of a tensor
        raise DataError(
            f"{source}: not a tokenizer description: {type(error).__name__} {error}"
        ) from error


def char_tokenizer(chars):
    if not isinstance(chars, str) or not chars or len(set(chars)) < len(chars):
        raise ValueError("chars must be a text without repetitions, at least one character long")
    return CharTokenizer(chars)


def read_spec(path):
    """The tokenizer's description in a data set's meta.json, in a tokenizer.json, or in a folder with one of them.

    Raises DataError.
    """
    path = Path(path)
    if path.is_dir():
        path = next(
            (path / name for name in ("meta.json", "tokenizer.json") if (path / name).is_file()),
            path,
        )
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        return spec_of(text) if "model" in content else content["tokenizer"]
    except DataError as error:
        raise DataError(f"cannot take the tokenizer of {path}: {error}") from error
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise DataError(
            f"cannot take the tokenizer of {path}: {reason}. Give a meta.json, a tokenizer.json or a folder with one"
        ) from error
