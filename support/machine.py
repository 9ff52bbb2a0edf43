"""The machine: where and in what a run computes."""

import contextlib
import ctypes
from dataclasses import dataclass

import torch

from support import processes
from support.errors import InputError, input_errors
from support.settings import setting
from support.tables import say


@dataclass(frozen=True)
class MachineSettings:
    """How the work is done. Settings that change results beyond rounding are in FIXED; others may change on --resume."""

    device: str = setting("auto", "cpu, cuda, cuda:1, mps, ...; auto: a GPU if there is one")
    dtype: str = setting("auto", "arithmetic, float32 or bfloat16; auto: bfloat16 where the hardware has it")
    sampling_batch_size: int = setting(64, "questions answered at once", least=1)
    micro_batch_size: int = setting(
        0, "groups (a question with its outputs) in one forward pass of training; 0: the complete batch"
    )
    max_grad_norm: float = setting(1.0, "gradients with a larger norm are scaled down to this one")
    replay_size: int = setting(100_000, "samples kept for --replay all; the oldest are dropped first")
    shard_model: bool = setting(False, "split the model over the processes of torchrun: for flan-t5-xl and -xxl")
    compile: bool = setting(False, "fuse kernels with torch.compile: slower to start, then faster")
    gradient_checkpointing: bool = setting(False, "recompute blocks in the backward pass, which saves memory")

    def __post_init__(self):
        if self.dtype not in ("auto", "float32", "bfloat16"):
            wanted = "auto, bfloat16 or float32 (T5's activations overflow float16)"
            raise InputError(f"--dtype is {self.dtype}; it must be {wanted}")


FLOAT32_COST = (  # by the data sheets, T4 8 against 65 TFLOP/s, V100 16 against 125
    "this run computes in float32: a T4 or V100 multiplies eight times as fast in 16 bits, and activations take twice "
    "the memory"
)
FIXED = {"dtype", "max_grad_norm", "replay_size"}


def choose_device(machine: MachineSettings) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype to compute in: everything that depends on the hardware is decided here.

    Under torchrun, each process takes the GPU of its local rank. bfloat16 is chosen if the hardware multiplies in it.
    """
    name = machine.device if machine.device != "auto" else _best_device()
    with input_errors(f"--device {name} cannot be used here", "try --device cpu.", RuntimeError, AssertionError):
        device = torch.device(f"cuda:{processes.local_rank()}" if name == "cuda" else name)
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise RuntimeError("there is no Apple GPU")  # torch's own message fills a page
        torch.empty(1, device=device)
    has_bfloat16 = False  # also on Apple's GPU: macOS supports it only from version 14 on
    if device.type == "cpu":
        keep_freed_memory()
        native = torch.cpu.get_capabilities()
        has_bfloat16 = native.get("amx_bf16") or native.get("avx512_bf16")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if machine.dtype != "auto":
        return device, getattr(torch, machine.dtype)
    if device.type == "cuda" and not has_bfloat16 and processes.local_rank() == 0:
        say(f"{torch.cuda.get_device_name(device)} has no bfloat16, so {FLOAT32_COST}")
    return device, torch.bfloat16 if has_bfloat16 else torch.float32


def _best_device() -> str:
    """What --device auto means. A Mac has a single GPU, so the processes of torchrun do not use it."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and not processes.launched() else "cpu"


def place(
    model: torch.nn.Module, machine: MachineSettings, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """The model on its device, configured by the settings."""
    if machine.shard_model:
        processes.shard_model(model, device, dtype)
    model.compute_dtype = dtype
    model.gradient_checkpointing = machine.gradient_checkpointing
    if machine.compile:
        fuse_kernels(model)
    return model.to(device)


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for later allocations, as GPU allocators do.

    By default it returns them to the operating system, which clears every page again when the next layer needs one.
    Without glibc, this does nothing.
    """
    mmap_max, trim_threshold = -4, -1  # the numbers of M_MMAP_MAX and M_TRIM_THRESHOLD in <malloc.h>
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, -1)


def fuse_kernels(model: torch.nn.Module) -> None:
    """--compile: each block by itself, so that equal ones share a compilation, for all batch sizes and lengths."""
    for block in (*model.encoder.block, *model.decoder.block):
        block.compile(dynamic=True)


def describe(model: torch.nn.Module) -> str:
    """The size of a model, its device and its dtype."""
    size = sum(p.numel() for p in model.parameters())
    return f"{size:,} parameters, on {model.device} in {str(model.compute_dtype).removeprefix('torch.')}"
