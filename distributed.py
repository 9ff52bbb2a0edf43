"""Many processes, one run: what a torchrun job needs. With one process each of them does nothing.

The model is replicated. Work is dealt out by `shard`, lists come back together by `gather`, gradients by `sum_gradients`.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist


def start(device: torch.device) -> None:
    """Join the process group if torchrun started this process: NCCL between GPUs, gloo between CPUs."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leave the process group."""
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


def gather(items: list) -> list:
    """The shares of all processes, joined, in the order of their ranks."""
    if world_size() == 1:
        return items
    shares: list = [None] * world_size()
    dist.all_gather_object(shares, items)
    return [item for share in shares for item in share]


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Add up every parameter's gradient over the processes, in one message."""
    if world_size() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    for p in parameters:
        if p.grad is None:  # this process had no part in the batch
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for p, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(summed.view_as(p))


def sum_values(values: torch.Tensor) -> torch.Tensor:
    """A small tensor of statistics, added up over the processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values
