"""What a preparation in shards has to do, and what of it is done: files in data/NAME/records.

plan.json says what the shards are made from. Each source file is a unit of work with a record of
its own, written again after each shard; so what is missing is known after any interruption. The
shards of a unit depend on its file and the plan alone, whoever writes them.
"""

import itertools
import json
from dataclasses import dataclass
from functools import partial

from seugpt.data.dataset_dir import PLAN, RECORDS, SHARD_SAMPLES, fingerprint
from seugpt.errors import DataError, one_line
from seugpt.files import atomic_write, read_text

FORMAT = 1


@dataclass(frozen=True)
class Unit:
    """A source file and its place in the data set."""

    split: str
    number: int  # in the split
    source: object
    described: dict  # source.describe() at the start
    expected_bytes: int | None  # of text, about

    @property
    def name(self):
        return f"{self.split}_{self.number:05d}"

    def shard_name(self, number):
        return f"{self.name}_{number:04d}.npy"


def make_units(sources, field):
    """The Units of {"train": sources, "val": sources}.

    Raises DataError for a file that clearly cannot be read.
    """
    return [
        Unit(split, number, source, source.describe(), source.text_bytes(field))
        for split, files in sources.items()
        for number, source in enumerate(files)
    ]


@dataclass(frozen=True)
class Plan:
    """What the shards are made from."""

    units: list
    field: str
    keep_crlf: bool
    shard_tokens: int
    tokenizer_spec: dict
    origin: str | None  # the hub's data set; None: files on this disk

    def to_json(self):
        files = {unit.name: unit.source.name for unit in self.units}
        return {
            "format": FORMAT,
            "shard_tokens": self.shard_tokens,
            "field": self.field,
            "keep_crlf": self.keep_crlf,
            "tokenizer": self.tokenizer_spec,
            "origin": self.origin,
            "files": files,
        }


@dataclass
class Record:
    """What is done of a unit."""

    path: object
    source: dict  # the unit's `described`
    shards: list  # one dictionary for each, see shard_writer.write_shard
    num_documents: int | None = None  # once the unit is complete

    @property
    def is_complete(self):
        return self.num_documents is not None

    @property
    def num_empty(self):
        """Documents without text, which are left out."""
        return self.num_documents - self.total("documents")

    def total(self, key):
        return sum(shard[key] for shard in self.shards)

    def save(self):
        content = {
            "source": self.source,
            "documents": self.num_documents,
            "shards": self.shards,
        }
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def load_record(folder, unit):
    """The Record of a unit, with those of its shards that are there and intact.

    A missing or damaged shard is written again, and so are those behind it; all of them if the
    source file has changed.
    """
    path = folder / RECORDS / f"{unit.name}.json"
    nothing = Record(path, unit.described, [])
    try:
        content = json.loads(read_text(path))
        record = Record(path, content["source"], list(content["shards"]), content["documents"])
        intact = list(itertools.takewhile(partial(is_intact, folder), record.shards))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # missing, or damaged
        return nothing
    if record.source != unit.described:
        return nothing
    return record if len(intact) == len(record.shards) else Record(path, record.source, intact)


def is_intact(folder, shard):
    path = folder / shard["file"]
    return path.is_file() and fingerprint(path, SHARD_SAMPLES) == shard["fingerprint"]


def begin(folder, plan):
    """Write plan.json, or check that the one there is of the same plan. Raises DataError."""
    path = folder / PLAN
    content = json.loads(json.dumps(plan.to_json()))
    if path.exists():
        changes = changes_of_plan(path, content)
        if changes:
            raise DataError(
                f"{folder} was begun otherwise: {'; '.join(changes)}. Run the command as it was, "
                f"choose another name, or delete the folder {folder}"
            )
        return
    if (folder / "meta.json").exists():
        raise DataError(f"{folder} has a data set already. Choose another name, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def changes_of_plan(path, content):
    """How the plan in a file differs from this one, as a list of texts."""
    try:
        old = json.loads(read_text(path))
        return [
            describe_change(key, old.get(key), content[key])
            for key in content
            if old.get(key) != content[key]
        ]
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        return [f"{path} cannot be read ({one_line(error)})"]


def describe_change(key, old, new):
    if key == "tokenizer":
        return "with another tokenizer"
    if key == "files":
        return f"with {len(old):,} source files, now {len(new):,}, or other names"
    return f"{key}={old} then, {key}={new} now"
