"""Text from files: found, decoded, joined and cut, in pieces and never as a whole."""

import codecs
import hashlib
import os
import stat
from pathlib import Path

from seugpt.cli.values import in_utf8
from seugpt.errors import DataError

PIECE = 1 << 20  # bytes read at a time
LONGEST = 100_000  # characters encoded at a time: tiktoken and rustbpe give up on a million blanks in a row


def is_utf8(text):
    """Whether a text from the command line has no bytes that the locale could not decode, lone surrogates in Python."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def given_text(value, option):
    """The text that an option was given, or the text of the file that FILE:path names there. Raises DataError."""
    if not value.startswith("FILE:"):
        text = in_utf8(value)
        if not is_utf8(text):
            raise DataError(
                f"the {option} is not UTF-8; write it into a file and use --{option}=FILE:path"
            )
        return text
    path = Path(value.removeprefix("FILE:"))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (offset {error.start:,})") from error
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        raise DataError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not text:
        raise DataError(f"{path} is empty; a model needs at least one character to go on from")
    return text


def find_files(path):
    """The file itself, or every file in the folder and below in name order, hidden ones left out.

    Raises DataError, also for what cannot be read: no part of a text is left out in silence.
    """
    files = [Path(path)]
    if files[0].is_dir():
        files = []
        for folder, subfolders, names in os.walk(path, onerror=refuse):
            subfolders[:] = [
                name for name in subfolders if not name.startswith(".")
            ]  # os.walk goes into these
            files += [Path(folder, name) for name in names if not name.startswith(".")]
        if not files:
            raise DataError(f"the folder {path} has no files")
    for file in files:
        try:
            regular = stat.S_ISREG(file.stat().st_mode)
        except OSError as error:
            refuse(error)
        if not regular:
            raise DataError(
                f"{file} is no regular file, and a text is read several times. Save it to a file first"
            )
    return sorted(files)


def refuse(error):
    raise DataError(f"cannot read {error.filename}: {error.strerror}") from error


def advice_on(path):
    """What to do with a file that is not UTF-8."""
    with open(path, "rb") as file:
        head = file.read(PIECE)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return f"It is UTF-16: iconv -f utf-16 -t utf-8 '{path}' > new.txt"
    if b"\0" in head:
        return "It has zero bytes, so it is probably no text at all: take it out of the input"
    return f"If it is Latin-1, as old Portuguese texts often are: iconv -f latin1 -t utf-8 '{path}' > new.txt"


def read_file(path, on_bytes=lambda piece: None):
    """A file's text in pieces, decoded as UTF-8 with its line ends untouched and a leading byte order mark left out.

    on_bytes sees each piece of the raw file. Raises DataError with the offset of the first byte that is no UTF-8.
    """
    decoder, offset = codecs.getincrementaldecoder("utf-8-sig")(), 0
    try:
        with open(path, "rb") as file:
            while piece := file.read(PIECE):
                on_bytes(piece)
                pending = len(decoder.getstate()[0])  # an unfinished character of the piece before
                yield decoder.decode(piece)
                offset += len(piece)
            pending = len(decoder.getstate()[0])
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        at = offset - pending + error.start
        raise DataError(
            f"{path} is not UTF-8 (byte {error.object[error.start]:#04x} at offset {at:,}). {advice_on(path)}"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


class Text:
    """The text of some files with a separator between them; it can be read any number of times, in pieces."""

    def __init__(self, files, separator, alphabet=False):
        """Reads everything once: counts characters, makes the checksum of the bytes and, if wanted, the alphabet."""
        self.files, self.separator = files, separator
        sha256 = hashlib.sha256()
        self.characters, self.alphabet = 0, set()
        for piece in self.pieces(on_bytes=sha256.update):
            self.characters += len(piece)
            if alphabet:
                self.alphabet.update(piece)
        self.sha256 = sha256.hexdigest()

    def pieces(self, start=0, stop=None, on_bytes=lambda piece: None):
        """The characters from start to stop (None: the end), in pieces of about a megabyte."""
        position = 0
        for piece in self.joined(on_bytes):
            part = piece[
                max(start - position, 0) : None if stop is None else max(stop - position, 0)
            ]
            if part:
                yield part
            position += len(piece)

    def joined(self, on_bytes):
        for number, path in enumerate(self.files):
            if number:
                yield self.separator
            yield from read_file(path, on_bytes)


def cut_between_words(pieces):
    """The same text in pieces of at most LONGEST characters, each of which can be encoded by itself.

    They end where a word ends, for GPT-2 and Llama alike: a blank or newline after a letter or digit always begins a
    new one. What is longer without any is cut in two.
    """
    rest = ""
    for piece in pieces:
        text, start = rest + piece, 0
        while len(text) - start > LONGEST:
            cut = start + LONGEST
            while cut > start and not (text[cut] in " \n" and text[cut - 1].isalnum()):
                cut -= 1
            cut = cut if cut > start else start + LONGEST
            yield text[start:cut]
            start = cut
        rest = text[start:]
    if rest:
        yield rest
