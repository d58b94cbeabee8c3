"""What keeps a float32 matmul of int8 values exact."""

from __future__ import annotations

from npu_lowering.torch_internals import without_autocast

__all__ = ["EXACT_K", "without_autocast"]

EXACT_K = 1 << 10
"""|x * w| <= 2**14, so a float32 sum of 2**10 products is at most 2**24: exact in any order."""
