"""The built-in corpora: where each text comes from."""

import re
from dataclasses import dataclass

from seugpt.data.download import download
from seugpt.errors import DataError
from seugpt.files import atomic_write


@dataclass(frozen=True)
class HubFiles:
    """The .parquet files of a data set on the Hugging Face hub, with a column `text`."""

    repository: str
    revision: str  # a commit: what is prepared today is the same tomorrow
    train: tuple[str, ...]
    val: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    tokenizer: str
    url: str | None = None  # None: generated on this machine, or on the hub
    sha256: str | None = None
    size: int | None = None  # bytes
    hub: HubFiles | None = None


SHAKESPEARE = {
    "url": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "sha256": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "size": 1_115_394,
}
TINYSTORIES = HubFiles(
    "roneneldan/TinyStories",
    "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64",
    train=(
        "data/train-00000-of-00004-2d5a1467fff1081b.parquet",
        "data/train-00001-of-00004-5852b56a2bd28fd9.parquet",
        "data/train-00002-of-00004-a26307300439e943.parquet",
        "data/train-00003-of-00004-d243063613e5a057.parquet",
    ),
    val=("data/validation-00000-of-00001-869c898b519ad725.parquet",),
)
OPENWEBTEXT = HubFiles(
    "Skylion007/openwebtext",
    "79d93d786212f7344586290adb811d4ae6a1762c",
    train=tuple(f"plain_text/train-{n:05d}-of-00080.parquet" for n in range(79)),
    val=("plain_text/train-00079-of-00080.parquet",),
)
FINEWEB_EDU = HubFiles(  # the sample of 10 billion tokens
    "HuggingFaceFW/fineweb-edu",
    "87f09149ef4734204d70ed1d046ddc9ca3f2b8f9",
    train=tuple(f"sample/10BT/{n:03d}_00000.parquet" for n in range(13)),
    val=("sample/10BT/013_00000.parquet",),
)
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
    "tinystories": Corpus("gpt2", hub=TINYSTORIES),
    "openwebtext": Corpus("gpt2", hub=OPENWEBTEXT),
    "fineweb_edu": Corpus("gpt2", hub=FINEWEB_EDU),
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
