"""What attention for inference is held to: shapes first, then values."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_lowering.operators import attention
from npu_lowering.operators.attention import Attention, Lengths
from npu_lowering.operators.checking import (
    Size,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    require,
)
from npu_lowering.operators.operator import dtype_name
from npu_lowering.operators.value_checks import are_checked

SUPPORTED = "supported is attention over float16 and bfloat16"


def check_tensors(call: Attention, block_size: int) -> None:
    """Hold query, key, value and the ropes to the layout."""
    query, layout = call.query, call.layout
    check_dtype("query", query, torch.float16, torch.bfloat16)
    check_rank("query", query, len(layout), f"in layout {layout}")
    if layout == "BSH":
        _check_heads("query", query.shape[2], call.heads)
    else:
        _check_size("query", query, layout.index("N"), call.heads, "num_heads")
    if (call.query_rope is None) != (call.key_rope is None):
        given, missing = (
            ("query_rope", "key_rope") if call.key_rope is None else ("key_rope", "query_rope")
        )
        raise ValueError(f"{missing} is required with {given}: expected both or neither, got None")
    d = call.sizes[2]
    for name, tensor in {"key": call.key, "value": call.value, "key_rope": call.key_rope}.items():
        if tensor is None:
            continue
        if tensor.dtype in (torch.int8, torch.int32):
            raise NotImplementedError(
                f"{name} of {dtype_name(tensor.dtype)} is not supported yet; {SUPPORTED}"
            )
        check_dtype(name, tensor, query.dtype)
        if call.table is None:
            _check_rows(call, name, tensor)
        else:
            _check_pages(call, name, tensor, block_size)
    key_d = _d(call, call.key)
    require(ValueError, key_d == d, lambda: f"key must have the d of query, {d}, got {key_d}")
    if call.query_rope is not None and call.key_rope is not None:
        check_dtype("query_rope", call.query_rope, query.dtype)
        rope_d = _d(call, call.key_rope)
        shape = list(query.shape)
        shape[-1] = rope_d * call.heads if layout == "BSH" else rope_d
        check_shape("query_rope", call.query_rope, "of the shape of query with key_rope's d", shape)
    tensors = {
        "query": query,
        "key": call.key,
        "value": call.value,
        "query_rope": call.query_rope,
        "key_rope": call.key_rope,
        "pse_shift": call.pse,
        "atten_mask": call.mask,
        "block_table": call.table,
        "learnable_sink": call.sink,
    }
    check_devices("query", tensors)


def _d(call: Attention, x: Tensor) -> Size:
    """The elements of a head of a key or a value."""
    if x.dim() == 5:
        return x.shape[2] * x.shape[4]
    if x.dim() == 3 and (call.table is not None or call.layout == "BSH"):
        return x.shape[2] // call.kv_heads
    return x.shape[-1]


def _check_heads(name: str, h: Size, heads: int) -> None:
    require(
        ValueError,
        h % heads == 0,
        lambda: f"{name} must have a multiple of its {heads} heads in its last axis, got {h}",
    )


def _check_size(name: str, x: Tensor, axis: int, size: Size, what: str) -> None:
    require(
        ValueError,
        x.shape[axis] == size,
        lambda: f"{name} must have {what} = {size} in axis {axis}, got shape {tuple(x.shape)}",
    )


def _check_rows(call: Attention, name: str, x: Tensor) -> None:
    """A key, a value or a rope in the layout of query."""
    layout = call.layout
    check_rank(name, x, len(layout), f"in layout {layout}")
    for axis, letter in enumerate(layout):
        if letter == "B":
            _check_size(name, x, axis, call.query.shape[axis], "the b of query")
        elif letter in "ST":
            _check_size(name, x, axis, call.key.shape[axis], "the tokens of key")
        elif letter == "N":
            _check_size(name, x, axis, call.kv_heads, "num_key_value_heads")
        elif letter == "H":
            _check_heads(name, x.shape[axis], call.kv_heads)


def _check_pages(call: Attention, name: str, x: Tensor, block_size: int) -> None:
    """The same in pages."""
    require(
        ValueError,
        x.dim() in (3, 4, 5),
        lambda: (
            f"{name} must be (pages, page_size, h), (pages, n, page_size, d) or "
            f"(pages, n, d / 16, page_size, 16) with block_table, got shape {tuple(x.shape)}"
        ),
    )
    require(
        ValueError,
        block_size >= 1,
        lambda: f"block_size must be >= 1 with block_table, got {block_size}",
    )
    _check_size(name, x, 0, call.key.shape[0], "the pages of key")
    _check_size(name, x, {3: 1, 4: 2, 5: 3}[x.dim()], block_size, "block_size")
    if x.dim() == 3:
        _check_heads(name, x.shape[2], call.kv_heads)
        return
    _check_size(name, x, 1, call.kv_heads, "num_key_value_heads")
    if x.dim() == 5:
        _check_size(name, x, 4, 16, "a tile's columns")


def check_lengths(call: Attention) -> None:
    """Hold lengths to as many as there are sequences; their values are the kernel's to check."""
    b = call.sizes[0]
    if call.is_packed:
        if call.lengths is None or call.kv_lengths is None:
            missing = "actual_seq_lengths" if call.lengths is None else "actual_seq_lengths_kv"
            raise ValueError(f"{missing} is required in layout {call.layout}, got None")
        b = len(call.lengths)
        require(
            ValueError,
            len(call.kv_lengths) == b,
            lambda: (
                f"actual_seq_lengths_kv must have the {b} elements of actual_seq_lengths in "
                f"layout {call.layout}, got {len(call.kv_lengths or ())}"
            ),
        )
    else:
        for name, values in (
            ("actual_seq_lengths", call.lengths),
            ("actual_seq_lengths_kv", call.kv_lengths),
        ):
            count = None if values is None else len(values)
            require(
                ValueError,
                count is None or count == 1 or count >= b,
                lambda name=name, count=count: (  # type: ignore[misc]
                    f"{name} must have 1 element or the b = {b} of query, got {count}"
                ),
            )
    if call.table is None:
        return
    if call.kv_lengths is None:
        raise ValueError("actual_seq_lengths_kv is required with block_table, got None")
    check_dtype("block_table", call.table, torch.int32)
    check_rank("block_table", call.table, 2, "(b, most pages)")
    _check_size("block_table", call.table, 0, b, "the b of query")


