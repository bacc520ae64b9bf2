"""Saves and restores runs whose model is sharded (seugpt/checkpoint/sharded.py has the format)."""

import os
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from seugpt.checkpoint.sharded import (
    REPLACED,
    RUN_FILE,
    check_crc32,
    check_files,
    describe_file,
    read_tensors,
    step_folder,
    step_folders,
    step_of,
    unfinished_folder,
    write_run,
)
from seugpt.data.hub import import_extra
from seugpt.errors import CheckpointError, ConfigError, UserError, one_line
from seugpt.files import disk_space, sync_folder
from seugpt.training.optimizer import STATE_KEYS, parameters_of


def named_tensors(model, optimizers):
    """{name: tensor} of the weights and the optimizers' state, a tied matrix once.

    Not torch's get_state_dict, which makes an optimizer without state take a step and count it.
    """
    names = parameter_names(model)
    tensors = {f"model.{name}": param.detach() for param, name in names.items()}
    for optimizer in optimizers:
        for param, state in optimizer.state.items():
            tensors |= {f"optimizer.{names[param]}.{key}": value for key, value in state.items()}
    return tensors


def parameter_names(model):
    return {param: name for name, param in model.named_parameters()}


def describe_optimizers(model, optimizers):
    """What run.json says of the optimizers: all but the tensors of their state_dict."""
    names = parameter_names(model)
    return [
        {
            "param_groups": optimizer.state_dict()["param_groups"],
            "names": [names[param] for param in parameters_of(optimizer)],
        }
        for optimizer in optimizers
    ]


def restore_sharded(model, optimizers, run, dist_env):
    """Load the weights and the optimizers' state; each rank reads its own part.

    `run`: from read_run. Raises CheckpointError, on all ranks.
    """
    error = None
    try:
        check_crc32(run, slice(dist_env.rank, None, dist_env.world_size))
    except CheckpointError as damage:
        error = damage
    for damage in filter(None, dist_env.all_gather(error)):
        raise damage
    if run["step"]:  # before the first step AdamW has no state, and Muon has
        for optimizer in optimizers:
            for param in parameters_of(optimizer):
                for key in STATE_KEYS[type(optimizer)]:
                    is_step = key == "step"
                    empty = torch.zeros((), device=param.device) if is_step else param.detach()
                    optimizer.state[param][key] = torch.zeros_like(empty)
    read_tensors(run["path"], named_tensors(model, optimizers))


