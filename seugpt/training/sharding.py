"""FSDP2: every rank keeps a shard of each parameter, its gradient and its optimizer state.

A sharded parameter is a DTensor, divided by rows. The blocks are gathered one by one, as they
compute. torch's modules for it are imported where they are used: other runs need none of them.

Shapes: C columns of a matrix.
"""

import torch

from model import Block, compile_model, rope_cos_sin
from seugpt.errors import ConfigError
from seugpt.training.run_description import count_of


def check_sharding(config, dtype, world_size):
    """Raise ConfigError for options that cannot be used with this dp_shard_size, all in one."""
    shard_size = config.dp_shard_size
    if shard_size == 1:
        return
    problems = []
    if world_size % shard_size:
        divisors = [str(n) for n in range(1, world_size + 1) if world_size % n == 0]
        problems.append(
            f"dp_shard_size={shard_size} does not divide the "
            f"{count_of(world_size, 'process', 'processes')} of this run; "
            f"use --dp_shard_size={' or '.join(divisors)}, or start {shard_size} with torchrun"
        )
    if dtype == torch.float16:
        problems.append(
            f"dp_shard_size={shard_size} cannot scale float16 gradients; "
            "use --dtype=bfloat16 or float32"
        )
    if config.snapshot_interval:
        problems.append(
            f"snapshot_interval={config.snapshot_interval} needs whole layers; "
            f"use --snapshot_interval=0 with dp_shard_size={shard_size}"
        )
    if problems:
        raise ConfigError("; ".join(problems))


def shard_model(model, device, world_size, shard_size):
    """Shard a model in place over `shard_size` ranks, and move it to their devices block by block.

    All groups of shard_size ranks are replicas of each other (HSDP). Its methods are the same, but
    all ranks must call the model together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    names = ("dp_shard",)
    shape = (shard_size,)
    if shard_size < world_size:
        names = ("dp_replicate", *names)
        shape = (world_size // shard_size, *shape)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.register_forward_hook(reshard_after_evaluation)
    return model


def reshard_after_evaluation(model, inputs, output):
    """Free what the root gathered: without a backward pass it would stay whole."""
    if not torch.is_grad_enabled():
        model.reshard()


def is_sharded(tensor):
    """Whether it is a DTensor."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor):
    """A tensor that may be sharded, whole; then all ranks must ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_tensor(tensor):
    """This rank's shard of a tensor, or all of one that is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_like(tensor, param):
    """This rank's shard of a whole tensor, divided as `param` is."""
    from torch.distributed.tensor import distribute_tensor

    # src_data_rank=None: every rank has the whole tensor, so none is sent.
    return distribute_tensor(tensor, param.device_mesh, param.placements, src_data_rank=None)


# Muon


def gather_matrices(stack, params):
    """Give each rank whole matrices: its share of the layers.

    `stack`: the rank's rows of all layers, (layers, own rows, C). Returns (own layers, rows, C).
    """
    if not is_sharded(params[0]):
        return stack
    return move_shards(stack, params, from_dim=1, to_dim=0)


def scatter_matrices(stack, params):
    """The reverse of gather_matrices."""
    if not is_sharded(params[0]):
        return stack
    return move_shards(stack, params, from_dim=0, to_dim=1)


def move_shards(stack, params, from_dim, to_dim):
    """Divide the matrices of all layers, of which a rank has a shard, along another dimension."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    shape = torch.Size((len(params), *params[0].shape))
    stride = torch.empty(shape, device="meta").stride()
    mesh = params[0].device_mesh["dp_shard"]  # replicas compute the same
    placement = [Shard(from_dim)]
    whole = DTensor.from_local(
        stack.contiguous(), mesh, placement, run_check=False, shape=shape, stride=stride
    )
    if mesh.device_type == "cpu":  # gloo has no all-to-all, and torch would warn of it
        whole = whole.redistribute(placements=[Replicate()])
    return whole.redistribute(placements=[Shard(to_dim)]).to_local()


# torch.compile


def try_compiling_block(config, rows, device, autocast):
    """Compile a block and a pass through it. Returns None, or in one line why that fails.

    It is not the model's: a rank that failed in one of those would leave the others waiting.
    """
    block = Block(config, layer_idx=0).to(device)

    def warmup():
        T = config.block_size
        x = torch.zeros((rows, T, config.n_embd), device=device, requires_grad=True)
        positions = torch.arange(T, device=device)
        cos_sin = rope_cos_sin(positions, config) if config.position == "rope" else None
        with autocast:
            y = block(x, cos_sin, None)
        y.sum().backward()

    return compile_model(block, warmup)


def compile_blocks(model):
    """Compile what each block computes, within the hooks that gather its parameters."""
    for block in model.h:
        block.forward = torch.compile(block.forward, dynamic=False)
