"""Text <-> token ids, by characters or byte-level BPE.

Every checkpoint carries its tokenizer as a spec, a dictionary that can be written as JSON.
"""

import base64
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import tiktoken

from seugpt.data.download import download
from seugpt.data.special_tokens import SpecialTokens, from_json
from seugpt.data.text import split_at_word_boundaries
from seugpt.data.tokenizer_json import (
    END_OF_TEXT,
    GPT2_SPECIAL,
    HuggingFaceTokenizer,
    bpe_spec,
    bpe_to_json,
    chars_to_json,
    spec_from_json,
)
from seugpt.errors import DataError, one_line
from seugpt.files import read_text

# How GPT-2 splits text into words before merging. A word never extends past its last letter into
# white space, so prepare.py can split a long text between words and still get the same tokens.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The files that tiktoken downloads, under the names by which it caches them (the sha1 of their
# URLs). We download them in its place: tiktoken tries only once, and waits forever for a server
# that stops responding.
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
NUM_CODE_POINTS = 0x110000  # of Unicode
MAX_NAMED_CHARS = 8  # unknown characters listed in a message
BPE_BATCH = 16  # texts that rustbpe holds in memory at a time


class CharTokenizer:
    """One token per character of `chars`, a string without repetitions; an id is an index in it."""

    document_separator = "\n\n"
    special = SpecialTokens()
    keeps_every_byte = True

    def __init__(self, chars):
        self.chars = chars
        self.vocab_size = len(chars)
        self.id_of = np.full(NUM_CODE_POINTS, -1, dtype=np.int32)  # -1: not in the vocabulary
        self.id_of[code_points(chars)] = np.arange(len(chars))

    def encode(self, text):
        """text -> int32 array of ids, (characters,).

        Raises DataError naming the unknown characters.
        """
        ids = self.id_of[code_points(text)]
        if (ids < 0).any():
            unknown = sorted(set(text) - set(self.chars))
            vocabulary = f"the {self.vocab_size} characters of this vocabulary"
            raise DataError(f"not among {vocabulary}: {name_chars(unknown)}")
        return ids

    def encode_document(self, text):
        """As encode; in other vocabularies, special tokens in the text of a document are text."""
        return self.encode(text)

    def encode_prompt(self, text):
        """The ids of the beginning of a text; other tokenizers may begin with a special token."""
        return self.encode(text)

    def decode_bytes(self, ids):
        return "".join(self.chars[i] for i in ids).encode()

    def spec(self):
        return {"kind": "char", "chars": self.chars}

    def to_json(self):
        """The content of a Hugging Face tokenizer.json.

        Raises DataError if the tokenizers package is missing.
        """
        return chars_to_json(self.chars)


class BPETokenizer:
    """Byte-level BPE run by tiktoken: GPT-2's own, or one trained here."""

    document_separator = END_OF_TEXT
    keeps_every_byte = True

    def __init__(self, encoding, spec, special=None):
        """`special`: the JSON of SpecialTokens, None for GPT-2's."""
        self.encoding = encoding
        self.vocab_size = encoding.n_vocab
        self._spec = spec if special is None else {**spec, "special": special}
        self.special = GPT2_SPECIAL if special is None else from_json(special)

    def encode(self, text):
        """text -> uint32 array of ids.

        Any text can be encoded; "<|endoftext|>" becomes one token.
        """
        return self.encoding.encode_to_numpy(text, allowed_special={END_OF_TEXT})

    def encode_document(self, text):
        """The same without a token for "<|endoftext|>", which no document can forge this way."""
        return self.encoding.encode_to_numpy(text, disallowed_special=())

    def encode_prompt(self, text):
        chunks = split_at_word_boundaries([text])  # tiktoken fails on a million spaces in a row
        return np.concatenate([self.encode(chunk) for chunk in chunks])

    def token_id(self, token):
        return self.encoding.encode_single_token(token)

    def decode_bytes(self, ids):
        return self.encoding.decode_bytes(list(ids))

    def spec(self):
        return self._spec

    def to_json(self):
        num_ranks = self.vocab_size - 1  # the last id is END_OF_TEXT
        return bpe_to_json([self.encoding.decode_single_token_bytes(i) for i in range(num_ranks)])


def code_points(text):
    """The Unicode code points of a text, a uint32 array (characters,)."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def name_chars(chars):
    """A list of characters for a message, as in "'ã' (U+00E3), '🦜' (U+1F99C)"."""
    names = [f"{c!r} (U+{ord(c):04X})" for c in chars[:MAX_NAMED_CHARS]]
    if len(chars) > MAX_NAMED_CHARS:
        names.append("...")
    return ", ".join(names)


def num_chars(token):
    """How many characters begin in a token's bytes; UTF-8 marks continuation bytes."""
    return sum(byte & 0xC0 != 0x80 for byte in token)


def decode(tokenizer, ids):
    """ids -> text; bytes that are not UTF-8, which a BPE model can produce, become U+FFFD."""
    return tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")


