"""Memory on huge pages, for copies of weights: large, kept for long, read from end to end.

Every 4 KiB of a gigabyte of weights has an address to translate, and a processor remembers a few
thousand of them. With pages of 2 MiB they are few, and filling the memory takes half the time.

Linux gives such pages to whoever asks for them by ``madvise``. They are asked for here alone, for
mappings made here and handed out as one tensor each, and never for memory that is not ours: the
advice costs time, changes the resident size and what a fork copies, and stays with the addresses.
The environment variable ``NPU_LOWERING_HUGE_PAGES=0`` turns it off.
"""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

VARIABLE = "NPU_LOWERING_HUGE_PAGES"
_SIZE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def empty_strided(size: Sequence[int], stride: Sequence[int], *, dtype: torch.dtype) -> Tensor:
    """A tensor as ``torch.empty_strided`` gives, on the CPU, on huge pages where that is possible.

    Where it is not (another system, the variable, a tensor smaller than such a page) its memory is
    torch's own. Otherwise its storage cannot be resized, as that of ``torch.from_numpy`` cannot.

    Args:
        size: the shape.
        stride: as many strides, in elements.
        dtype: of the tensor.

    Raises:
        ValueError: the variable is neither 0 nor 1.
    """
    steps = sum((length - 1) * step for length, step in zip(size, stride))
    bytes_ = 0 if 0 in size else (1 + steps) * dtype.itemsize
    page = _page_size() if _wanted() else None
    memory = None if page is None else _memory(bytes_, page)
    if memory is None:
        return torch.empty_strided(size, stride, dtype=dtype)
    return torch.empty(0, dtype=dtype).set_(memory.untyped_storage(), 0, size, stride)


def _wanted() -> bool:
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{VARIABLE} must be 0 or 1, got {value}")
    return value == "1"


@functools.cache
def _page_size() -> int | None:
    """Bytes of a huge page; None where the system has none to ask for."""
    if not hasattr(mmap, "MADV_HUGEPAGE") or not _SIZE_FILE.is_file():
        return None
    return int(_SIZE_FILE.read_text())


def _memory(size: int, page: int) -> Tensor | None:
    """So many bytes from the start of a page; those of whole pages are asked for as such."""
    whole = size // page * page
    if whole == 0:
        return None
    try:
        mapping = mmap.mmap(-1, size + page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # The mapping lives as long as a storage made of it does.
        start = -torch.frombuffer(mapping, dtype=torch.uint8, count=1).data_ptr() % page
        mapping.madvise(mmap.MADV_HUGEPAGE, start, whole)
    except OSError:  # no room, or a kernel that refuses: torch's own memory, or its own error
        return None
    return torch.frombuffer(mapping, dtype=torch.uint8, count=size, offset=start)
