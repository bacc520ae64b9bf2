"""Text files: found, decoded, joined and split, in chunks and never as a whole."""

import codecs
import hashlib
import os
import re
import stat
from pathlib import Path

from seugpt.errors import DataError

CHUNK_BYTES = 1 << 20  # read at a time
# All but tab and newline; a terminal obeys them, and grep takes a file with a zero byte for binary.
CONTROL_CHARS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
CHUNK_CHARS = 100_000  # encoded at a time: tiktoken and rustbpe fail on a million spaces in a row


def find_files(path):
    """`path` itself if it is a file; of a folder all files in it and below, except hidden ones.

    Raises DataError for anything that cannot be read: no part of a text is silently left out.
    """
    files = [Path(path)]
    if files[0].is_dir():
        files = []
        for folder, subfolders, names in os.walk(path, onerror=raise_unreadable):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            for link in filter(os.path.islink, (os.path.join(folder, name) for name in subfolders)):
                raise DataError(
                    f"{link} is a link to a folder, which is not followed. "
                    "Move the folder there, or remove the link"
                )
            files += [Path(folder, name) for name in names if not name.startswith(".")]
        if not files:
            raise DataError(f"the folder {path} contains no files")
    for file in files:
        try:
            mode = file.stat().st_mode
        except OSError as error:
            raise_unreadable(error)
        if not stat.S_ISREG(mode):
            reason = "is not a regular file, but the text must be read several times"
            raise DataError(f"{file} {reason}. Save it to a file first")
    return sorted(files)


def raise_unreadable(error):
    raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def encoding_advice(path):
    """What to do with a file that is not UTF-8."""
    with open(path, "rb") as file:
        head = file.read(CHUNK_BYTES)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return f"It is UTF-16: iconv -f utf-16 -t utf-8 '{path}' > new.txt"
    if b"\0" in head:
        return "It contains zero bytes, so it is probably not text: take it out of the input"
    return (
        "If it is Latin-1, as old Portuguese texts often are: "
        f"iconv -f latin1 -t utf-8 '{path}' > new.txt"
    )


def read_chunks(path, on_bytes):
    """A file's text in chunks, decoded as UTF-8; a byte order mark is dropped, line ends are kept.

    `on_bytes` sees each chunk of raw bytes. Raises DataError with the offset of the first byte that
    is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                on_bytes(chunk)
                if offset == 0 and chunk.startswith(codecs.BOM_UTF8):
                    offset = len(codecs.BOM_UTF8)
                    chunk = chunk[offset:]
                pending = len(decoder.getstate()[0])  # bytes of a character cut off by the chunk
                yield decoder.decode(chunk)
                offset += len(chunk)
            pending = len(decoder.getstate()[0])
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        position = offset - pending + error.start
        byte = error.object[error.start]
        problem = f"{path} is not UTF-8 (byte {byte:#04x} at offset {position:,})"
        raise DataError(f"{problem}. {encoding_advice(path)}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


class Text:
    """The text of several files with a separator between them, read in chunks any number of times.

    `num_chars` is its length, `sha256` a checksum of the files' bytes, `alphabet` the set of its
    characters, if asked for.
    """

    def __init__(self, files, separator, with_alphabet=False):
        """Reads everything once."""
        self.files = files
        self.separator = separator
        self.num_chars = 0
        self.alphabet = set()
        self.sha256 = None
        for chunk in self.all_chunks():
            self.num_chars += len(chunk)
            if with_alphabet:
                self.alphabet.update(chunk)

    def chunks(self, start=0, stop=None):
        """The characters from `start` to `stop` (None: the end), in chunks of about a megabyte."""
        position = 0
        for chunk in self.all_chunks():
            first = max(start - position, 0)
            last = None if stop is None else max(stop - position, 0)
            if chunk[first:last]:
                yield chunk[first:last]
            position += len(chunk)

    def all_chunks(self):
        """The whole text. Raises DataError at its end if it is not what was read at first."""
        sha256 = hashlib.sha256()
        for number, path in enumerate(self.files):
            if number:
                yield self.separator
            yield from read_chunks(path, sha256.update)
        if self.sha256 not in (None, sha256.hexdigest()):
            names = str(self.files[0]) if len(self.files) == 1 else "a file of the text"
            raise DataError(f"{names} changed while it was read. Run the same command again")
        self.sha256 = sha256.hexdigest()


def escape_control_chars(text):
    """A model's text as it can be shown: ESC as \\x1b, and so on."""
    return CONTROL_CHARS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def split_at_word_boundaries(chunks):
    """The same text in chunks of at most CHUNK_CHARS characters that can be encoded separately.

    A chunk ends where a word ends for GPT-2 and Llama alike: a space or newline after a letter or
    digit always begins a new one. A longer stretch without such a place is split anyway.
    """
    rest = ""
    for chunk in chunks:
        text = rest + chunk
        start = 0
        while len(text) - start > CHUNK_CHARS:
            end = word_boundary(text, start, start + CHUNK_CHARS)
            yield text[start:end]
            start = end
        rest = text[start:]
    if rest:
        yield rest


def word_boundary(text, start, end):
    """The last word boundary of text[start:end], or `end` if there is none."""
    for position in range(end, start, -1):
        if text[position] in " \n" and text[position - 1].isalnum():
            return position
    return end
