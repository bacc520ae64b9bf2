"""The source files of a data set in shards: on this disk, or on the Hugging Face hub.

A source yields its documents, texts, in order. `name` is what it is called in meta.json, and
describe() says whether it is still the same when an unfinished preparation goes on.
"""

from dataclasses import dataclass
from pathlib import Path

from seugpt.data.dataset_dir import fingerprint
from seugpt.data.records import read_records, text_bytes
from seugpt.data.text import find_files
from seugpt.errors import DataError, one_line

SOURCE_SAMPLES = 4  # parts of a source file that its fingerprint covers
BATCH_DOCUMENTS = 1000  # that the package datasets reads at a time


@dataclass(frozen=True)
class LocalFile:
    """A .jsonl, .csv or .parquet file."""

    path: Path
    name: str

    def describe(self):
        digest = fingerprint(self.path, SOURCE_SAMPLES)
        return {"file": self.name, "bytes": self.path.stat().st_size, "fingerprint": digest}

    def text_bytes(self, field):
        """About the bytes of its text. Raises DataError if it clearly cannot be read."""
        return text_bytes(self.path, field)

    def documents(self, field):
        return read_records(self.path, field)


@dataclass(frozen=True)
class HubFile:
    """A .parquet file of a data set on the hub, or in a folder, read by the package datasets."""

    repository: str
    revision: str
    name: str

    def describe(self):
        return {"file": self.name, "repository": self.repository, "revision": self.revision}

    def text_bytes(self, field):
        """None: unknown before it is downloaded."""
        return None

    def documents(self, field):
        """To be read to its end, or in a process that ends by os._exit.

        The threads of a stream that is given up make the interpreter abort when it exits.
        """
        datasets = import_datasets()
        try:
            stream = datasets.load_dataset(
                self.repository,
                data_files=[self.name],
                revision=self.revision,
                split="train",  # what a list of files is called
                streaming=True,
                columns=[field],
            )
            for batch in stream.iter(BATCH_DOCUMENTS):
                yield from batch[field]
        except Exception as error:  # of datasets, huggingface_hub, pyarrow, the network, the disk
            raise DataError(
                f"cannot read {self.name} of {self.repository} ({one_line(error)}). Connect to the "
                "network and run the same command again, which continues where this one stopped; "
                "or download the files another way: prepare.py NAME --input=FOLDER"
            ) from error


def import_datasets():
    """The package datasets. Raises DataError if it is missing."""
    try:
        import datasets
    except ImportError:
        raise DataError(
            "data sets of the hub need the package datasets: python -m pip install datasets==5.2.0"
        ) from None
    return datasets


def local_sources(input_path, val_path):
    """{"train": sources, "val": sources}; what lies in both paths is for validation alone.

    Raises DataError if no file is left for training.
    """
    files = {"val": find_files(val_path)}
    held_out = {path.resolve() for path in files["val"]}
    files["train"] = [path for path in find_files(input_path) if path.resolve() not in held_out]
    if not files["train"]:
        raise DataError(
            f"val_input={val_path} leaves no file of input={input_path} for training. Name a part "
            "of them, or other files"
        )
    roots = {"train": Path(input_path), "val": Path(val_path)}
    return {
        split: [LocalFile(path, name_in(roots[split], path)) for path in files[split]]
        for split in ("train", "val")
    }


def name_in(root, path):
    """The name of a file that the folder `root` contains, or that is `root` itself."""
    return path.name if path == root else path.relative_to(root).as_posix()


def hub_sources(hub):
    """{"train": sources, "val": sources} of a corpus's HubFiles."""
    return {
        split: [HubFile(hub.repository, hub.revision, name) for name in names]
        for split, names in (("train", hub.train), ("val", hub.val))
    }
