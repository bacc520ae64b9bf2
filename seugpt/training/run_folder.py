"""A run's folder: one run at a time writes there; an earlier run's files are moved aside."""

import itertools
import tempfile

from seugpt.checkpoint.sharded import is_step_folder, remove_unfinished
from seugpt.checkpoint.storage import step_checkpoints
from seugpt.errors import ConfigError
from seugpt.files import lock_folder

RUN_FILES = (  # in the order in which they are moved aside
    "loss.png",
    "config.py",
    "snapshots",
    "tensorboard",
    "wandb_run_id",
    "training.log",
    "best.pt",
    "metrics.jsonl",
    "latest.pt",
)
MOVING = ".moving"  # the subfolder while files are moved to it


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
    remove_unfinished(folder)
    if resume:
        bring_back(folder)
        return lock, None
    return lock, move_aside(folder)


def move_aside(folder):
    """Move the files of an earlier run to previous-1 or the like; None if there are none to move.

    If the process is killed meanwhile, the next one moves the rest to the same subfolder.
    """
    earlier = [*step_checkpoints(folder), *folder.glob("best-until-*.pt")]
    earlier += sorted(folder.glob("step-*/"))  # of a sharded run
    earlier += [folder / name for name in RUN_FILES if (folder / name).exists()]
    moving = folder / MOVING
    has_checkpoint = any(path.suffix == ".pt" or is_step_folder(path) for path in earlier)
    ended_early = (folder / "training.log").exists() and not has_checkpoint
    if not moving.exists() and (ended_early or not earlier):
        return None
    moving.mkdir(exist_ok=True)
    for path in earlier:
        path.rename(moving / path.name)
    numbered = (folder / f"previous-{n}" for n in itertools.count(1))
    previous = next(path for path in numbered if not path.exists())
    moving.rename(previous)
    return previous


def bring_back(folder):
    """Undo a move_aside during which the process was killed."""
    moving = folder / MOVING
    if moving.exists():
        for path in moving.iterdir():
            path.rename(folder / path.name)
        moving.rmdir()
