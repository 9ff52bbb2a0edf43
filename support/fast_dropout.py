"""Dropout that costs less on a CPU, where drawing the random bits is most of its time."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU each 64 random bits decide about four values, which takes a third to half of the time."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)"""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = bits[: x.numel()].view(x.shape) >= int(self.p * 2**16) - 2**15
        return x * (keep / (1 - self.p)).to(x.dtype)
