"""Several processes, one model: which part of a step is whose, and how they are connected."""

import contextlib
import os
import re
import sys
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from seugpt.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started; rank 0 of 1 without torchrun."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # among those on this machine
    local_world_size: int = 1

    @classmethod
    def from_environment(cls):
        """What torchrun has put into the environment. Raises ConfigError where something else did."""
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls()
        names = [f.name.upper() for f in fields(cls)]
        given = {name: os.environ.get(name, "") for name in (*names, "MASTER_ADDR", "MASTER_PORT")}
        if all(given.values()) and all(given[name].isdecimal() for name in names):
            ranks = cls(*(int(given[name]) for name in names))
            if (
                ranks.rank < ranks.world_size
                and ranks.local_rank < ranks.local_world_size <= ranks.world_size
            ):
                return ranks
        found = ", ".join(
            f"{name}={value}" if value else f"no {name}" for name, value in given.items()
        )
        raise ConfigError(
            f"the environment has {found}: that is not torchrun's. Start several processes with torchrun; for one "
            "alone take WORLD_SIZE out of the environment: unset WORLD_SIZE"
        )

    def share(self, accumulation, batch_size):
        """This rank's part of a step: (micro-batches, rows of each; None: all rows).

        The ranks divide the micro-batches among them; where there is a single one, they divide its rows. Either way
        all ranks together see what one process would have seen. Raises ConfigError when it does not come out even.
        """
        if accumulation % self.world_size == 0:
            return accumulation // self.world_size, None
        if accumulation == 1 and batch_size % self.world_size == 0:
            return 1, slice(self.rank, None, self.world_size)
        name, value = (
            ("batch_size", batch_size)
            if accumulation == 1
            else ("gradient_accumulation_steps", accumulation)
        )
        below = value - value % self.world_size
        nearest = " or ".join(f"--{name}={n}" for n in (below, below + self.world_size) if n > 0)
        raise ConfigError(
            f"{name}={value} cannot be divided among {self.world_size} processes; use {nearest}"
        )

    def replicate(self, model, device):
        """The model, whose backward pass then gives all ranks the mean of their gradients."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None
        )

    def sum(self, tensor, device):
        """The sum of a tensor over the ranks."""
        if self.world_size > 1:
            dist.all_reduce(tensor := tensor.to(device))
        return tensor

    def mean(self, tensor):
        """The mean of a tensor over the ranks."""
        return self.sum(tensor, tensor.device) / self.world_size

    def gather(self, value):
        """What each rank has, in their order."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def largest(self, number, device):
        """The largest of the ranks' integers."""
        if self.world_size == 1:
            return number
        tensor = torch.tensor(number, device=device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.item()

    def from_first(self, value):
        """What rank 0 has."""
        values = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(values)
        return values[0]

    def demand_same(self, **what):
        """Raise ConfigError where the ranks would begin with different things: machines with folders of their own."""
        found = self.gather(what)
        if any(theirs != found[0] for theirs in found):
            each = "; ".join(f"rank {rank}: {theirs}" for rank, theirs in enumerate(found))
            raise ConfigError(
                f"the processes do not begin alike: {each}. Copy latest.pt and data/ to every machine"
            )

    def backend(self, name, device):
        """torch.distributed's backend: NCCL between CUDA devices, gloo elsewhere. Raises ConfigError."""
        if self.world_size == 1:
            return None
        if device.type == "mps":
            raise ConfigError(
                "several processes cannot share MPS; use --device=cpu, or start without torchrun"
            )
        if name == "nccl" and device.type != "cuda":
            raise ConfigError(
                f"backend=nccl connects CUDA devices, and this run is on {device}; use --backend=auto"
            )
        if name == "auto":
            return "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        if not {
            "nccl": dist.is_nccl_available,
            "gloo": dist.is_gloo_available,
            "mpi": dist.is_mpi_available,
        }[name]():
            raise ConfigError(f"backend={name} is not in this build of torch; use --backend=auto")
        return name


@contextlib.contextmanager
def connected(backend):
    """Around what the processes of a run do together; yields the function that ends this one, with its exit code.

    Raises ConfigError where another process has died or does not answer.
    """
    if not backend:
        yield lambda code: sys.exit(code) if code else None
        return
    try:
        store, rank, world_size = next(dist.rendezvous("env://"))
        # When torchrun starts the processes anew (torch 2.13), the store still has the addresses of those that died.
        store = dist.PrefixStore(
            f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store
        )
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)
        yield leave_together
    except RuntimeError as error:
        first_line = str(error).partition("\n")[0]
        if isinstance(error, dist.DistError) or re.search(
            "gloo|connection|timed out", first_line, re.IGNORECASE
        ):
            raise ConfigError(
                "another process of this run has died or does not answer; what it said stands above, or on its "
                f"machine. Then go on from the last checkpoint with --init_from=resume. The report: {first_line}"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def leave_together(code):
    """End this process when all ranks have come here, without torch's teardown; their work is done and on the disk.

    Taking down gloo's connections aborts a process now and then ("terminate called without an active exception",
    torch 2.13), in 5 of 12 runs where one rank left while another still saved.
    """
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
