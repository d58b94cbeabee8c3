"""Matmuls of int8 matrices that are exact."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from npu_lowering.torch_internals import int_mm, without_autocast

__all__ = [
    "EXACT_K",
    "OVERFLOW_K",
    "int_product",
    "is_plain",
    "plain",
    "product",
    "without_autocast",
]

EXACT_K = 1 << 10
"""|x * w| <= 2**14, so a float32 sum of 2**10 products is at most 2**24: exact in any order."""

OVERFLOW_K = 1 << 17
"""The first k at which an int32 sum may overflow: 2**17 * 2**14 = 2**31."""


def product(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w`` of two int8 matrices of any k: int32, or int64 values that fit int32.

    Raises:
        OverflowError: k is at least :data:`OVERFLOW_K`, and a sum leaves int32.
    """
    k = x.shape[1]
    if k < OVERFLOW_K:
        return int_product(x, w)
    acc = x.new_zeros((x.shape[0], w.shape[1]), dtype=torch.int64)
    step = OVERFLOW_K - 1
    for first in range(0, k, step):
        acc += int_product(x[:, first : first + step], w[first : first + step])
    limits = torch.iinfo(torch.int32)
    low, high = torch.aminmax(acc)
    if int(low) < limits.min or int(high) > limits.max:
        raise OverflowError(
            f"x and w must keep each sum of products in int32, got sums from {int(low)} to "
            f"{int(high)} with k = {k}"
        )
    return acc


def int_product(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w`` of two int8 matrices, int32; k is below :data:`OVERFLOW_K`."""
    if x.device.type == "cpu" and _int_mm_is_exact():
        return int_mm(plain(x), plain(w))
    acc = torch.zeros((x.shape[0], w.shape[1]), dtype=torch.int32, device=x.device)
    for first in range(0, x.shape[1], EXACT_K):
        part = slice(first, first + EXACT_K)
        with without_autocast(x.device):
            acc += torch.mm(x[:, part].float(), w[part].float()).int()
    return acc


def is_plain(matrix: Tensor) -> bool:
    """Whether rows lie one after the other, each without gaps.

    ``is_contiguous`` does not say so: the stride of an axis of one element may be anything, also 0,
    and ``torch._int_mm`` takes it for the distance between rows.
    """
    return matrix.stride(1) == 1 and matrix.stride(0) >= matrix.shape[1]


def plain(matrix: Tensor) -> Tensor:
    """The same, rows one after the other."""
    if is_plain(matrix):
        return matrix
    return matrix.clone(memory_format=torch.contiguous_format)


@functools.cache
def _int_mm_is_exact() -> bool:
    """Whether this build's ``torch._int_mm`` takes CPU tensors and never saturates.

    Builds before torch 2.3 have it for CUDA only, and x86 processors without VNNI may go through
    16-bit sums that saturate. The largest products of every sign show either.
    """
    for rows in (1, 33):
        for a, b in ((-128, -128), (127, 127), (-128, 127), (127, -128)):
            x = torch.full((rows, 64), a, dtype=torch.int8)
            w = torch.full((64, 32), b, dtype=torch.int8)
            try:
                acc = int_mm(x, w)
            except (RuntimeError, NotImplementedError):
                return False
            if not torch.equal(acc, torch.full((rows, 32), 64 * a * b, dtype=torch.int32)):
                return False
    return True