def encode_option(tokenizer, text, option):
    """The ids of the text given to `option`.

    Raises DataError naming the characters unknown to the model.
    """
    try:
        ids = tokenizer.encode_prompt(text)
    except DataError as error:
        known = getattr(tokenizer, "chars", "")
        problem = f"--{option} has characters that the model never saw in training: {error}"
        raise DataError(f"{problem}. It knows: {known!r}") from error
    if not len(ids):  # some Hugging Face tokenizers drop spaces
        raise DataError(f"--{option} has no tokens; give a longer text")
    return ids


def gpt2_tokenizer(special=None):
    """GPT-2's 50,257 tokens. They are downloaded once, into the folder TIKTOKEN_CACHE_DIR.

    Raises DataError.
    """
    folder = tiktoken_cache_dir()
    advice = (
        "It is downloaded once: connect to the network, set TIKTOKEN_CACHE_DIR "
        "to a folder that has it, or use --tokenizer=bpe, which needs no download"
    )
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, file in GPT2_FILES.items():
                download(folder / name, **file, advice=advice)
        return BPETokenizer(tiktoken.get_encoding("gpt2"), {"kind": "gpt2"}, special)
    except DataError as error:
        raise DataError(f"cannot get GPT-2's vocabulary: {error}") from error
    except OSError as error:
        raise DataError(
            f"cannot write GPT-2's vocabulary to {folder}: {error.strerror}. "
            "Set TIKTOKEN_CACHE_DIR to a folder of your own"
        ) from error
    except Exception as error:  # tiktoken's own
        raise DataError(
            f"cannot get GPT-2's vocabulary ({type(error).__name__}: {error}). {advice}"
        ) from error


def tiktoken_cache_dir():
    """Where tiktoken looks for its files; None if it is told to cache nothing."""
    default = Path(tempfile.gettempdir(), "data-gym-cache")
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR", default))
    return Path(folder) if folder != "" else None


def bpe_tokenizer(ranks, special=None):
    """A tokenizer from its tokens, bytes in merge order; END_OF_TEXT gets the last id.

    Raises ValueError.
    """
    every_byte = {bytes([byte]) for byte in range(256)}
    if len(set(ranks)) < len(ranks) or not every_byte <= set(ranks):
        raise ValueError("the ranks must contain every byte, and no token twice")
    encoding = tiktoken.Encoding(
        "bpe",
        pat_str=GPT2_PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(ranks)},
        special_tokens={END_OF_TEXT: len(ranks)},
    )
    return BPETokenizer(encoding, bpe_spec(ranks), special)


def train_bpe(texts, vocab_size):
    """Train byte-level BPE of at most `vocab_size` tokens on an iterable of texts.

    Raises DataError if the rustbpe package is missing.
    """
    try:
        import rustbpe
    except ImportError:
        raise DataError(
            "--tokenizer=bpe needs the package rustbpe: python -m pip install rustbpe==0.1.0"
        ) from None
    documents = (document for text in texts for document in text.split(END_OF_TEXT))
    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(
        documents, vocab_size=vocab_size - 1, buffer_size=BPE_BATCH, pattern=GPT2_PATTERN
    )
    by_rank = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    return bpe_tokenizer([bytes(token) for token, _ in by_rank])


def load_tokenizer(spec, source="tokenizer"):
    """The tokenizer that a spec() describes.

    Raises DataError, naming `source`, for an invalid spec.
    """
    try:
        if spec["kind"] == "gpt2":
            return gpt2_tokenizer(spec.get("special"))
        if spec["kind"] == "char":
            return char_tokenizer(spec["chars"])
        if spec["kind"] == "bpe":
            ranks = [base64.b64decode(token, validate=True) for token in spec["ranks"]]
            return bpe_tokenizer(ranks, spec.get("special"))
        if spec["kind"] == "huggingface":
            return HuggingFaceTokenizer(spec["json"], spec.get("special"))
        raise ValueError(spec["kind"])
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{source}: not a valid tokenizer spec: {one_line(error)}") from error


def same_vocabulary(spec, other):
    """Whether two specs give the same ids to the same text; special tokens beside it may differ."""
    ignored = {"special": None}
    return {**spec, **ignored} == {**other, **ignored}


def char_tokenizer(chars):
    if not isinstance(chars, str) or not chars or len(set(chars)) < len(chars):
        raise ValueError("chars must be a text of at least one character, without repetitions")
    return CharTokenizer(chars)


def read_spec(path):
    """The tokenizer spec of a meta.json or tokenizer.json, or of a folder with one of them.

    Raises DataError.
    """
    path = Path(path)
    if path.is_dir():
        candidates = [path / name for name in ("meta.json", "tokenizer.json")]
        path = next(filter(Path.is_file, candidates), path)
    try:
        text = read_text(path)
        content = json.loads(text)
        if "model" in content:
            return spec_from_json(text, path.parent)
        return content["tokenizer"]
    except DataError as error:
        raise DataError(f"cannot read the tokenizer of {path}: {error}") from error
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise DataError(
            f"cannot read the tokenizer of {path}: {reason}. Give "
            "a meta.json, a tokenizer.json or a folder with one"
        ) from error
