"""Exact products of int8 matrices, summed in int32."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_lowering.operators.exact import int_product
from npu_lowering.operators.grouped_matmul_finalize_routing import native


def grouped(x: Tensor, w: Tensor, ends: list[int]) -> Tensor:
    """``x[r] @ w[g]`` for the rows r of group g.

    Args:
        x: ``(m, k)``, with k below :data:`.exact.OVERFLOW_K`.
        w: ``(e, k, n)``.
        ends: where each of the e groups of consecutive rows ends.

    Returns:
        int32 ``(m, n)``; rows past the last group are zeros.
    """
    out = torch.zeros((x.shape[0], w.shape[2]), dtype=torch.int32, device=x.device)
    if not out.numel() or not x.numel() or not ends or not ends[-1]:
        return out
    if x.device.type == "cpu" and native.available():
        native.grouped_matmul_combine(out, x, w, ends)
        return out
    start = 0
    for g, end in enumerate(ends):
        if end > start:
            out[start:end] = int_product(x[start:end], w[g])
        start = end
    return out


def grouped_scaled(
    x: Tensor, w: Tensor, ends: list[int], scale: Tensor, pertoken_scale: Tensor | None
) -> Tensor:
    """The same, times ``scale[g]`` and ``pertoken_scale[r]``, float32, in this order.

    Args:
        x: as of :func:`grouped`.
        w: as there.
        ends: as there.
        scale: float32 or bfloat16 ``(e, n)``.
        pertoken_scale: float32 ``(m,)``, or None.

    Returns:
        float32 ``(m, n)``; rows past the last group are zeros. There is no negative zero in it,
        since the compiled kernel adds to zeros.
    """
    out = torch.zeros((x.shape[0], w.shape[2]), dtype=torch.float32, device=x.device)
    if not out.numel() or not x.numel() or not ends or not ends[-1]:
        return out
    if x.device.type == "cpu" and native.available():
        native.grouped_matmul_combine(out, x, w, ends, scale, pertoken_scale=pertoken_scale)
        return out
    start = 0
    for g, end in enumerate(ends):
        if end > start:
            y = int_product(x[start:end], w[g]).float() * scale[g].float()
            if pertoken_scale is not None:
                y = y * pertoken_scale[start:end].unsqueeze(1)
            out[start:end] += y
        start = end
    return out


def scale_as_float(scale: Tensor) -> Tensor:
    """Float32 of a scale; an int64 one has a float32's bits in its low half."""
    if scale.dtype != torch.int64:
        return scale.float()
    low = scale & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32).view(torch.float32)
