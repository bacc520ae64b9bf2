"""Text files: found, decoded, joined and split, in chunks and never as a whole."""

import codecs
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Annotated

from seugpt.data.records import FORMATS, read_records
from seugpt.errors import DataError

FieldOption = Annotated[
    str | None, "read this field of each record of .jsonl, .csv or .parquet files", "not empty"
]
KeepCrlfOption = Annotated[bool, "keep the line ends of Windows; else they become LF"]
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


def utf16_codec(head):
    """The UTF-16 codec of bytes in which every second one is mostly zero, as of Latin letters."""
    for codec, zeros in (("utf-16le", head[1::2]), ("utf-16be", head[0::2])):
        if len(head) >= 4 and zeros.count(0) > len(zeros) / 2:
            return codec
    return None


def read_head(path):
    with open(path, "rb") as file:
        return file.read(CHUNK_BYTES)


def encoding_advice(path):
    """What to do with a file that is not UTF-8."""
    head = read_head(path)
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return f"It is UTF-16: iconv -f utf-16 -t utf-8 '{path}' > new.txt"
    codec = utf16_codec(head)
    if codec:
        return f"It looks like UTF-16: iconv -f {codec} -t utf-8 '{path}' > new.txt"
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
    characters, if asked for; `notes` say what is unusual about the files.
    """

    def __init__(self, files, separator, with_alphabet=False, field=None, keep_crlf=False):
        """Reads everything once.

        `field`: of the files' records, which are then joined by the separator; `keep_crlf`: leaves
        the line ends of Windows, which become "\\n" else.
        """
        self.files = files
        self.separator = separator
        self.field = field
        self.keep_crlf = keep_crlf
        self.num_chars = 0
        self.alphabet = set()
        self.sha256 = None
        self.num_zeros = 0
        for chunk in self.all_chunks():
            self.num_chars += len(chunk)
            self.num_zeros += chunk.count("\0")
            if with_alphabet:
                self.alphabet.update(chunk)
        self.notes = self.describe_oddities()

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
        self.num_crlf = 0
        for number, path in enumerate(self.files):
            if number:
                yield self.separator
            if self.field is None:
                yield from self.unix_lines(read_chunks(path, sha256.update))
            else:
                yield from self.unix_lines(self.joined_records(path, sha256.update))
        if self.sha256 not in (None, sha256.hexdigest()):
            names = str(self.files[0]) if len(self.files) == 1 else "a file of the text"
            raise DataError(f"{names} changed while it was read. Run the same command again")
        self.sha256 = sha256.hexdigest()

    def joined_records(self, path, on_bytes):
        """The field of a file's records, with a separator between them, in chunks."""
        parts = []
        size = 0
        for number, text in enumerate(read_records(path, self.field, on_bytes)):
            parts.append(self.separator + text if number else text)
            size += len(parts[-1])
            if size > CHUNK_BYTES:
                yield "".join(parts)
                parts = []
                size = 0
        yield "".join(parts)

    def unix_lines(self, chunks):
        """The same text with "\\n" for "\\r\\n", which may be cut apart by two chunks."""
        rest = ""
        for chunk in chunks:
            text = rest + chunk
            rest = "\r" if text.endswith("\r") else ""
            text = text.removesuffix("\r")
            self.num_crlf += text.count("\r\n")
            yield text if self.keep_crlf else text.replace("\r\n", "\n")
        yield rest

    def describe_oddities(self):
        """Notes on what a text seldom has on purpose."""
        notes = []
        if self.num_crlf and not self.keep_crlf:
            notes.append(
                f"{self.num_crlf:,} Windows line ends (CRLF) became LF; --keep_crlf=True keeps them"
            )
        if self.num_zeros:
            notes.append(f"{self.num_zeros:,} zero bytes in {self.first_with_zeros()}")
        records = [file for file in self.files if file.suffix.lower() in FORMATS]
        if records and self.field is None:
            notes.append(
                f"{records[0]} was read as plain text; --field=text would read one field of each "
                "of its records"
            )
        return notes

    def first_with_zeros(self):
        """The first file with a zero byte, and what it probably is."""
        for path in self.files:
            head = read_head(path)
            codec = utf16_codec(head)
            if codec:
                convert = f"iconv -f {codec} -t utf-8 '{path}' > new.txt"
                return f"{path}, which looks like UTF-16 without a byte order mark: {convert}"
            if b"\0" in head:
                return f"{path}; they are characters of the text now"
        return "the text"


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
