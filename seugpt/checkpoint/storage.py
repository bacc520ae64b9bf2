"""Checkpoints: the only file that touches *.pt.

latest.pt holds everything that a run needs to go on; best.pt what a model needs to speak: weights, configs, tokenizer.
Both are dictionaries of tensors and plain values, read with weights_only=True, so that loading never runs code.
"""

import math
import os
import shutil
import zipfile
from pathlib import Path

import torch

from seugpt.checkpoint import nanogpt
from seugpt.errors import CheckpointError, DataError
from seugpt.files import replacing

FORMAT = 1
TO_SPEAK = {
    "format",
    "model",
    "model_config",
    "train_config",
    "tokenizer",
    "step",
    "val_loss",
}  # in best.pt
NAMES = ("best.pt", "latest.pt", "ckpt.pt")  # in a run's folder; the last one is nanoGPT's
TO_RESUME = TO_SPEAK | {"optimizer", "scaler", "generators", "best_val_loss"}  # in latest.pt
TYPES = {
    "model": dict, "model_config": dict, "train_config": dict, "tokenizer": dict, "step": int, "val_loss": float,
    "optimizer": dict | list, "scaler": dict, "generators": list, "best_val_loss": float,
}  # fmt: skip


def save(path, content):
    """Write a dictionary so that `path` is at every moment either the old checkpoint or the new one, whole.

    Raises CheckpointError; the old file is then untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have moved it away
        with replacing(path) as temporary:
            torch.save({"format": FORMAT, **content}, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        free = shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free
        raise CheckpointError(
            f"cannot write {path}: {error}. It needs {size_of(content):,} bytes, and {free:,} are free there. "
            "What was there before is untouched"
        ) from error


def size_of(content):
    """Bytes of all the tensors in nested dictionaries and lists."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    parts = (
        content.values()
        if isinstance(content, dict)
        else content
        if isinstance(content, list | tuple)
        else ()
    )
    return sum(map(size_of, parts))


def keep(path, step, count):
    """Keep the checkpoint at `path` beside it as step-00001000.pt, and of such files the `count` newest.

    It is one file with two names until the next one takes its place, where the file system knows links.
    """
    kept = path.with_name(f"step-{step:08d}.pt")
    try:
        with replacing(kept) as temporary:
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(path, temporary)
        for old in numbered(path.parent)[count:]:
            old.unlink()
    except OSError as error:
        raise CheckpointError(f"cannot keep {kept}: {error.strerror}. {path} is whole") from error


def numbered(folder):
    """The files that `keep` made in a folder, the newest first."""
    return sorted(
        Path(folder).glob(f"step-{'[0-9]' * 8}.pt"),
        key=lambda path: path.stat().st_mtime_ns,
        reverse=True,
    )


def newest(folder):
    """The newest checkpoint in a folder that a run can go on from, with notes on those that cannot be read.

    None where there is none. Raises CheckpointError where none of them can be read.
    """
    damaged = []
    for path in filter(Path.is_file, [Path(folder) / "latest.pt", *numbered(folder)]):
        try:
            content = load(path, TO_RESUME)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            notes = [*damaged, f"so the run goes on from {path}"] if damaged else []
            return {**content, "notes": notes}
    if damaged:
        raise CheckpointError(
            f"{'. '.join(damaged)}. To begin anew: --init_from=scratch, which moves the files aside"
        )
    return None


def best_so_far(content, folder, evaluated_on):
    """[loss, step, evaluations since] of the best evaluation before latest.pt's `content`, and a note or None.

    best.pt is moved aside where it cannot be read, or where losses are taken over other tokens from now on.
    """
    best, problem = Path(folder) / "best.pt", None
    if not best.is_file():
        problem = f"there is no {best} any more"
    elif content.get("evaluated_on", evaluated_on) != evaluated_on:
        problem = "its loss is of other tokens than those that are evaluated from now on"
    else:
        try:
            found = load(best)
            if found["model_config"] != content["model_config"]:
                problem = "it is another model's"
            elif (
                found["val_loss"] < content["best_val_loss"]
            ):  # the run died between the saving of the two
                return found["val_loss"], found["step"], 0, None
        except CheckpointError as error:
            problem = str(error)
    if problem is None:
        return content["best_val_loss"], content.get("best_step", 0), content.get("worse", 0), None
    if best.is_file():
        aside = best.with_name(f"best-until-{content['step']}.pt")
        best.replace(aside)
        problem = f"{best} is now {aside}: {problem}"
    problem = f"the best of this run is sought anew. {problem}"
    return math.inf, content["step"], 0, problem


