"""What visualize.py draws. Here is what all pictures share: their style, how tokens are written, how a file is made."""

import contextlib
import functools
import unicodedata
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from seugpt.errors import ConfigError
from seugpt.files import replacing

# Okabe and Ito's colours, which people tell apart however they see (jfly.uni-koeln.de/color).
BLUE, RED, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
SKY, ORANGE, BLACK, GREY, INDIGO = (
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#8c8c8c",
    "#332288",
)  # the last is Paul Tol's

STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "text.parse_math": False,  # a token may be a dollar sign
    "svg.hashsalt": "seuGPT",  # the same picture is the same file
}
WHITE_SPACE = {" ": "␣", "\n": "↵", "\t": "⇥"}


@contextlib.contextmanager
def picture(path, width, height, show=False):
    """A figure of so many inches to draw on, which is then written to `path` and, if wanted, shown in a window."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix.lower().removeprefix("."))
        if show:
            show_window(figure, path)


def show_window(figure, path):
    """Raises ConfigError where there is no screen."""
    import matplotlib.pyplot as plt  # only here: it may want a display

    plt.figure(figure)
    if matplotlib.get_backend().lower() not in map(str.lower, matplotlib.backends.backend_registry.list_builtin(
        matplotlib.backends.BackendFilter.INTERACTIVE
    )):  # fmt: skip
        raise ConfigError(
            f"show=True needs a screen, and there is none here; the picture is in {path}"
        )
    plt.show()


@functools.cache
def known(character):
    """Whether the font has the character; what it has not would be drawn as an empty box."""
    return get_font(findfont("DejaVu Sans")).get_char_index(ord(character)) != 0


def label(token):
    """A token's bytes as a text that can be read on a picture: blanks and line ends as signs, other bytes in hex."""
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return " ".join(f"{byte:02x}" for byte in token)
    return "".join(
        WHITE_SPACE.get(c) or (c if c.isprintable() and known(c) else f"U+{ord(c):04X}")
        for c in text
    )


def shortened(text, longest):
    return text if len(text) <= longest else text[: longest - 1] + "…"


def labels(tokenizer, ids, longest):
    """The labels of tokens, none longer than so many letters."""
    return [shortened(label(tokenizer.decode_bytes([i])), longest) for i in ids.tolist()]


def quoted(labels, longest=50, end=False):
    """The beginning or the end of a text, of its tokens' labels, for a title."""
    text = "".join(labels).replace(WHITE_SPACE[" "], " ")
    return f"“{shortened(text[::-1], longest)[::-1] if end else shortened(text, longest)}”"


# What a token is, with the colour of its kind. Words and their pieces are BPE's, the rest single characters.
KINDS = {
    "vowel": RED,
    "consonant": BLUE,
    "capital": PURPLE,
    "digit": GREEN,
    "punctuation": ORANGE,
    "white space": BLACK,
    "beginning of a word": SKY,
    "inside of a word": INDIGO,
    "other letter": SKY,
    "part of a character": GREY,
}


def kind_of(token):
    """The kind of a token's bytes, a key of KINDS."""
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return "part of a character"
    if not text or text.isspace():
        return "white space"
    word = text.strip()
    if word.isdigit():
        return "digit"
    if not word[0].isalpha():
        return "punctuation"
    if len(text) > 1:
        return "beginning of a word" if text[0].isspace() else "inside of a word"
    if word.isupper():
        return "capital"
    base = unicodedata.normalize("NFD", word)[0]  # without its accent
    return "vowel" if base in "aeiou" else "consonant" if base.isascii() else "other letter"
