"""The zip archives of torch.save: sealed when written, checked before torch reads them.

torch trusts an archive: one wrong bit can make it read nothing, and a compressed record of a few
kilobytes can fill the memory. The seal is a checksum of the whole file, in the zip comment, where
other programs ignore it.
"""

import hashlib
import os
import zipfile

import torch

from seugpt.checkpoint.pickle_check import check_pickle

SEAL = "seuGPT sha256 "  # the zip comment: this, and the checksum of all that stands before it
LENGTH_BYTES = 2  # of the comment's length, which stands just before it
KNOWN_FLAGS = 0x808  # sizes are repeated behind a record, and names are UTF-8
MAX_PICKLE_BYTES = 1 << 27  # of everything but tensors, such as a tokenizer
CHUNK_BYTES = 1 << 20


def write_archive(path, value):
    """torch.save, with a seal."""
    torch.save(value, path)
    content_size = os.path.getsize(path) - LENGTH_BYTES  # torch writes an empty comment
    seal = compute_seal(path, content_size)
    with open(path, "r+b") as file:
        file.seek(content_size)
        file.write(len(seal).to_bytes(LENGTH_BYTES, "little") + seal)


def read_seal(path):
    """The seal at the end of a file, which stands for its content; b"" if it has none."""
    with zipfile.ZipFile(path) as archive:
        return archive.comment


def compute_seal(path, content_size):
    """The comment that belongs to the first `content_size` bytes of a file."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as file:
        while content_size > 0:
            chunk = file.read(min(CHUNK_BYTES, content_size))
            sha256.update(chunk)
            content_size -= len(chunk)
    return (SEAL + sha256.hexdigest()).encode()


def read_archive(path):
    """What torch.save wrote to a file, with tensors on the CPU; no code in it runs.

    Raises whatever zipfile, torch and pickle raise for a damaged file, ValueError among others.
    """
    with zipfile.ZipFile(path) as archive:
        check_records(archive)
        [pickle] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if archive.getinfo(pickle).file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"{pickle} is larger than {MAX_PICKLE_BYTES:,} bytes")
        check_pickle(archive.read(pickle))
        if archive.comment.startswith(SEAL.encode()):
            content_size = os.path.getsize(path) - len(archive.comment) - LENGTH_BYTES
            is_intact = archive.comment == compute_seal(path, content_size)
        else:  # nanoGPT's have a checksum for each record
            is_intact = archive.testzip() is None
    if not is_intact:
        raise ValueError("a checksum is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def check_records(archive):
    """Raise ValueError unless a zip file has only plain records, which it holds completely."""
    names = set()
    total = 0
    for record in archive.infolist():
        is_stored = record.compress_type == zipfile.ZIP_STORED
        is_plain = not record.external_attr and not record.flag_bits & ~KNOWN_FLAGS
        if not (is_stored and is_plain and record.file_size == record.compress_size):
            raise ValueError(f"the record {record.filename!r} is not plain data")
        names.add(record.filename.lower())  # torch looks names up whatever their case
        total += record.file_size
    if len(names) < len(archive.infolist()):
        raise ValueError("two records have the same name")
    if total > os.path.getsize(archive.filename):
        raise ValueError("the records overlap")
