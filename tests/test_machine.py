"""What a run computes on and in, on hardware that is not here: its capabilities are stated instead of asked for."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from support import machine, processes
from support.errors import InputError
from support.machine import MachineSettings, choose_device
from tests.test_reliability import command, write_model

CUDA, MPS, CPU = torch.device("cuda:0"), torch.device("mps"), torch.device("cpu")


@pytest.fixture
def hardware(monkeypatch):
    """A function that states what there is."""

    def state(gpu=None, bfloat16=False, mps=False, cpu_bfloat16=False, local_rank=0, launched=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu)
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16 or including_emulation
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": cpu_bfloat16})
        monkeypatch.setattr(processes, "local_rank", lambda: local_rank)
        monkeypatch.setattr(processes, "launched", lambda: launched)
        # No memory is taken on a device that is not there.
        monkeypatch.setattr(machine, "torch", SimpleNamespace(**vars(torch) | {"empty": lambda *_, device: None}))

    return state


def test_the_best_device_and_its_arithmetic(hardware, capsys):
    auto = MachineSettings()
    for there, expected in (
        ({}, (CPU, torch.float32)),
        ({"cpu_bfloat16": True}, (CPU, torch.bfloat16)),
        ({"mps": True, "cpu_bfloat16": True}, (MPS, torch.float32)),
        ({"mps": True, "launched": True}, (CPU, torch.float32)),
        ({"gpu": "NVIDIA H100", "bfloat16": True, "mps": True}, (CUDA, torch.bfloat16)),
        ({"gpu": "NVIDIA H100", "bfloat16": True, "local_rank": 3}, (torch.device("cuda:3"), torch.bfloat16)),
    ):
        hardware(**there)
        assert choose_device(auto) == expected, there
    assert not capsys.readouterr().out
    hardware(gpu="Tesla T4", cpu_bfloat16=True)
    assert choose_device(auto) == (CUDA, torch.float32)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("Tesla T4 has no bfloat16, so this run computes in float32: ") and "eight times" in said
    assert choose_device(MachineSettings(dtype="bfloat16")) == (CUDA, torch.bfloat16)
    hardware(gpu="Tesla T4", local_rank=1)  # the first process says it
    assert choose_device(auto) == (torch.device("cuda:1"), torch.float32)
    assert choose_device(MachineSettings(device="cpu")) == (CPU, torch.float32)
    assert not capsys.readouterr().out


def test_float16_is_refused_with_reason_and_remedy(capsys):
    for dtype in ("float16", "half"):
        assert train.main(["--dtype", dtype]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"--dtype is {dtype}" in said and "bfloat16 or float32" in said and "overflow" in said
    with pytest.raises(ValueError, match="overflow"):
        MachineSettings(dtype="float16")


def test_a_device_that_is_not_there_is_named_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^--device mps cannot be used here \(there is .*\); try --device cpu\.$"):
        choose_device(MachineSettings(device="mps"))


class NoFloat64(TorchDispatchMode):
    """Apple's GPU has no float64."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        made = [x.dtype for x in tree_leaves(result) if torch.is_tensor(x)]
        assert torch.float64 not in made and kwargs.get("dtype") != torch.float64, function
        self.calls = getattr(self, "calls", 0) + 1
        return result


@pytest.mark.parametrize("method", ["hir", "farl", "sft", "ppo", "grpo"])
def test_no_method_needs_float64(tmp_path, method):
    model = write_model(tmp_path / "model", dropout=0.1)
    with NoFloat64() as mode:
        assert train.main([*command(model, tmp_path / "out", "--method", method, "--iterations", "1")[1:]]) == 0
    assert mode.calls > 1000
