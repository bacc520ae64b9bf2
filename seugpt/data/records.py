"""One text field of the records of a .jsonl, .csv or .parquet file, one record after the other."""

import csv
import json

from seugpt.cli.text_option import is_utf8
from seugpt.errors import DataError

FORMATS = (".jsonl", ".csv", ".parquet")
MAX_CSV_FIELD = 2**31 - 1  # characters; Python's own limit is 131,072
READ_BYTES = 1 << 20
SURPLUS = object()  # the key of values without a column


def check_format(path, field):
    """Raise DataError if a file's name does not end as one of FORMATS."""
    if path.suffix.lower() not in FORMATS:
        raise DataError(
            f"--field={field} is for {', '.join(FORMATS)} files, but the input has {path}"
        )


def read_records(path, field, on_bytes=None):
    """Yields the text of each record. `on_bytes` sees all raw bytes of the file.

    Raises DataError naming the file, the record and the fields that there are.
    """
    check_format(path, field)
    readers = {".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}
    reader = readers[path.suffix.lower()]
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
            if on_bytes:
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


def import_pyarrow():
    """The package pyarrow with its Parquet reader. Raises DataError if it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            ".parquet files need the package pyarrow: python -m pip install pyarrow==26.0.1"
        ) from None
    return pyarrow


def read_parquet(path, field, on_bytes):
    pyarrow = import_pyarrow()
    if on_bytes:
        with open(path, "rb") as file:
            while chunk := file.read(READ_BYTES):
                on_bytes(chunk)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [field] if field in names else []  # the others need not be read
            if not columns:
                yield dict.fromkeys(names)  # which names them in a message
                return
            # One thread: the cores encode, and each of prepare.py's workers has one of them.
            batches = file.iter_batches(columns=columns, batch_size=1024, use_threads=False)
            for batch in batches:
                for text in batch.column(0).to_pylist():
                    yield {field: text}
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


def text_bytes(path, field):
    """About how many bytes of text a file's records have; only the end of a .parquet file is read.

    Raises DataError for a damaged .parquet file, or one without a column `field` of texts.
    """
    check_format(path, field)
    if path.suffix.lower() != ".parquet":
        return path.stat().st_size
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            metadata = file.metadata
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    if field not in schema.names:
        raise DataError(
            f"{path} has no column {field!r}; it has {', '.join(schema.names[:20])}. "
            "Name the column of texts: --field=COLUMN"
        )
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    columns = [group.column(n) for group in groups for n in range(group.num_columns)]
    return sum(each.total_uncompressed_size for each in columns if each.path_in_schema == field)
