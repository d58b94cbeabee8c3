"""What keeps a float32 matmul of int8 values exact."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

EXACT_K = 1 << 10
"""|x * w| <= 2**14, so a float32 sum of 2**10 products is at most 2**24: exact in any order."""


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keeps autocast from rounding the sums of a matmul to its own dtype."""
    if device.type == "meta" or not torch._C._is_any_autocast_enabled():
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
