"""The built-in corpora: where each text comes from."""

import re
from dataclasses import dataclass

from seugpt.data.download import download
from seugpt.errors import DataError
from seugpt.files import atomic_write


@dataclass(frozen=True)
class Corpus:
    tokenizer: str
    url: str | None = None  # None: generated on this machine
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


def download_corpus(name, path):
    """Put the text of corpus `name` into the file `path`, unless it is already there.

    Raises DataError.
    """
    corpus = CORPORA[name]
    if corpus.url is None:
        with atomic_write(path) as temporary:
            temporary.write_text(python_docs(), encoding="utf-8", newline="")
        return
    advice = f"Get that file another way and prepare it with: python prepare.py {name} --input=FILE"
    download(path, corpus.url, corpus.sha256, corpus.size, advice)


def python_docs():
    """The topics of Python's help(): some 430,000 characters, different in each Python version.

    Tables are left out: a small model would rather draw their borders than write words. Raises
    DataError.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            f"this Python was installed without its help texts ({error}); use a text of your own: "
            "python prepare.py NAME --input=FILE"
        ) from error
    lines = "\n\n".join(topics[name] for name in sorted(topics)).splitlines(keepends=True)
    return "".join(line for line in lines if not re.fullmatch(r"\s*(\+[-=+]+\+|\|.*\|)\s*", line))
