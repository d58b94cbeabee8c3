"""npu_scatter_pa_kv_cache: keys and values of tokens, written to the pages of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators import caches
from npu_lowering.operators.checking import (
    check_choice,
    check_devices,
    check_dtype,
    check_indices,
    check_rank,
    check_shape,
    must_be_none,
    require,
)
from npu_lowering.operators.operator import GENode, MutableTensor, NodeCall, Operator

_NORM, _NZ = "Norm", "PA_NZ"
_SUPPORTED = "supported is one slot for each token, in key of three axes"


@dataclass(frozen=True)
class ScatterPaKvCache:
    """A checked call.

    Attributes:
        rows: key and value, ``(tokens, heads, d)`` each.
        caches: their caches; written.
        slots: ``(tokens,)``.
        is_nz: whether the caches are in tiles.
    """

    rows: tuple[Tensor, Tensor]
    caches: tuple[Tensor, Tensor]
    slots: Tensor
    is_nz: bool


def check(
    key: Tensor,
    value: Tensor,
    key_cache: MutableTensor,
    value_cache: MutableTensor,
    slot_mapping: Tensor,
    *,
    compress_lens: Tensor | None = None,
    compress_seq_offsets: Tensor | None = None,
    seq_lens: Tensor | None = None,
    cache_mode: str | None = _NZ,
) -> ScatterPaKvCache:
    """Write the keys and values of tokens to the slots of a cache in pages, in place.

    Args:
        key: ``(tokens, heads, d)``; the form of four axes is not supported.
        value: ``(tokens, heads, d_v)`` of the dtype of key.
        key_cache: ``(pages, heads * d / c0, page_size, c0)`` for PA_NZ, ``(pages, page_size, heads,
            d)`` for Norm, of the dtype of key. Written.
        value_cache: the same with d_v. Written.
        slot_mapping: ``(tokens,)`` int32 or int64: slot ``s`` is row ``s % page_size`` of page
            ``s // page_size``. A token with a negative one is not written. Two tokens for one slot
            leave either of them there.
        compress_lens: not supported; None.
        compress_seq_offsets: not supported; None.
        seq_lens: not supported; None.
        cache_mode: ``"PA_NZ"``, or ``"Norm"`` or None for pages by rows.

    Returns:
        Nothing.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or the mode is wrong.
        IndexError: a slot lies beyond the cache.
        NotImplementedError: the compressed form is asked for.

    Source: torch_npu's interface document and op-plugin's golden, which skips negative slots.
    """
    for name, tensor in (
        ("compress_lens", compress_lens),
        ("compress_seq_offsets", compress_seq_offsets),
        ("seq_lens", seq_lens),
    ):
        must_be_none(name, tensor, _SUPPORTED)
    mode = _NORM if cache_mode is None else cache_mode
    check_choice("cache_mode", mode, {_NZ: "pages in tiles", _NORM: "pages by rows"})
    if key.dim() == 4:
        raise NotImplementedError(
            f"key of shape {tuple(key.shape)} is not supported yet; {_SUPPORTED}"
        )
    check_rank("key", key, 3, "(tokens, heads, d)")
    tokens, heads, _ = key.shape
    check_dtype("value", value, key.dtype)
    check_rank("value", value, 3, "(tokens, heads, d_v)")
    check_shape("value", value, "(tokens, heads, d_v)", (tokens, heads, value.shape[2]))
    check_dtype("slot_mapping", slot_mapping, torch.int32, torch.int64)
    check_shape("slot_mapping", slot_mapping, "(tokens,)", (tokens,))
    check_rank("key_cache", key_cache, 4, "(pages, ..., ..., ...)")
    pages, size = key_cache.shape[0], key_cache.shape[2 if mode == _NZ else 1]
    require(
        ValueError, size > 0, lambda: f"key_cache must have a page_size of at least 1, got {size}"
    )
    pairs = (("key_cache", key_cache, key), ("value_cache", value_cache, value))
    for name, cache, rows in pairs:
        check_dtype(name, cache, key.dtype)
        check_rank(name, cache, 4, "(pages, ..., ..., ...)")
        if mode == _NORM:
            form = "(pages, page_size, heads, d)"
            check_shape(name, cache, form, (pages, size, heads, rows.shape[2]))
            continue
        c0 = cache.shape[3]
        tiles = heads * rows.shape[2] // max(c0, 1)
        form = "(pages, heads * d / c0, page_size, c0)"
        check_shape(name, cache, form, (pages, tiles, size, c0))
        _check_tiles(name, heads * rows.shape[2], c0)
    tensors = {
        "key": key,
        "value": value,
        "key_cache": key_cache,
        "value_cache": value_cache,
        "slot_mapping": slot_mapping,
    }
    check_devices("key", tensors)
    return ScatterPaKvCache((key, value), (key_cache, value_cache), slot_mapping, mode == _NZ)


def _check_tiles(name: str, width: int, c0: int) -> None:
    require(
        ValueError,
        c0 > 0 and width % c0 == 0,
        lambda: f"{name} must have in its last axis a divisor of heads * d = {width}, got {c0}",
    )


def fake(call: ScatterPaKvCache) -> None:  # noqa: ARG001 -- there is no result
    """Nothing."""
    return


def cpu(call: ScatterPaKvCache) -> None:
    """The caches, written, on any device."""
    first = call.caches[0]
    size = first.shape[2 if call.is_nz else 1]
    check_indices("slot_mapping", call.slots, None, first.shape[0] * size)
    slots = call.slots.to(torch.int64)
    for cache, rows in zip(call.caches, call.rows):
        if not call.is_nz:
            caches.write_pages(cache, slots, rows, caches.ND)
            continue
        # A row of tiles is a row of a page whose heads are the tiles.
        tiles = rows.reshape(rows.shape[0], cache.shape[1], cache.shape[3])
        caches.write_pages(cache.transpose(1, 2), slots, tiles, caches.ND)


def _arguments(node: NodeCall) -> dict[str, Any]:
    mode = str(node.attr("scatter_mode", "None"))
    if mode != "None":
        raise NotImplementedError(f"scatter_mode must be 'None', got {mode!r}")
    return {
        "key": node["key"],
        "value": node["value"],
        "key_cache": node.writable("key_cache"),
        "value_cache": node.writable("value_cache"),
        "slot_mapping": node["slot_mapping"],
        "compress_lens": node.get("compress_lens"),
        "compress_seq_offsets": node.get("compress_seq_offsets"),
        "seq_lens": node.get("seq_lens"),
        "cache_mode": str(node.attr("cache_mode", _NORM)),
    }


OPERATOR = Operator(
    name="npu_scatter_pa_kv_cache",
    check=check,
    returns="()",
    fake=fake,
    cpu=cpu,
    portable=cpu,
    nodes=(GENode("ScatterPaKvCache", _arguments, in_place=True),),
    summary="keys and values of tokens, written to the pages of a cache",
    unsupported="the compressed form: key of four axes, compress_lens, compress_seq_offsets, "
    "seq_lens",
    exactness="exact",
    source="torch_npu's interface document, op-plugin's golden",
)
