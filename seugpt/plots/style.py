"""What all plots share: their style, how tokens are written, how a figure is saved."""

import contextlib
import functools
import unicodedata
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import ScalarFormatter

from seugpt.errors import ConfigError
from seugpt.files import atomic_write
from seugpt.plots.language import ENGLISH
from seugpt.plots.token_text import WHITE_SPACE, readable_char, readable_token, shorten

# Okabe and Ito's palette, distinguishable with any colour vision; indigo is Paul Tol's.
# https://jfly.uni-koeln.de/color
BLACK = "#000000"
BLUE = "#0072b2"
GREEN = "#009e73"
GREY = "#8c8c8c"
INDIGO = "#332288"
ORANGE = "#e69f00"
PURPLE = "#cc79a7"
RED = "#d55e00"
SKY = "#56b4e9"

STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "text.parse_math": False,  # a token may be a dollar sign
    "svg.hashsalt": "seuGPT",  # the same plot is the same file
}
MINUS = "\N{MINUS SIGN}"

# The class of a token and its colour. Words and their parts are BPE's, the others characters.
TOKEN_CLASSES = {
    "vowels": RED,
    "consonants": BLUE,
    "capitals": PURPLE,
    "digits": GREEN,
    "punctuation": ORANGE,
    "white space": BLACK,
    "starts of words": SKY,
    "insides of words": INDIGO,
    "other letters": SKY,
    "parts of characters": GREY,
}


class TickFormatter(ScalarFormatter):
    """Matplotlib's choice of digits, with the separators of a language."""

    def __init__(self, language):
        super().__init__()
        self.language = language

    def __call__(self, x, pos=None):
        text = super().__call__(x, pos)
        if not self.get_offset():  # not a factor such as 1e9 beside the axis
            digits = len(text.partition(".")[2])
            text = self.fix_minus(f"{float(text.replace(MINUS, '-')):,.{digits}f}")
        return self.language.number(text)


def format_ticks(figure, language):
    """Write the numbers on all axes as the language does, but for those with a format of theirs."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if type(axis.get_major_formatter()) is ScalarFormatter:
                axis.set_major_formatter(TickFormatter(language))


@contextlib.contextmanager
def saved_figure(path, width, height, show=False, language=ENGLISH):
    """A figure of `width` x `height` inches to draw on; it is then saved to `path`, and shown.

    `language`: of the numbers on the axes.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        format_ticks(figure, language)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format=Path(path).suffix.lower().removeprefix("."))
        if show:
            show_window(figure, path)


def show_window(figure, path):
    """Raises ConfigError if there is no screen."""
    import matplotlib.pyplot as plt  # only here: it may want a display
    from matplotlib.backends import BackendFilter, backend_registry

    plt.figure(figure)
    interactive = map(str.lower, backend_registry.list_builtin(BackendFilter.INTERACTIVE))
    if matplotlib.get_backend().lower() not in interactive:
        raise ConfigError(f"show=True needs a screen, and there is none; the plot is in {path}")
    plt.show()


@functools.cache
def has_glyph(character):
    """Whether the font has the character; otherwise it would be drawn as an empty box."""
    return get_font(findfont("DejaVu Sans")).get_char_index(ord(character)) != 0


def token_label(token):
    """A token's bytes as readable text, in which nothing is an empty box."""
    return readable_token(token, can_draw)


def char_label(char):
    return readable_char(char, can_draw)


def can_draw(character):
    return character.isprintable() and has_glyph(character)


def token_labels(tokenizer, ids, max_chars):
    """The labels of tokens, each of at most `max_chars` characters."""
    return [shorten(token_label(tokenizer.decode_bytes([i])), max_chars) for i in ids.tolist()]


def quote(labels, max_chars=50, from_end=False):
    """The beginning or the end of a text, from its tokens' labels, for a title."""
    text = "".join(labels).replace(WHITE_SPACE[" "], " ")
    if from_end:
        return f"“{shorten(text[::-1], max_chars)[::-1]}”"
    return f"“{shorten(text, max_chars)}”"


def token_class(token):
    """The class of a token's bytes, a key of TOKEN_CLASSES."""
    try:
        text = token.decode("utf-8")
    except UnicodeDecodeError:
        return "parts of characters"
    word = text.strip()
    if not word:
        return "white space"
    if word.isdigit():
        return "digits"
    if not word[0].isalpha():
        return "punctuation"
    if len(text) > 1:
        return "starts of words" if text[0].isspace() else "insides of words"
    if word.isupper():
        return "capitals"
    base = unicodedata.normalize("NFD", word)[0]  # without its accent
    if base in "aeiou":
        return "vowels"
    return "consonants" if base.isascii() else "other letters"
