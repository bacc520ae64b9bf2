"""Several processes, one model: how they connect, and which part of a step each computes."""

import contextlib
import os
import re
import sys
import time
import uuid
from dataclasses import dataclass, fields
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from seugpt.errors import ConfigError
from seugpt.training.sharding import shard_model


@dataclass(frozen=True)
class DistributedEnv:
    """This process among those that torchrun started; rank 0 of 1 without torchrun."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among those on this machine
    local_world_size: int = 1

    @classmethod
    def from_environment(cls):
        """What torchrun wrote to the environment. Raises ConfigError if something else did."""
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        names = [field.name.upper() for field in fields(cls)]
        given = {name: os.environ.get(name, "") for name in (*names, "MASTER_ADDR", "MASTER_PORT")}
        if all(given.values()) and all(given[name].isdecimal() for name in names):
            env = cls(*(int(given[name]) for name in names))
            is_local_valid = env.local_rank < env.local_world_size <= env.world_size
            is_port = given["MASTER_PORT"].isdecimal() and int(given["MASTER_PORT"]) < 2**16
            if is_local_valid and is_port and env.rank < env.world_size:
                return env
        found = [f"{name}={value}" if value else f"no {name}" for name, value in given.items()]
        raise ConfigError(
            f"the environment has {', '.join(found)}, which torchrun would "
            "not write. Start several processes with torchrun; for a single "
            "one remove WORLD_SIZE from the environment: unset WORLD_SIZE"
        )

    def split_step(self, accumulation_steps, batch_size):
        """This rank's part of a step: (micro-batches, slice of their rows or None for all).

        The ranks share the micro-batches; if there is only one, they share its rows. Either way all
        ranks together see what a single process would have seen. Raises ConfigError if the division
        leaves a remainder.
        """
        if accumulation_steps % self.world_size == 0:
            return accumulation_steps // self.world_size, None
        if accumulation_steps == 1 and batch_size % self.world_size == 0:
            return 1, slice(self.rank, None, self.world_size)
        name = "batch_size" if accumulation_steps == 1 else "gradient_accumulation_steps"
        value = batch_size if accumulation_steps == 1 else accumulation_steps
        below = value - value % self.world_size
        nearest = [f"--{name}={n}" for n in (below, below + self.world_size) if n > 0]
        raise ConfigError(
            f"{name}={value} cannot be divided among "
            f"{self.world_size} processes; use {' or '.join(nearest)}"
        )

    def distribute(self, model, device, shard_size=1):
        """The model on its device, with gradients averaged over the ranks in its backward pass.

        shard_size > 1 shards it in place over that many ranks (FSDP); else each rank has all (DDP).
        """
        if shard_size > 1:
            return shard_model(model, device, self.world_size, shard_size)
        model.to(device)
        if self.world_size == 1:
            return model
        device_ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids)

    def all_reduce_sum(self, tensor, device):
        """The sum of a tensor over the ranks."""
        if self.world_size > 1:
            tensor = tensor.to(device)
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_mean(self, tensor):
        """The mean of a tensor over the ranks."""
        return self.all_reduce_sum(tensor, tensor.device) / self.world_size

    def all_reduce_max(self, number, device):
        """The largest of the ranks' integers."""
        if self.world_size == 1:
            return number
        tensor = torch.tensor(number, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.item()

    def all_gather(self, value):
        """The values of all ranks, in order."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value):
        """The value of rank 0."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def check_same(self, values):
        """Raise ConfigError if the ranks would train differently: {name: value} must be equal."""
        by_rank = self.all_gather(values)
        different = []
        for name in dict.fromkeys(name for values in by_rank for name in values):
            found = [values.get(name) for values in by_rank]
            if any(value != found[0] for value in found):
                each = (f"{value} on rank {rank}" for rank, value in enumerate(found))
                different.append(f"{name} is {', '.join(each)}")
        if different:
            raise ConfigError(
                f"the processes differ: {'; '.join(different)}. Give all of them the same options, "
                "and copy latest.pt and data/ to every machine"
            )

    def pick_backend(self, name, device):
        """torch.distributed's backend; "auto" is NCCL between CUDA devices, else gloo.

        Raises ConfigError.
        """
        if self.world_size == 1:
            return None
        if device.type == "mps":
            raise ConfigError(
                "several processes cannot share MPS; use --device=cpu, or start without torchrun"
            )
        if name == "nccl" and device.type != "cuda":
            raise ConfigError(
                f"backend=nccl is for CUDA, and this run is on {device}; use --backend=auto"
            )
        if name == "auto":
            return "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        is_available = {
            "nccl": dist.is_nccl_available,
            "gloo": dist.is_gloo_available,
            "mpi": dist.is_mpi_available,
        }
        if not is_available[name]():
            raise ConfigError(f"backend={name} is not in this build of torch; use --backend=auto")
        return name


@contextlib.contextmanager
def skip_grad_sync(model):
    """A context in which replicas leave their gradients apart; shards are still reduced (FSDP)."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif hasattr(model, "set_requires_all_reduce"):  # an FSDPModule
        model.set_requires_all_reduce(False)
        yield
        model.set_requires_all_reduce(True)
    else:
        yield


@contextlib.contextmanager
def process_group(backend, timeout_s=600):
    """Connect the processes of a run; yields the function that ends this process with an exit code.

    Raises ConfigError if another process dies, or does not respond for timeout_s seconds.
    """
    if not backend:
        yield exit_if_nonzero
        return
    try:
        timeout = timedelta(seconds=timeout_s)
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        store = dist.PrefixStore(agree_on_prefix(store, rank, world_size), store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
        yield barrier_and_exit
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        is_lost = re.search("gloo|connection|timed out", first_line, re.IGNORECASE)
        if not is_lost and not isinstance(error, dist.DistError):
            raise
        raise ConfigError(
            "another process of this run died or does not respond; its message is above, or on "
            "its machine. Then continue from the last checkpoint with --init_from=resume. "
            f"torch says: {first_line}"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def agree_on_prefix(store, rank, world_size):
    """A prefix for the keys of these processes alone, the same on all ranks.

    torchrun's store (torch 2.13) outlives its processes and still has the addresses of those that
    died. Nothing in the environment names an attempt: TORCHELASTIC_RESTART_COUNT differs between
    nodes, and does not count the restarts that follow a node that joins or leaves. So each rank
    announces itself under a new name, and rank 0 answers the newest name of each.

    Raises DistStoreError if the others do not come within the store's timeout.
    """
    name = uuid.uuid4().hex
    if rank > 0:
        store.set(f"name of rank {rank}", name)
        prefix = store.get(f"prefix for {name}").decode()
        store.add(f"{prefix} joined", 1)
        return prefix
    prefix = name
    deadline = time.monotonic() + store.timeout.total_seconds()
    while store.add(f"{prefix} joined", 0) < world_size - 1:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"timed out waiting for {world_size - 1} other processes")
        for other in range(1, world_size):
            newest = store.get(f"name of rank {other}").decode()  # may be that of a dead process
            store.set(f"prefix for {newest}", prefix)
        time.sleep(0.05)
    return prefix


def exit_if_nonzero(code):
    """The end of a single process, which needs no barrier."""
    if code:
        sys.exit(code)


def barrier_and_exit(code):
    """End this process, without torch's teardown, once the work of all ranks is on the disk.

    Tearing down gloo's connections aborts a process now and then ("terminate called without an
    active exception", torch 2.13): in 5 of 12 runs in which one rank exited while another was still
    saving.
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