class ShardedSaver:
    """Writes checkpoints while the run goes on, one at a time; all ranks take part in each.

    A folder gets its name once it is whole. `close` must be called before the process ends.
    """

    def __init__(self, config, dist_env):
        """Raises ConfigError, on all ranks, if they do not share out_dir."""
        import_extra("safetensors", "sharded checkpoints")
        self.out_dir = Path(config.out_dir)
        self.keep_last = config.keep_last
        self.rank = dist_env.rank
        check_shared(self.out_dir, dist_env)
        timeout = timedelta(seconds=config.dist_timeout_s)
        # training uses the other group meanwhile
        self.group = dist.new_group(backend="gloo", timeout=timeout)
        self.executor = ThreadPoolExecutor(max_workers=1)
        self.pending = None

    def save(self, model, optimizers, ckpt):
        """Copy the tensors, and start to write them. `ckpt`: everything else.

        Raises CheckpointError if the checkpoint before could not be written.
        """
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.finish()
        run = {**ckpt, "optimizer": describe_optimizers(model, optimizers)}
        stager = DefaultStager(StagingOptions(False, False, False, False))
        tensors = stager.stage(named_tensors(model, optimizers))
        self.pending = self.executor.submit(self.write, run, tensors)

    def finish(self):
        """Wait for the checkpoint that is being written. Raises CheckpointError."""
        pending = self.pending
        self.pending = None
        if pending:
            pending.result()

    def close(self):
        try:
            self.finish()
        finally:
            self.executor.shutdown()

    def write(self, run, tensors):
        """In a thread of every rank: the shards, then run.json, then the folder's name."""
        folder = unfinished_folder(self.out_dir, run["step"])
        try:
            by_rank = self.write_shards(folder, tensors)
            error = [self.complete(folder, run, by_rank) if self.rank == 0 else None]
            dist.broadcast_object_list(error, group=self.group)
        finally:
            if self.rank == 0:
                shutil.rmtree(folder, ignore_errors=True)  # unless it has its name by now
        if error[0]:
            raise error[0]

    def write_shards(self, folder, tensors):
        """Write this rank's shard. On rank 0 returns, by rank, {file name: its size and CRC32}.

        Or the CheckpointError of a rank. Raises CheckpointError, on all ranks.
        """
        import torch.distributed.checkpoint as dcp

        if self.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
        dist.barrier(self.group)
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            dcp.save(tensors, storage_writer=writer, process_group=self.group)
        except dcp.CheckpointException as error:  # a BaseException
            [(rank, (reason, _)), *_] = error.failures.items()
            raise write_error(folder, reason, rank) from error
        own = folder.glob(f"shard-{self.rank + 1:05d}-*")  # none for a replica with nothing to add
        try:
            files = {path.name: describe_file(path) for path in own}
        except OSError as error:
            files = write_error(folder, error, self.rank)
        by_rank = [None] * dist.get_world_size(self.group) if self.rank == 0 else None
        dist.gather_object(files, by_rank, group=self.group)
        return by_rank

    def complete(self, folder, run, by_rank):
        """On rank 0: make a folder with shards a checkpoint. Returns the error, or None."""
        files = {}
        for described in by_rank:
            if isinstance(described, UserError):
                return described
            files |= described
        try:
            write_run(folder, run, files)
            check_files(folder, files)
            put_in_place(folder, step_folder(self.out_dir, run["step"]))
            self.rotate(run)
        except (OSError, UserError) as error:
            return write_error(folder, error, self.rank)
        return None

    def rotate(self, run):
        """Remove checkpoints up to now, except for the best and the latest keep_last (or one)."""
        up_to_now = [f for f in step_folders(self.out_dir) if step_of(f) <= run["step"]]
        for folder in up_to_now[max(self.keep_last, 1) :]:
            if step_of(folder) != run["train_state"]["best_step"]:
                remove_step_folder(folder)


def put_in_place(folder, target):
    """Give a whole folder its name. The one that it replaces is found until then."""
    replaced = target.with_name(target.name + REPLACED)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    folder.rename(target)
    sync_folder(target.parent)
    remove_step_folder(replaced)


def remove_step_folder(folder):
    """Remove run.json first, so that nobody takes what is left for a checkpoint."""
    (folder / RUN_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def write_error(folder, reason, rank):
    text = getattr(reason, "strerror", None) or one_line(reason)
    space = disk_space(reason, folder)
    return CheckpointError(
        f"cannot write a checkpoint to {folder.parent}, on rank {rank}: {text}{space}. "
        "The earlier ones are untouched"
    )


def check_shared(out_dir, dist_env):
    """Raise ConfigError, on all ranks, unless all of them see the same files in out_dir."""
    marker = None
    if dist_env.rank == 0:
        marker = out_dir / f".shared-{uuid.uuid4().hex}.{os.getpid()}.tmp"
        marker.touch()
    name = dist_env.broadcast(marker and marker.name)
    sees_marker = dist_env.all_gather((out_dir / name).exists())
    if marker:
        marker.unlink(missing_ok=True)
    blind = [str(rank) for rank, sees in enumerate(sees_marker) if not sees]
    if blind:
        raise ConfigError(
            f"out_dir={out_dir} is not the same folder on all machines: rank {', '.join(blind)} "
            "cannot see the files of rank 0. With dp_shard_size, give an --out_dir on a disk that "
            "all machines share"
        )
