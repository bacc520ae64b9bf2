"""Checkpoints of sharded models: the folder out_dir/step-00001000.

shard-*.safetensors, one per rank, hold the tensors model.NAME and optimizer.NAME.KEY. run.json has
everything else, and the size and CRC32 of each file. It is written last: without it a folder is no
checkpoint. torch.distributed.checkpoint reads and writes the tensors, but not its own format, whose
.metadata is a pickle.
"""

import base64
import json
import math
import re
import shutil
import warnings
import zlib
from pathlib import Path

import torch

from seugpt.checkpoint.content import FORMAT, INFERENCE_KEYS, RESUME_KEYS, check_content
from seugpt.data.hub import import_extra
from seugpt.errors import CheckpointError, one_line
from seugpt.files import atomic_write, read_text

RUN_FILE = "run.json"
RUN_KEYS = {**RESUME_KEYS, "files": dict}  # "optimizer" without its tensors
del RUN_KEYS["model"]
REPLACED = ".replaced"  # ends the name of a folder that a new one of the same step replaces
STEP_FOLDER = re.compile(rf"step-(\d{{8}})({re.escape(REPLACED)})?")
SHARD = re.compile(r"shard-[\w-]+\.safetensors")
CHUNK_BYTES = 1 << 24


def is_step_folder(path):
    return (path / RUN_FILE).is_file()


def step_folders(out_dir):
    """The whole checkpoints of a sharded run, the latest step first."""
    folders = [path.parent for path in Path(out_dir).glob(f"step-*/{RUN_FILE}")]
    named = [folder for folder in folders if STEP_FOLDER.fullmatch(folder.name)]
    return sorted(named, key=lambda folder: (-step_of(folder), folder.name))


def step_of(folder):
    return int(STEP_FOLDER.fullmatch(folder.name)[1])


def step_folder(out_dir, step):
    return Path(out_dir, f"step-{step:08d}")


def unfinished_folder(out_dir, step):
    """Where it is written; what a killed run leaves there, the next one removes."""
    return Path(out_dir, f".step-{step:08d}.unfinished")


def remove_unfinished(out_dir):
    for folder in Path(out_dir).glob(".step-*.unfinished"):
        shutil.rmtree(folder, ignore_errors=True)


# run.json


def write_run(folder, run, files):
    """Write run.json: everything but tensors. `files`: {name: {"size", "crc32"}} of the shards."""
    encoded = [{key: encode_bytes(state) for key, state in s.items()} for s in run["rng_states"]]
    content = {"format": FORMAT, **run, "rng_states": encoded, "files": files}
    content["crc32"] = zlib.crc32(json.dumps(content).encode())
    with atomic_write(folder / RUN_FILE) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def read_run(folder):
    """What write_run wrote, with the folder as "path"; a checkpoint's dictionary without tensors.

    Raises CheckpointError, also if a shard is missing or has another size.
    """
    folder = Path(folder)
    try:
        mtime_ns = folder.stat().st_mtime_ns
        run = json.loads(read_text(folder / RUN_FILE))
        expected = run.pop("crc32")
        if zlib.crc32(json.dumps(run).encode()) != expected:
            raise ValueError("a checksum is wrong")
        run["rng_states"] = [
            {key: decode_bytes(text) for key, text in states.items()}
            for states in run["rng_states"]
        ]
    except Exception as error:  # whatever its JSON may lack
        raise damage_error(folder, f"{RUN_FILE} cannot be read ({one_line(error)})") from error
    check_content(folder / RUN_FILE, run, RUN_KEYS, RUN_CHECKS)
    check_files(folder, run["files"])
    return {**run, "path": folder, "mtime_ns": mtime_ns}


def are_files(files):
    """Whether the values of a dictionary have what describe_file returns."""
    return all(
        isinstance(described, dict) and type(described.get(key)) is int
        for described in files.values()
        for key in ("size", "crc32")
    )


def are_optimizers(parts):
    return all(map(is_optimizer, parts))


def is_optimizer(part):
    """Whether a value has the form of what sharded_checkpoint.describe_optimizers says."""
    if not isinstance(part, dict) or not isinstance(part.get("param_groups"), list):
        return False
    names = part.get("names")
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


RUN_CHECKS = {"files": are_files, "optimizer": are_optimizers}


def encode_bytes(tensor):
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def decode_bytes(text):
    return torch.tensor(list(base64.b64decode(text, validate=True)), dtype=torch.uint8)


