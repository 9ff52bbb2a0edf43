"""Many processes, one run: what a torchrun job needs. In a single process every function here is a no-op.

`shard` distributes work, `gather` collects lists, `sum_gradients` adds up gradients. The model is replicated or, if one
GPU cannot train it, split by `shard_model`; then all processes must run it equally often.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def join(device: torch.device) -> None:
    """Join the process group if torchrun started this process: NCCL between GPUs, gloo between CPUs."""
    if launched() and not dist.is_initialized():
        # Others wait while one downloads or saves tens of gigabytes; torchrun notices by itself if one dies.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))


def launched() -> bool:
    """Did torchrun start this process?"""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def is_connection_error(error: Exception) -> bool:
    """Does this error mean that another process has ended or cannot be reached?"""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def leave() -> None:
    """Leave the process group. Only after a successful run: if a process is gone, this would wait for it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def local_rank() -> int:
    """This process's number on its machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def rank() -> int:
    """This process's number; process 0 is the one that writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(items: list) -> list:
    """This process's share: every world_size-th item, so that a list sorted by length is dealt out evenly."""
    return items[rank() :: world_size()]


def rounds(items: list, size: int) -> Iterator[list]:
    """This process's share of the items, up to `size` at a time; equally often in each process, so the last may be empty."""
    mine, largest_share = shard(items), -(-len(items) // world_size())
    return (mine[i : i + size] for i in range(0, largest_share, size))


def gather(items: list) -> list:
    """The shares of all processes, joined, in the order of their ranks."""
    if world_size() == 1:
        return items
    shares: list = [None] * world_size()
    dist.all_gather_object(shares, items)
    return [item for share in shares for item in share]


def from_first(function: Callable[[], Any]) -> Any:
    """Call the function in process 0; all processes return its result, or raise its exception."""
    result = error = None
    if rank() == 0:
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, error = gather([(result, error)])[0]
    if error:
        raise error
    return result


@contextmanager
def first_alone() -> Iterator[None]:
    """One process per machine goes first, so that the others find what it downloads."""
    if local_rank() > 0:
        gather([])
    yield
    if local_rank() == 0:
        gather([])


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up every parameter's gradient over the processes, in one message."""
    parameters = [p for p in parameters if p.requires_grad]
    if world_size() == 1 or any(map(_is_split, parameters)):  # FSDP sums those of split ones
        return
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(summed.view_as(p))


def sum_values(values: Tensor) -> Tensor:
    """A small tensor of statistics, added up over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


# --- A model that is split over the processes --------------------------------------------------------------------------
# FSDP2 takes a second to import, which only a run that splits its model spends.


def shard_model(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Split a T5's weights, and with them gradients and optimizer states, over the processes, and move it to the device.

    A block is gathered only while it computes (FSDP2), in `dtype`; storage and sums are float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for stack in (model.encoder, model.decoder):
        # The first block's table of position biases is read for all blocks, so it is a part of its own.
        fully_shard(stack.block[0].layer[0]["SelfAttention"].relative_attention_bias, mesh=mesh)
        for block in stack.block:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for method in ("encode", "decode", "logits"):
        register_fsdp_forward_method(model, method)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)  # a sum, as without sharding
        part.set_force_sum_reduction_for_comms(True)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather a split model within the block, where each process may use it any number of times, without gradients."""
    parts = _parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def _parts(model: nn.Module) -> list:
    """The FSDPModules into which a model is split; none if it is not."""
    return [module for module in model.modules() if hasattr(module, "unshard")]


def _is_split(tensor: Tensor) -> bool:
    """Is this a DTensor?"""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a split tensor; any other tensor unchanged."""
    return tensor.to_local() if _is_split(tensor) else tensor


def gathered_state(state: Any) -> Any:
    """A state_dict with split tensors gathered; all processes must call this, only the first gets the tensors.

    (torch.distributed.checkpoint.state_dict does this too, but takes a second to import.)
    """
    if isinstance(state, dict):
        return {key: gathered_state(value) for key, value in state.items()}
    if not _is_split(state):
        return state
    tensor = state.full_tensor()
    return tensor.cpu() if rank() == 0 else None


def load_state(part: Any, state: dict) -> None:
    """`part.load_state_dict(state)` for a complete state and a part, a model or an optimizer, that may be split."""
    if isinstance(part, torch.optim.Optimizer):
        parameters = [p for group in part.param_groups for p in group["params"]]
        shares = {i: {k: _share(v, parameters[i]) for k, v in kept.items()} for i, kept in state["state"].items()}
        state = state | {"state": shares}
    elif isinstance(part, nn.Module):
        own = part.state_dict()
        state = {name: _share(tensor, own.get(name)) for name, tensor in state.items()}
    part.load_state_dict(state)


def _share(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's shard of a complete tensor, split like `like`; the tensor itself if that is not split."""
    if not _is_split(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
