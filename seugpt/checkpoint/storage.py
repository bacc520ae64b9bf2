"""Save and load checkpoints: the only code that touches *.pt files.

latest.pt has everything that a run needs to continue; best.pt what inference needs: weights,
configs, tokenizer. Both are dictionaries of tensors and plain values, loaded with
weights_only=True, so that loading never runs code.
"""

import math
import os
import shutil
from pathlib import Path

import torch

from seugpt.checkpoint.archive import read_archive, write_archive
from seugpt.checkpoint.content import FORMAT, INFERENCE_KEYS, RESUME_KEYS, check_content
from seugpt.checkpoint.sharded import is_step_folder, read_run, step_folder, step_folders
from seugpt.errors import CheckpointError, one_line
from seugpt.files import atomic_write, disk_space

CHECKPOINT_FILES = ("best.pt", "latest.pt", "ckpt.pt")  # in a run's folder; ckpt.pt is nanoGPT's


def save_checkpoint(path, ckpt):
    """Write a dictionary atomically: `path` is at every moment the old or the new file, complete.

    Raises CheckpointError; the old file is then untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # someone may have moved the folder
        with atomic_write(path) as temporary:
            write_archive(temporary, {"format": FORMAT, **ckpt})
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        space = disk_space(error, path.parent)
        if space:
            space = f". It needs {tensor_bytes(ckpt):,} bytes{space}"
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"cannot write {path}: {reason}{space}. The previous file is untouched"
        ) from error


def tensor_bytes(value):
    """Bytes of all tensors in nested dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def rotate_checkpoints(path, step, keep_last):
    """Keep the checkpoint at `path` as step-00001000.pt too, and the `keep_last` newest of these.

    Those of later steps, left from before the run was resumed at an earlier one, stay. Where the
    file system has hard links, it is one file with two names until latest.pt is replaced.
    """
    numbered = path.with_name(f"step-{step:08d}.pt")
    try:
        with atomic_write(numbered) as temporary:
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
        up_to_now = [old for old in step_checkpoints(path.parent) if old.name <= numbered.name]
        for old in up_to_now[keep_last:]:
            old.unlink()
    except OSError as error:
        raise CheckpointError(
            f"cannot write {numbered}: {error.strerror}. {path} is complete"
        ) from error


def step_checkpoints(folder):
    """The step-*.pt files of a folder, the latest step first; copies may have other file times."""
    return sorted(Path(folder).glob(f"step-{'[0-9]' * 8}.pt"), reverse=True)


def load_checkpoint(path, keys=INFERENCE_KEYS):
    """A checkpoint's dictionary, with its path as "path" and all tensors on the CPU.

    `keys` must be present. Raises CheckpointError.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}. {missing_file_advice(path)}")
    mtime_ns = path.stat().st_mtime_ns
    ckpt = read_file(path)
    check_content(path, ckpt, keys)
    return {**ckpt, "path": path, "mtime_ns": mtime_ns}


def read_file(path):
    """What torch.save wrote to a file. Raises CheckpointError; see archive.py."""
    try:
        return read_archive(path)
    except Exception as error:  # torch, zipfile and pickle each raise their own types
        # What torch says is long, and advises to run the code in the file.
        reason = one_line(error) if type(error) is ValueError else type(error).__name__
        others = [other.name for other in checkpoints_in(path.parent) if other != path]
        advice = f". Other checkpoints in {path.parent}: {', '.join(others)}" if others else ""
        problem = f"{path} cannot be read as a checkpoint ({reason})"
        raise CheckpointError(f"{problem}{advice}") from error


def checkpoints_in(folder):
    """All checkpoints of a run's folder: numbered ones, newest first, then the others."""
    named = [folder / name for name in CHECKPOINT_FILES]
    return [*step_checkpoints(folder), *filter(Path.is_file, named)]


