"""The built-in corpora: where each text comes from, and how it gets here whole."""

import re
from dataclasses import dataclass

from seugpt.data.download import download
from seugpt.errors import DataError
from seugpt.files import replacing


@dataclass(frozen=True)
class Corpus:
    tokenizer: str
    url: str | None = None  # None: made on this machine
    sha256: str | None = None
    size: int | None = None  # bytes


SHAKESPEARE = {
    "url": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "sha256": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "size": 1_115_394,
}
CORPORA = {
    "python_docs": Corpus("char"),
    "shakespeare_char": Corpus("char", **SHAKESPEARE),
    "shakespeare": Corpus("gpt2", **SHAKESPEARE),
    "machado_char": Corpus(
        "char",
        url="https://raw.githubusercontent.com/wmelo52/GPTLab/master/corpus/machado_de_assis_conto.txt",
        sha256="f7eaaccb575b68bdd7995bd688a4c52deb7f611678a429ec9ffcf2a2b4940720",
        size=1_779_401,
    ),
}


def obtain(name, path):
    """Put the text of corpus `name` into the file `path`, unless a good copy is there. Raises DataError."""
    corpus = CORPORA[name]
    if corpus.url is None:
        with replacing(path) as temporary:
            temporary.write_text(python_docs(), encoding="utf-8", newline="")
    else:
        advice = (
            f"Get that file another way and prepare it with: python prepare.py {name} --input=FILE"
        )
        download(path, advice, corpus.url, corpus.sha256, corpus.size)


def python_docs():
    """The topics of help() without their tables: some 430,000 characters of English on Python, and of Python.

    Each version of Python has its own text. The tables are left out: a small model would rather draw boxes than write.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            f"this Python comes without its help texts ({error}); use a text of your own"
        ) from error
    lines = "\n\n".join(topics[name] for name in sorted(topics)).splitlines(keepends=True)
    return "".join(line for line in lines if not re.fullmatch(r"\s*(\+[-=+]+\+|\|.*\|)\s*", line))
