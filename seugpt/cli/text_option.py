"""Options whose value is a text, or FILE:path for the content of a file."""

from pathlib import Path

from seugpt.cli.values import decode_argument
from seugpt.errors import DataError
from seugpt.files import check_regular


def is_utf8(text):
    """Whether command-line text was decoded completely; Python turns other bytes to surrogates."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_text_option(value, option):
    """The text given to an option, or the content of the file if it is FILE:path.

    Raises DataError.
    """
    if not value.startswith("FILE:"):
        text = decode_argument(value)
        if not is_utf8(text):
            raise DataError(
                f"--{option} is not UTF-8; write the text to a file and use --{option}=FILE:path"
            )
        return text
    path = Path(value.removeprefix("FILE:"))
    try:
        check_regular(path)
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (offset {error.start:,})") from error
    except (OSError, ValueError) as error:  # ValueError: not a possible file name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {path}: {reason}") from error
    if not text:
        raise DataError(f"{path} is empty; --{option} needs at least one character")
    return text
