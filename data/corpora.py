"""The built-in corpora: where each text comes from, and how it gets here whole."""

import contextlib
import hashlib
import http.client
import re
import socket
import ssl
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
    else:
        advice = f"Get that file another way and prepare it with: python prepare.py {name} --input=FILE"
        download(path, advice, corpus.url, corpus.sha256, corpus.size)


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


class TransferError(Exception):
    """What went wrong between the server and here. final: it would go no better the next time."""

    def __init__(self, reason, final=False):
        super().__init__(reason)
        self.final = final


def download(path, advice, url, sha256, size):
    """Put the file at `url` into `path`, unless it is there: whole, and with this checksum, or not at all.

    Raises DataError that ends in `advice` where the network is to blame, and OSError where the disk is.
    """
    if path.exists() and file_sha256(path) == sha256:
        return
    for attempt in range(ATTEMPTS):
        time.sleep(2 ** (attempt - 1) if attempt else 0)
        try:
            with replacing(path) as temporary:
                fetch(temporary, url, size)
                if (found := file_sha256(temporary)) != sha256:
                    raise TransferError(f"the sha256 of what arrived is {found}, not {sha256}")
            return
        except TransferError as error:
            reason = error
            if error.final:
                break
    raise DataError(f"cannot download {url} ({reason}). {advice}")


def fetch(path, url, size):
    """One attempt. Raises TransferError, also where more or fewer than `size` bytes come."""
    with (
        open(path, "wb") as file,
        tqdm(total=size, unit="B", unit_scale=True, desc="download", leave=False, disable=None) as bar,
    ):
        for chunk in received(url):
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > size:  # some other page, and perhaps one without an end
                raise TransferError(f"more than {size:,} bytes arrived")
        if file.tell() < size:
            raise TransferError(f"{file.tell():,} of {size:,} bytes arrived")


def received(url):
    """The bytes that a server sends, in pieces; urllib heeds https_proxy and its like. Raises TransferError."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT, context=certificates()) as response:
            while chunk := response.read(1 << 16):
                yield chunk
    except urllib.error.HTTPError as error:
        raise TransferError(error, final=error.code < 500 and error.code not in (408, 429)) from error  # a 404 stays
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        # Without a network no name has an address, and nobody wants to wait for that to be tried four times.
        raise TransferError(error, final=isinstance(getattr(error, "reason", None), socket.gaierror)) from error


def certificates():
    """Those of the system, and certifi's, which tiktoken brings along: Python for macOS comes without any."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
