"""The built-in corpora: where each text comes from, and how it gets here whole."""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from tqdm import tqdm

from data import DataError, replacing

TIMEOUT = 30  # seconds without an answer or a byte
ATTEMPTS = 4  # with 1, 2 and 4 seconds between them


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
    elif not (path.exists() and file_sha256(path) == corpus.sha256):
        download(corpus, path, f"python prepare.py {name} --input=FILE")


def python_docs():
    """The topics of help() without their tables: some 430,000 characters of English on Python, and of Python.

    Each version of Python has its own text. The tables are left out: a small model would rather draw boxes than write.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(f"this Python comes without its help texts ({error}); use a text of your own") from error
    lines = "\n\n".join(topics[name] for name in sorted(topics)).splitlines(keepends=True)
    return "".join(line for line in lines if not re.fullmatch(r"\s*(\+[-=+]+\+|\|.*\|)\s*", line))


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(corpus, path, alternative):
    """Fetch, compare the checksum, and only then give the file its name. urllib heeds https_proxy and its like."""
    for attempt in range(ATTEMPTS):
        time.sleep(2 ** (attempt - 1) if attempt else 0)
        try:
            with replacing(path) as temporary:
                fetch(corpus, temporary)
                if (found := file_sha256(temporary)) != corpus.sha256:
                    raise DataError(f"the sha256 of what arrived is {found}, not {corpus.sha256}")
            return
        except (OSError, http.client.HTTPException, DataError) as error:  # URLError and timeouts are OSErrors
            reason = error
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in (408, 429):
                break  # a 404 stays one
    raise DataError(
        f"cannot download {corpus.url} ({reason}). Get that file another way and prepare it with: {alternative}"
    )


def fetch(corpus, path):
    """One attempt. Raises OSError, HTTPException, or DataError when fewer bytes came than promised."""
    with urllib.request.urlopen(corpus.url, timeout=TIMEOUT) as response, open(path, "wb") as file:
        total = int(response.headers.get("Content-Length") or corpus.size)
        with tqdm(total=total, unit="B", unit_scale=True, desc="download", leave=False, disable=None) as bar:
            while chunk := response.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
        if file.tell() != total:
            raise DataError(f"{file.tell():,} of {total:,} bytes arrived")
