"""One text field of the records of a .jsonl, .csv or .parquet file, one record after the other."""

import csv
import json

from seugpt.cli.text_option import is_utf8
from seugpt.errors import DataError

FORMATS = (".jsonl", ".csv", ".parquet")
MAX_CSV_FIELD = 2**31 - 1  # characters; Python's own limit is 131,072
READ_BYTES = 1 << 20
SURPLUS = object()  # the key of values without a column


def read_records(path, field, on_bytes):
    """Yields the text of each record. `on_bytes` sees all raw bytes of the file.

    Raises DataError naming the file, the record and the fields that there are.
    """
    readers = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"--field={field} is for {', '.join(FORMATS)} files, but the input has {path}"
        )
    number = 0
    try:
        for number, record in enumerate(reader(path, field, on_bytes), start=1):
            problem = find_problem(record, field)
            if problem:
                raise DataError(f"{path}: record {number:,} {problem}")
            yield record[field]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8, after record {number:,}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def find_problem(record, field):
    """Why a record's text cannot be read, or None."""
    if not isinstance(record, dict):
        return "is not an object with fields"
    if SURPLUS in record:
        surplus = len(record[SURPLUS])
        return f"has {surplus} value(s) more than the header has columns: is a comma not quoted?"
    if field not in record:
        return f"has no field {field!r}; it has {', '.join(map(str, list(record)[:20]))}"
    text = record[field]
    if not isinstance(text, str):
        return f"has no text in the field {field!r}, but {type(text).__name__}"
    if not is_utf8(text):
        return f"has half a surrogate pair in the field {field!r}, which is no character"
    return None


def lines_of(path, on_bytes):
    """The lines of a UTF-8 file as text, with their ends."""
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            on_bytes(line)
            yield line.decode("utf-8-sig" if number == 0 else "utf-8")


def read_jsonl(path, field, on_bytes):
    for number, line in enumerate(lines_of(path, on_bytes), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number:,} is not JSON: {error}") from error


def read_csv(path, field, on_bytes):
    csv.field_size_limit(MAX_CSV_FIELD)
    try:
        reader = csv.DictReader(lines_of(path, on_bytes), restkey=SURPLUS, strict=True)
        if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
            raise DataError(f"{path} has two columns of the same name in its header")
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}") from error


def read_parquet(path, field, on_bytes):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            ".parquet files need the package pyarrow: python -m pip install pyarrow==26.0.1"
        ) from None
    with open(path, "rb") as file:
        while chunk := file.read(READ_BYTES):
            on_bytes(chunk)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [field] if field in names else []  # the others need not be read
            if not columns:
                yield dict.fromkeys(names)
            for batch in file.iter_batches(columns=columns, batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