def missing_file_advice(path):
    """The next command for someone whose checkpoint does not exist."""
    numbered = step_checkpoints(path.parent)
    best = path.parent / "best.pt"
    nanogpt = path.parent / "ckpt.pt"
    if nanogpt.is_file():
        return (
            f"nanoGPT's {nanogpt} cannot be resumed, but its "
            f"weights can be fine-tuned: --init_from={nanogpt}"
        )
    if numbered:
        return f"Continue from {numbered[0]} with --init_from=auto"
    if best.is_file():
        return f"The weights in {best} can start a new run: --init_from={best} --out_dir=ANOTHER"
    return f"A run writes it: python train.py CONFIG --out_dir={path.parent}"


def load_latest(folder):
    """The checkpoint that a run in `folder` continues: latest.pt, or a sharded run's last folder.

    Of a sharded one as read_run returns it, without tensors. Raises CheckpointError.
    """
    latest = Path(folder, "latest.pt")
    sharded = [read_run(path) for path in step_folders(folder)[:1]]
    if sharded and not latest.is_file():
        return sharded[0]
    return latest_of([load_checkpoint(latest, RESUME_KEYS), *sharded])


def latest_of(ckpts):
    """The one of the latest step; a run that was sharded only for a time has left both kinds."""
    return max(ckpts, key=lambda ckpt: ckpt["step"])


def load_latest_valid(folder):
    """The newest checkpoint in a folder from which a run can continue; None if there is none.

    Its "notes" name those that are damaged. Raises CheckpointError if all of them are.
    """
    damaged = []
    found = []
    files = filter(Path.is_file, [Path(folder) / "latest.pt", *step_checkpoints(folder)])
    for paths, load in ((files, load_to_resume), (step_folders(folder), read_run)):
        for path in paths:
            try:
                found.append(load(path))
                break
            except CheckpointError as error:
                damaged.append(str(error))
    if found:
        ckpt = latest_of(found)
        notes = [*damaged, f"so the run continues from {ckpt['path']}"] if damaged else []
        return {**ckpt, "notes": notes}
    if damaged:
        raise CheckpointError(
            f"{'. '.join(damaged)}. To start over, --init_from=scratch moves these files aside"
        )
    return None


def load_to_resume(path):
    return load_checkpoint(path, RESUME_KEYS)


def find_checkpoint(path):
    """The checkpoint at `path`, a file or a sharded one's folder; in a run's folder its best one.

    That is best.pt, else latest.pt, else nanoGPT's ckpt.pt. Raises CheckpointError.
    """
    path = Path(path)
    if path.is_file() or is_step_folder(path):
        return path
    sharded = find_best_sharded(path)
    if sharded:
        return sharded
    for candidate in [path / name for name in CHECKPOINT_FILES]:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise CheckpointError(
            f"the folder {path} has no {', '.join(CHECKPOINT_FILES)}, no step-*/run.json and no "
            "Hugging Face config.json. A run writes a checkpoint: "
            f"python train.py CONFIG --out_dir={path}"
        )
    folder = path.parent if path.suffix == ".pt" else path
    raise CheckpointError(
        f"there is no checkpoint {path}. A run writes "
        f"one: python train.py CONFIG --out_dir={folder}"
    )


def find_best_sharded(out_dir):
    """The best checkpoint of a run that is sharded now; None if best.pt or latest.pt has it."""
    folders = step_folders(out_dir)
    if not folders:
        return None
    latest = load_latest(out_dir)
    if latest["path"] not in folders:
        return None
    best = step_folder(out_dir, latest["train_state"]["best_step"])
    if best in folders:
        return best
    return None if Path(out_dir, "best.pt").is_file() else latest["path"]


def check_unchanged(ckpt):
    """Raise CheckpointError if the file has been rewritten since it was loaded."""
    if ckpt["path"].stat().st_mtime_ns != ckpt["mtime_ns"]:
        raise CheckpointError(
            f"another run wrote {ckpt['path']} while this "
            "one was starting. Run the same command again"
        )


def describe(ckpt):
    """A loaded checkpoint in one line."""
    facts = []
    if ckpt["step"]:
        facts.append(f"step {ckpt['step']:,}")
    if not math.isnan(ckpt["val_loss"]):
        facts.append(f"validation loss {ckpt['val_loss']:.4f}")
    return f"{ckpt['path']}: {', '.join(facts)}" if facts else str(ckpt["path"])
