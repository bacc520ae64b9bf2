"""A run's folder: one run at a time writes there; an earlier run's files are moved aside."""

import itertools
import tempfile

from seugpt.checkpoint.storage import step_checkpoints
from seugpt.errors import ConfigError
from seugpt.files import lock_folder

RUN_FILES = (
    "latest.pt",
    "best.pt",
    "metrics.jsonl",
    "training.log",
    "loss.png",
    "config.py",
    "snapshots",
    "tensorboard",
    "wandb_run_id",
)


def open_run_folder(folder, resume):
    """Create out_dir and lock it; a new run moves the files of an earlier one to a subfolder.

    Files of a run without a checkpoint stay in place: there is nothing to resume, and its log
    continues. Returns the lock, to be closed at the end, and the subfolder or None. Raises
    ConfigError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # the surest test of whether it is writable
    except OSError as error:
        raise ConfigError(
            f"out_dir={folder} cannot be written ({error.strerror}); choose another --out_dir"
        ) from None
    lock = lock_folder(folder)
    earlier = [folder / name for name in RUN_FILES if (folder / name).exists()]
    earlier += step_checkpoints(folder)
    has_checkpoint = any(path.suffix == ".pt" for path in earlier)
    ended_early = (folder / "training.log").exists() and not has_checkpoint
    if resume or not earlier or ended_early:
        return lock, None
    numbered = (folder / f"previous-{n}" for n in itertools.count(1))
    previous = next(path for path in numbered if not path.exists())
    previous.mkdir()
    for path in earlier:
        path.rename(previous / path.name)
    return lock, previous
