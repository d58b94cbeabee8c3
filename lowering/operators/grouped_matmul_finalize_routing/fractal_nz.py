"""FRACTAL_NZ, the device's tiled weight layout, spelled out as a 5-D tensor.

``w5[e, a, b, i, j] == w[e, 16*b + i, 32*a + j]``: each (16, 32) tile is contiguous, and tiles run
down k first, then along n. Source: the interface document, whose w is ``(e, n1, k1, 16, 32)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npu_lowering import torch_internals
from npu_lowering.operators import huge_pages

K0 = 16
N0 = 32


def to_fractal_nz(w: Tensor) -> Tensor:
    """Spell a weight out in its FRACTAL_NZ form.

    Args:
        w: ``(e, k, n)``, int8. k and n need not be multiples of 16 and 32: the rest is padded with
            zeros, as the device's own cast does. The operator takes the padding of k; a padded n
            makes its n larger.

    Returns:
        ``(e, ceil(n/32), ceil(k/16), 16, 32)``, contiguous, of the dtype of w. On the CPU it lies
        on huge pages where the system has them (:mod:`npu_lowering.operators.huge_pages`).

    Raises:
        TypeError: w is not int8. Other widths have tiles of another size.
        ValueError: w is not 3-D.
    """
    _check_int8("w", w)
    torch._check_value(w.dim() == 3, lambda: f"w must be 3-D (e, k, n), got shape {tuple(w.shape)}")
    e, k, n = w.shape
    padded = torch.nn.functional.pad(w, (0, -n % N0, 0, -k % K0))
    tiles = padded.reshape(e, -(-k // K0), K0, -(-n // N0), N0)
    tiles = tiles.permute(0, 3, 1, 2, 4)
    if not torch_internals.is_plain(w) or w.device.type != "cpu":
        return tiles.contiguous()
    like = torch.empty(tiles.shape, dtype=w.dtype, device="meta")
    return huge_pages.empty_strided(like.size(), like.stride(), dtype=w.dtype).copy_(tiles)


def from_fractal_nz(w5: Tensor, k: int | None = None) -> Tensor:
    """Bring a FRACTAL_NZ weight back to its logical form.

    Args:
        w5: ``(e, n1, k1, 16, 32)``, int8.
        k: the rows that count; the rest of the last tile is padding. None means all, ``16 * k1``.

    Returns:
        ``(e, k, 32 * n1)``, contiguous, of the dtype of w5.

    Raises:
        TypeError: w5 is not int8.
        ValueError: w5 is not of that shape, or k does not end in the last tile.
    """
    _check_int8("w5", w5)
    torch._check_value(
        w5.dim() == 5 and w5.shape[3] == K0 and w5.shape[4] == N0,
        lambda: f"w5 must be 5-D (e, n1, k1, {K0}, {N0}), got shape {tuple(w5.shape)}",
    )
    rows = w5.shape[2] * K0
    if k is None:
        k = rows
    torch._check_value(
        -(-k // K0) == w5.shape[2],
        lambda: f"k must lie in ({rows - K0}, {rows}] for w5 of shape {tuple(w5.shape)}, got {k}",
    )
    return unfold(w5)[:, :k].contiguous()


def unfold(tiles: Tensor) -> Tensor:
    """``(..., n1, k1, 16, 32)`` to ``(..., 16 * k1, 32 * n1)``, padding included; unchecked."""
    *lead, n1, k1, k0, n0 = tiles.shape
    d = len(lead)
    order = [*range(d), d + 1, d + 2, d, d + 3]
    return tiles.permute(order).reshape(*lead, k1 * k0, n1 * n0)


def _check_int8(name: str, tensor: Tensor) -> None:
    torch._check_type(
        tensor.dtype == torch.int8,
        lambda: f"{name} must be int8, got {tensor.dtype}; other widths have other tiles",
    )
