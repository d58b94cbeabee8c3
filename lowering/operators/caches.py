"""Key-value caches, contiguous or in pages, and how rows are written to them."""

from __future__ import annotations

import torch
from torch import Tensor

ND = "ND"
FRACTAL_NZ = "FRACTAL_NZ"


def tile(dtype: torch.dtype) -> int:
    """Elements in a row of a FRACTAL_NZ tile, which has 32 bytes."""
    return 32 // torch.empty((), dtype=dtype).element_size()


def write_pages(cache: Tensor, slots: Tensor, rows: Tensor, layout: str) -> None:
    """Write rows to the slots of a cache in pages, in place.

    Args:
        cache: ``(pages, page_size, heads, width)``, of any strides. In FRACTAL_NZ the memory of a
            page is ``(heads * width / c0, page_size, c0)``, whatever its shape says.
        slots: ``(n,)`` int64; slot ``s`` is row ``s % page_size`` of page ``s // page_size``. One
            that is negative is skipped; none may lie beyond the cache.
        rows: ``(n, heads, width)``.
        layout: ``ND`` or ``FRACTAL_NZ``.
    """
    pages, size, heads, width = cache.shape
    kept = slots >= 0
    slots, rows = slots[kept], rows[kept].to(cache.dtype)
    page, row = slots // size, slots % size
    if layout == ND:
        cache.index_put_((page, row), rows)
        return
    c0 = tile(cache.dtype)
    memory = cache.contiguous()
    tiles = memory.view(pages, heads * width // c0, size, c0)
    # Indices that a slice parts come first: (n, tiles, c0).
    tiles[page, :, row] = rows.reshape(-1, heads * width // c0, c0)
    if memory is not cache:
        cache.copy_(memory)


def read_pages(cache: Tensor, layout: str) -> Tensor:
    """``(pages, page_size, heads, width)`` of a cache in either layout."""
    if layout == ND:
        return cache
    pages, size, heads, width = cache.shape
    c0 = tile(cache.dtype)
    tiles = cache.contiguous().view(pages, heads * width // c0, size, c0)
    return tiles.transpose(1, 2).reshape(pages, size, heads, width)