def _kv_size(call: Attention) -> Size:
    """Keys of the longest sequence that there is room for."""
    if call.table is None:
        return dict(zip(call.layout, call.key.shape))["S"]
    size = call.key.shape[{3: 1, 4: 2, 5: 3}[call.key.dim()]]
    return call.table.shape[1] * size


def check_mask(call: Attention) -> None:
    """Hold atten_mask to what sparse_mode reads."""
    mask, mode = call.mask, call.sparse_mode
    if mask is None:
        if mode != attention.FULL:
            raise ValueError(f"atten_mask is required for sparse_mode {mode}, got None")
        return
    check_dtype("atten_mask", mask, torch.bool, torch.int8, torch.uint8)
    shape = tuple(mask.shape)
    b, s, _ = call.sizes
    if mode not in (attention.FULL, attention.MASK_ALONE):
        is_decode = s == 1 and not call.is_packed and call.query_rope is None
        require(
            ValueError,
            is_decode or (shape[-2:] == (2048, 2048) and all(size == 1 for size in shape[:-2])),
            lambda: (
                "atten_mask must be (2048, 2048), or that behind axes of one, for sparse_mode "
                f"{mode}, got shape {shape}"
            ),
        )
        return
    if call.is_packed:
        raise NotImplementedError(
            f"atten_mask for sparse_mode {mode} is not supported yet in layout {call.layout}; "
            "supported is sparse_mode 2, 3 or 4 there"
        )
    room = _kv_size(call)
    first = {2: (), 3: (1, b), 4: (1, b)}.get(mask.dim())

    def message() -> str:
        return (
            f"atten_mask must be (s, s_kv), (b or 1, s, s_kv) or (b or 1, 1, s, s_kv), with one "
            f"query (b, s_kv), where b = {b}, s = {s} and s_kv at least {room}, got shape {shape}"
        )

    require(ValueError, first is not None, message)
    require(ValueError, mask.shape[-1] >= room, message)
    if mask.dim() == 2 and s == 1:
        require(ValueError, mask.shape[0] == 1 or mask.shape[0] == b, message)
        return
    require(ValueError, mask.shape[-2] == s, message)
    if mask.dim() > 2:
        require(ValueError, mask.shape[0] == 1 or mask.shape[0] == b, message)
    if mask.dim() == 4:
        require(ValueError, mask.shape[1] == 1, message)


def check_pse(call: Attention) -> None:
    """Hold pse_shift to its shape."""
    pse = call.pse
    if pse is None:
        return
    if call.is_packed:
        raise NotImplementedError(
            f"pse_shift is not supported yet in layout {call.layout}; supported are those with b"
        )
    check_dtype("pse_shift", pse, call.query.dtype)
    b, s, _ = call.sizes
    room = _kv_size(call)

    def message() -> str:
        return (
            f"pse_shift must be (b or 1, n, s, s_kv), where b = {b}, n = {call.heads}, s at least "
            f"{s} and s_kv at least {room}, got shape {tuple(pse.shape)}"
        )

    require(ValueError, pse.dim() == 4, message)
    require(ValueError, pse.shape[0] == 1 or pse.shape[0] == b, message)
    require(ValueError, pse.shape[1] == call.heads, message)
    require(ValueError, pse.shape[2] >= s and pse.shape[3] >= room, message)


def look_at_values(call: Attention) -> None:
    """Hold lengths and pages to what there is; for kernels, since it reads data.

    Raises:
        ValueError: a length.
        IndexError: a page.
    """
    if call.is_packed or call.sizes[1] != 1:
        _look_at_lengths("actual_seq_lengths", call.lengths, call.sizes[1], call.is_packed)
    packed = call.is_packed and call.table is None
    tokens = call.key.shape[call.layout.index("T")] if packed else _kv_size(call)
    _look_at_lengths("actual_seq_lengths_kv", call.kv_lengths, tokens, packed)
    if call.table is not None:
        _look_at_pages(call, call.table)


def _look_at_lengths(name: str, values: Lengths | None, most: Size, totals: bool) -> None:
    before = 0
    for place, value in enumerate(values or ()):
        if not before <= value <= most:
            rule = " and not fall" if totals else ""
            raise ValueError(f"{name} must lie in [0, {most}]{rule}, got {name}[{place}] = {value}")
        before = value if totals else 0


def _look_at_pages(call: Attention, table: Tensor) -> None:
    """Pages up to the end of each sequence; what lies behind is not read."""
    if not are_checked(table):
        return
    b, most = table.shape
    size, pages = _kv_size(call) // most if most else 1, call.key.shape[0]
    given = list(call.kv_lengths or ())
    lengths = torch.tensor(given if len(given) == 1 else given[:b], device=table.device).expand(b)
    used = torch.arange(most, device=table.device) * size < lengths.unsqueeze(1)
    wrong = used & ((table < 0) | (table >= pages))
    if bool(wrong.any()):
        i, j = wrong.nonzero()[0].tolist()
        raise IndexError(
            f"block_table must lie in [0, {pages}), the pages of key, got "
            f"block_table[{i}, {j}] = {int(table[i, j])}"
        )
