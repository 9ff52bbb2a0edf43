"""What a run computes on and in, on hardware that is not here: its capabilities are stated instead of asked for."""

from types import SimpleNamespace

import pytest
import torch

from support import machine, processes
from support.errors import InputError
from support.machine import MachineSettings, choose_device

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


def test_a_device_that_is_not_there_is_named_in_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"^--device mps cannot be used here \(there is .*\); try --device cpu\.$"):
        choose_device(MachineSettings(device="mps"))
