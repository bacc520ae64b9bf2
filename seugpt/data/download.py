"""Download a file: complete and with the expected checksum, or not at all."""

import contextlib
import hashlib
import http.client
import socket
import ssl
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from seugpt.errors import DataError
from seugpt.files import atomic_write

TIMEOUT = 30  # seconds without a response or a byte
ATTEMPTS = 4  # with pauses of 1, 2 and 4 seconds
CHUNK_BYTES = 1 << 16


class TransferError(Exception):
    """A failed attempt; `permanent` if a retry would fail in the same way."""

    def __init__(self, reason, permanent=False):
        super().__init__(reason)
        self.permanent = permanent


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(path, url, sha256, size, advice):
    """Download `url` to `path`, unless the file is already there with this checksum.

    `size` is in bytes. Raises DataError ending in `advice` if the network is at fault, and OSError
    if the disk is.
    """
    if path.exists() and file_sha256(path) == sha256:
        return
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2 ** (attempt - 1))
        try:
            with atomic_write(path) as temporary:
                fetch(temporary, url, size)
                found = file_sha256(temporary)
                if found != sha256:
                    raise TransferError(f"received a file with sha256 {found}, expected {sha256}")
            return
        except TransferError as error:
            reason = error
            if error.permanent:
                break
    raise DataError(f"cannot download {url} ({reason}). {advice}")


def fetch(path, url, size):
    """One attempt. Raises TransferError, also if more or fewer than `size` bytes arrive."""
    bar = tqdm(desc="download", total=size, unit="B", unit_scale=True, leave=False, disable=None)
    with open(path, "wb") as file, bar:
        for chunk in response_chunks(url):
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > size:  # another page, possibly an endless one
                raise TransferError(f"received more than {size:,} bytes")
        if file.tell() < size:
            raise TransferError(f"received {file.tell():,} of {size:,} bytes")


def response_chunks(url):
    """The bytes of a response, in chunks. urllib honours https_proxy and the like.

    Raises TransferError.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT, context=tls_context()) as response:
            while chunk := response.read(CHUNK_BYTES):
                yield chunk
    except urllib.error.HTTPError as error:
        retriable = error.code >= 500 or error.code in (408, 429)
        raise TransferError(error, permanent=not retriable) from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        # Without a network the host name does not resolve, and a retry would not help.
        no_network = isinstance(getattr(error, "reason", None), socket.gaierror)
        raise TransferError(error, permanent=no_network) from error


def tls_context():
    """The system's certificates and certifi's (tiktoken needs it): Python for macOS has none."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