def alternatives(path):
    """Which checkpoints beside a damaged one can be read, as the end of a message about it."""
    readable = []
    for other in [*numbered(path.parent), *(path.with_name(name) for name in NAMES)]:
        if other != path and other.is_file() and not other.samefile(path):
            try:
                read(other)
            except Exception:  # of whatever kind: that one is no help
                continue
            readable.append(str(other))
    return f". These can be read: {', '.join(readable)}" if readable else ""


def read(path):
    """What a file of torch.save's holds, if its checksums are right: torch.load does not look at them."""
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise ValueError("a checksum is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def load(path, needed=TO_SPEAK):
    """One checkpoint's dictionary, with its path under "path", the tensors on the CPU. Raises CheckpointError."""
    path = Path(path)
    if not path.is_file():
        advice = f"A run writes it: python train.py CONFIG --out_dir={path.parent}"
        if kept := numbered(path.parent):
            advice = f"The run goes on from {kept[0]} with --init_from=auto"
        elif (best := path.parent / "best.pt").is_file():
            advice = f"The weights in {best} can be trained on, as a new run: --init_from={best} --out_dir=ANOTHER"
        if (other := path.parent / "ckpt.pt").is_file():
            advice = f"nanoGPT's {other} cannot be resumed, but its weights be trained on: --init_from={other}"
        raise CheckpointError(f"there is no checkpoint {path}. {advice}")
    try:
        written = path.stat().st_mtime_ns
        content = read(path)
    except (
        Exception
    ) as error:  # torch, zip and pickle each raise their own kinds for a damaged file
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}){alternatives(path)}"
        ) from error
    if (
        isinstance(content, dict)
        and "model_args" in content
        and "model" in content
        and needed == TO_SPEAK
    ):
        try:
            content = {"format": FORMAT, **nanogpt.convert(content, path)}
        except DataError as error:
            raise CheckpointError(str(error)) from error
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError) as error:
            raise CheckpointError(
                f"{path} is not quite nanoGPT's: {type(error).__name__} {error}"
            ) from error
    missing = needed - set(content) if isinstance(content, dict) else needed
    if missing:
        what = (
            "holds weights alone, and cannot be resumed"
            if missing <= TO_RESUME - TO_SPEAK
            else "is not one of seuGPT"
        )
        raise CheckpointError(f"{path} {what}: it has no {', '.join(sorted(missing))}")
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {content['format']}; this program reads format {FORMAT}"
        )
    wrong = [name for name in needed & TYPES.keys() if not isinstance(content[name], TYPES[name])]
    if not wrong and (type(content["step"]) is bool or content["step"] < 0):
        wrong = ["step"]
    if wrong:
        raise CheckpointError(
            f"{path} is damaged: its {', '.join(sorted(wrong))} are not what a run writes"
        )
    return {**content, "path": path, "written": written}


def demand_unchanged(content):
    """Raise CheckpointError where the file that was loaded is another one by now."""
    if content["path"].stat().st_mtime_ns != content["written"]:
        raise CheckpointError(
            f"another run has written {content['path']} while this one was starting. Type the same command again"
        )


def describe(content):
    """A loaded checkpoint in one line."""
    known = [f"step {content['step']:,}"] if content["step"] else []
    known += (
        [] if math.isnan(content["val_loss"]) else [f"validation loss {content['val_loss']:.4f}"]
    )
    return ": ".join([str(content["path"]), ", ".join(known)]) if known else str(content["path"])


def find(path):
    """`path` itself when it is a file; in a folder best.pt, else latest.pt, else nanoGPT's ckpt.pt; CheckpointError."""
    path = Path(path)
    for candidate in [path] if path.is_file() else [path / name for name in NAMES]:
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise CheckpointError(
            f"the folder {path} has no {', '.join(NAMES)} and no config.json of Hugging Face's. "
            f"A run writes a checkpoint: python train.py CONFIG --out_dir={path}"
        )
    folder = path.parent if path.suffix == ".pt" else path
    raise CheckpointError(
        f"there is no checkpoint {path}. A run writes one: python train.py CONFIG --out_dir={folder}"
    )


def generator_states(device):
    """The states of torch's global random generators, from which dropout draws."""
    states = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def set_generator_states(states, device):
    """The reverse of generator_states; a device that the states were not taken on keeps its own."""
    torch.set_rng_state(states["cpu"])
    if device.type in ("cuda", "mps") and device.type in states:
        getattr(torch, device.type).set_rng_state(states[device.type])
