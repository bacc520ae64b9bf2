"""Encode the documents of one source file to shards: .npy files of token ids."""

import itertools

import numpy as np

from seugpt.data.dataset_dir import SHARD_SAMPLES, fingerprint, token_dtype
from seugpt.data.download import file_sha256
from seugpt.data.text import CHUNK_CHARS, split_at_word_boundaries
from seugpt.errors import DataError
from seugpt.files import atomic_write

WRITE_TOKENS = 1 << 16  # written at a time


class ShardWriter:
    """Writes token ids to a .npy file as they come. `largest_id` and `num_tokens` are of all."""

    def __init__(self, path, dtype):
        self.path = path
        self.dtype = dtype
        self.num_tokens = 0
        self.largest_id = 0
        self.pending = []
        self.num_pending = 0

    def __enter__(self):
        self.file = open(self.path, "wb")
        self.write_header()
        return self

    def write_header(self):
        """NumPy pads headers so that the same one fits with any number of tokens."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.num_tokens,),
        }
        self.file.seek(0)
        np.lib.format.write_array_header_1_0(self.file, header)

    def write(self, arrays):
        """`arrays`: ids, as a list of arrays."""
        count = sum(map(len, arrays))
        self.pending += arrays
        self.num_tokens += count
        self.num_pending += count
        if self.num_pending >= WRITE_TOKENS:
            self.flush()

    def flush(self):
        if self.num_pending:
            ids = np.concatenate(self.pending)
            self.largest_id = max(self.largest_id, int(ids.max()))
            self.file.write(ids.astype(self.dtype).tobytes())
        self.pending = []
        self.num_pending = 0

    def __exit__(self, error, *_):
        if error is None:
            self.flush()
            self.write_header()
        self.file.close()


class DocumentEncoder:
    """Documents to ids, each behind the tokenizer's separator."""

    def __init__(self, tokenizer, keep_crlf):
        self.tokenizer = tokenizer
        self.keep_crlf = keep_crlf
        self.separator = tokenizer.encode(tokenizer.document_separator)
        self.separator_bytes = len(tokenizer.document_separator.encode())

    def encode(self, text):
        """(arrays of ids, bytes of the text with its separator, bytes that the ids stand for)."""
        if "\r" in text and not self.keep_crlf:  # seldom: to look for one character is faster
            text = text.replace("\r\n", "\n")
        encode = self.tokenizer.encode_document
        if len(text) <= CHUNK_CHARS:
            arrays = [self.separator, encode(text)]
        else:
            arrays = [self.separator, *map(encode, split_at_word_boundaries([text]))]
        num_bytes = self.separator_bytes + len(text.encode())
        if self.tokenizer.keeps_every_byte:
            return arrays, num_bytes, num_bytes
        return arrays, num_bytes, sum(map(self.tokenizer.num_bytes, arrays))


def write_shard(path, documents, plan, encoder, on_bytes):
    """Write one shard. Returns its entry in the record.

    It ends with the first document after plan.shard_tokens tokens, or with the last of
    `documents`, an iterator of (number, text). `on_bytes` is called with each document's size.
    """
    num_bytes = 0
    num_kept = 0
    num_documents = 0
    first = None
    dtype = token_dtype(encoder.tokenizer.vocab_size)
    with atomic_write(path) as temporary:
        with ShardWriter(temporary, dtype) as writer:
            for number, text in documents:
                first = number if first is None else first
                arrays, text_bytes, kept_bytes = encoder.encode(text)
                writer.write(arrays)
                num_bytes += text_bytes
                num_kept += kept_bytes
                num_documents += 1
                on_bytes(text_bytes)
                if writer.num_tokens >= plan.shard_tokens:
                    break
        sha256 = file_sha256(temporary)
    return {
        "file": path.name,
        "first_document": first,
        "last_document": number,
        "documents": num_documents,
        "tokens": writer.num_tokens,
        "bytes": num_bytes,
        "lost_bytes": num_bytes - num_kept,
        "largest_id": writer.largest_id,
        "sha256": sha256,
        "fingerprint": fingerprint(path, SHARD_SAMPLES),
    }


def encode_unit(folder, plan, unit, record, encoder, on_bytes):
    """Write the missing shards of a source file; `record` grows with each and is saved.

    Raises DataError for a document that cannot be read or encoded, and for a changed file.
    """
    documents = missing_documents(plan, unit, record)
    for document in documents:
        path = folder / unit.shard_name(len(record.shards))
        rest = itertools.chain([document], documents)
        shard = write_shard(path, rest, plan, encoder, on_bytes)
        if unit.source.describe() != unit.described:
            raise DataError(
                f"{unit.source.name} changed while it was read. Run the same command again, which "
                "reads that file anew"
            )
        record.shards.append(shard)
        record.save()
    record.save()
    names = {shard["file"] for shard in record.shards}
    for path in folder.glob(f"{unit.name}_*.npy"):
        if path.name not in names:  # of a longer file that was there before
            path.unlink()


def missing_documents(plan, unit, record):
    """(number, text) of the documents behind the record's shards; empty ones are left out.

    At the end it counts them all in record.num_documents, which makes the unit complete.
    """
    start = record.shards[-1]["last_document"] + 1 if record.shards else 0
    number = -1
    for number, text in enumerate(unit.source.documents(plan.field)):
        if number >= start and text:
            yield number, text
    record.num_documents = number + 1
