"""A file from a server: whole, with the right checksum, or not at all."""

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
from seugpt.files import replacing

TIMEOUT = 30  # seconds without an answer or a byte
ATTEMPTS = 4  # with 1, 2 and 4 seconds between them


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
        tqdm(
            total=size, unit="B", unit_scale=True, desc="download", leave=False, disable=None
        ) as bar,
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
        raise TransferError(
            error, final=error.code < 500 and error.code not in (408, 429)
        ) from error  # a 404 stays
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
    ) as error:  # URLError and timeouts are OSErrors
        # Without a network no name has an address, and nobody wants to wait for that to be tried four times.
        raise TransferError(
            error, final=isinstance(getattr(error, "reason", None), socket.gaierror)
        ) from error


def certificates():
    """Those of the system, and certifi's, which tiktoken brings along: Python for macOS comes without any."""
    context = ssl.create_default_context()
    with contextlib.suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context