# Shards


def describe_file(path):
    """{"size": bytes, "crc32"} of a shard."""
    crc32 = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc32 = zlib.crc32(chunk, crc32)
        return {"size": file.tell(), "crc32": crc32}


def check_files(folder, files):
    """Raise CheckpointError unless exactly these shards are there, each in its size."""
    problems = []
    for name, described in files.items():
        if not SHARD.fullmatch(name):
            raise damage_error(folder, f"{RUN_FILE} names a file {name!r}")
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != described["size"]:
            size = path.stat().st_size
            problems.append(f"{name} has {size:,} bytes, not {described['size']:,}")
    for path in folder.glob("*.safetensors"):
        if path.name not in files:
            problems.append(f"{path.name} belongs to another checkpoint")
    if problems:
        raise damage_error(folder, ", ".join(problems))


def check_crc32(run, part=slice(None)):
    """Raise CheckpointError if a shard has been changed. `part`: which shards to read."""
    folder = run["path"]
    for name in sorted(run["files"])[part]:
        try:
            is_intact = describe_file(folder / name) == run["files"][name]
        except OSError as error:
            raise damage_error(folder, f"{name} cannot be read ({error.strerror})") from error
        if not is_intact:
            raise damage_error(folder, f"{name} has another CRC32 than {RUN_FILE} says")


def damage_error(folder, problem):
    """A CheckpointError with the way to another checkpoint."""
    out_dir = folder.parent
    others = [other for other in step_folders(out_dir) if other != folder]
    advice = "There is no other one: --init_from=scratch starts over"
    if others:
        advice = f"To continue from {others[0]}, move {folder} away, then --init_from=resume"
    return CheckpointError(f"the checkpoint {folder} is damaged: {problem}. {advice}")


# Tensors


def load_merged(folder, keys=INFERENCE_KEYS):
    """A checkpoint's dictionary with whole tensors on the CPU, as load_checkpoint returns it.

    For one process. "optimizer" is loaded if it is in `keys`. Raises CheckpointError.
    """
    run = read_run(folder)
    check_crc32(run)
    prefixes = ("model.", "optimizer.") if "optimizer" in keys else ("model.",)
    tensors = empty_tensors(run["path"], prefixes)
    read_tensors(run["path"], tensors, no_dist=True)
    merged = {key: run[key] for key in keys if key != "model"}
    merged["model"] = {
        name.removeprefix("model."): tensor
        for name, tensor in tensors.items()
        if name.startswith("model.")
    }
    if run["model_config"].get("tie_embeddings") and "wte.weight" in merged["model"]:
        merged["model"]["lm_head.weight"] = merged["model"]["wte.weight"]
    if "optimizer" in keys:
        merged["optimizer"] = [merge_state(part, tensors) for part in run["optimizer"]]
    return {**merged, "path": run["path"], "mtime_ns": run["mtime_ns"]}


def empty_tensors(folder, prefixes):
    """{name: a whole tensor's space}, to read into. Raises CheckpointError if a part is missing."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    import_extra("safetensors", "sharded checkpoints")
    try:
        metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # safetensors and torch each raise their own types
        raise damage_error(folder, one_line(error)) from error
    tensors = {}
    for name, described in metadata.items():
        num_stored = sum(math.prod(chunk.sizes) for chunk in described.chunks)
        if num_stored != math.prod(described.size):
            raise damage_error(folder, f"a part of {name} is missing")
        if name.startswith(prefixes):
            tensors[name] = torch.empty(described.size, dtype=described.properties.dtype)
    return tensors


def read_tensors(folder, tensors, no_dist=False):
    """Fill {name: tensor} from the shards; of a DTensor each rank reads its own part.

    Raises CheckpointError if a name or a shape is another.
    """
    import torch.distributed.checkpoint as dcp

    import_extra("safetensors", "sharded checkpoints")
    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no_dist, although asked for, is warned of
            dcp.load(tensors, storage_reader=reader, no_dist=no_dist)
    except dcp.CheckpointException as error:  # a BaseException
        [(reason, _), *_] = error.failures.values()
        raise damage_error(folder, one_line(reason)) from error


def merge_state(part, tensors):
    """The state_dict of an optimizer. `part`: its "param_groups", and the "names" of its params."""
    state = {}
    for index, name in enumerate(part["names"]):
        prefix = f"optimizer.{name}."
        values = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        if values:
            state[index] = values
    return {"state": state, "param_groups": part["param_groups"]}
