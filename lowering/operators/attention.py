"""Attention over sequences of their own lengths, contiguous or in pages: the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import Size

# ints, or the symbols of a tracer.
Lengths = Sequence[Any]

# sparse_mode
FULL = 0
MASK_ALONE = 1
LEFT_UP_CAUSAL = 2
RIGHT_DOWN_CAUSAL = 3
BAND = 4

UNLIMITED = 2147483647
"""What pre_tokens and next_tokens say for no limit."""


@dataclass(frozen=True)
class Attention:
    """A checked call.

    Attributes:
        query: in the layout.
        key: in the layout, or pages.
        value: the same; its d may be another.
        query_rope: further elements of each row of query, in the layout, or None.
        key_rope: of each row of key, or None.
        pse: added to the scaled scores, broadcast over ``(b, n, s, s_kv)``, or None.
        mask: nonzero where a key is not seen, or None.
        lengths: of each sequence of query; where rows are packed, running totals. None for all.
        kv_lengths: the same of key; in pages never running totals.
        table: ``(b, most pages)``, the pages of each sequence, or None.
        sink: ``(n,)``, a score without a value, or None.
        heads: of query.
        kv_heads: of key and value.
        scale: of the scores.
        before: how far behind its own place a query sees keys.
        after: how far ahead.
        layout: of query.
        out_layout: of the result.
        sparse_mode: how mask, before and after are read.
        gives_lse: whether the logarithms of the sums are given out.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    query_rope: Tensor | None
    key_rope: Tensor | None
    pse: Tensor | None
    mask: Tensor | None
    lengths: Lengths | None
    kv_lengths: Lengths | None
    table: Tensor | None
    sink: Tensor | None
    heads: int
    kv_heads: int
    scale: float
    before: int
    after: int
    layout: str
    out_layout: str
    sparse_mode: int
    gives_lse: bool

    @property
    def is_packed(self) -> bool:
        """Whether sequences lie one behind another in one axis."""
        return "T" in self.layout

    @property
    def sizes(self) -> tuple[Size, Size, Size]:
        """b, s and d of query; b is 1 and s all rows where sequences are packed."""
        shape = dict(zip(self.layout, self.query.shape))
        d = shape["H"] // self.heads if "H" in shape else shape["D"]
        return shape.get("B", 1), shape["T"] if "T" in shape else shape["S"], d

    @property
    def value_d(self) -> Size:
        """D of value, and of the result."""
        if self.value.dim() == 5:
            return self.value.shape[2] * self.value.shape[4]
        if self.value.dim() == 3 and (self.table is not None or self.layout == "BSH"):
            return self.value.shape[2] // self.kv_heads
        return self.value.shape[-1]

    @property
    def out_shape(self) -> list[Size]:
        """Of the result."""
        b, s, _ = self.sizes
        sizes = {"B": b, "S": s, "T": s, "N": self.heads, "D": self.value_d}
        sizes["H"] = self.heads * self.value_d
        return [sizes[axis] for axis in self.out_layout]

    @property
    def lse_shape(self) -> list[Size]:
        """Of the logarithms, empty where they are not asked for."""
        if not self.gives_lse:
            return [0]
        b, s, _ = self.sizes
        return [s, self.heads, 1] if self.is_packed else [b, self.heads, s, 1]


def fake(call: Attention) -> tuple[Tensor, Tensor]:
    """The results without their values."""
    lse = call.query.new_empty(call.lse_shape, dtype=torch.float32)
    return call.query.new_empty(call.out_shape), lse


def by_heads(x: Tensor, layout: str, heads: int) -> Tensor:
    """``(b, heads, s, d)`` of a tensor in a layout; b is 1 where the layout has none."""
    if layout == "BSH":
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)
    if layout == "BSND":
        return x.transpose(1, 2)
    if layout == "BNSD":
        return x
    return x.transpose(0, 1).unsqueeze(0) if layout == "TND" else x.unsqueeze(0)


def to_layout(x: Tensor, layout: str) -> Tensor:
    """The other way."""
    if layout == "BSH":
        return x.transpose(1, 2).flatten(2)
    if layout == "BSND":
        return x.transpose(1, 2)
    if layout == "NBSD":
        return x.transpose(0, 1)
    if layout == "BNSD":
        return x
    return x.squeeze(0).transpose(0, 1) if layout == "TND" else x.squeeze(0)


def pages_by_rows(x: Tensor, heads: int) -> Tensor:
    """``(pages, page_size, heads, d)`` of pages in any of their three forms."""
    if x.dim() == 3:
        return x.reshape(*x.shape[:2], heads, x.shape[2] // heads)
    if x.dim() == 4:
        return x.transpose(1, 2)
    return x.permute(0, 3, 1, 2, 4).flatten(3)


def run(call: Attention) -> tuple[Tensor, Tensor]:
    """The results, on any device; lengths and pages have been checked."""
    device = call.query.device
    q = _joined(call, call.query, call.query_rope)
    places, lengths = _places(call, q.shape[2])
    keys, values, kv_lengths = _keys(call)
    if call.is_packed:
        q = q[0][:, places].transpose(0, 1)
    b, heads, s, _ = q.shape
    out = torch.zeros((b, heads, s, call.value_d), device=device)
    lse = torch.full((b, heads, s, 1), torch.inf, device=device)
    if keys.shape[2] and q.numel():
        seen = _seen(call, lengths, kv_lengths, s, keys.shape[2])
        out, lse = _softmax(call, q, keys, values, seen)
    shape = (*call.sizes[:2], call.value_d)
    if call.is_packed:
        inside = torch.arange(s, device=device) < lengths.unsqueeze(1)
        rows = places[inside]
        packed = torch.zeros((1, heads, shape[1], call.value_d), device=device)
        packed[0, :, rows] = out.transpose(0, 1)[:, inside]
        sums = torch.full((1, heads, shape[1], 1), torch.inf, device=device)
        sums[0, :, rows] = lse.transpose(0, 1)[:, inside]
        out, lse = packed, sums[0].transpose(0, 1)
    result = to_layout(out.to(call.query.dtype), call.out_layout)
    lse = lse if call.gives_lse else lse.new_zeros(0)
    return tuple(x.clone(memory_format=torch.contiguous_format) for x in (result, lse))  # type: ignore[return-value]


def _joined(call: Attention, x: Tensor, rope: Tensor | None) -> Tensor:
    """``(b, heads, s, d)`` of query, its further elements behind its own."""
    joined = by_heads(x, call.layout, call.heads)
    if rope is None:
        return joined
    return torch.cat((joined, by_heads(rope, call.layout, call.heads)), -1)


def _places(call: Attention, s: int) -> tuple[Tensor, Tensor]:
    """The row of each token of each sequence, ``(b, longest)``, and how long sequences are."""
    b = call.sizes[0]
    device = call.query.device
    if not call.is_packed:
        # A decode step has one token whatever is said.
        given = None if s == 1 else call.lengths
        lengths = _as_tensor(given, b, s, device)
        return torch.arange(s, device=device).expand(b, s), lengths
    return packed_places(call.lengths or (), device)


def packed_places(totals: Lengths, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same of packed sequences; behind the end of one, its last row."""
    ends = torch.tensor(list(totals), dtype=torch.int64, device=device)
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    longest = int(lengths.max()) if len(totals) else 0
    places = (ends - lengths).unsqueeze(1) + torch.arange(longest, device=device)
    return torch.minimum(places, (ends - 1).clamp(min=0).unsqueeze(1)), lengths


def _as_tensor(values: Lengths | None, b: int, most: int, device: torch.device) -> Tensor:
    """Lengths of b sequences: one for all, or one for each."""
    given = [most] if values is None else list(values)
    return torch.tensor(given if len(given) == 1 else given[:b], device=device).expand(b)


def _keys(call: Attention) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values ``(b, kv_heads, longest, d)``, and how long sequences are."""
    device = call.key.device
    parts = (
        [call.key, call.value] if call.key_rope is None else [call.key, call.value, call.key_rope]
    )
    if call.table is not None:
        rows = [pages_by_rows(x, call.kv_heads) for x in parts]
        b, size = call.table.shape[0], rows[0].shape[1]
        lengths = _as_tensor(call.kv_lengths, b, size * call.table.shape[1], device)
        longest = int(lengths.max()) if b else 0
        pages = call.table[:, : (longest + size - 1) // size].to(torch.int64)
        # Pages behind the end of a sequence may be any number.
        first = torch.arange(pages.shape[1], device=device) * size
        pages = torch.where(first < lengths.unsqueeze(1), pages, 0)
        taken = [x[pages].flatten(1, 2)[:, :longest].transpose(1, 2) for x in rows]
    elif call.is_packed:
        places, lengths = packed_places(call.kv_lengths or (), device)
        taken = [
            by_heads(x, call.layout, call.kv_heads)[0][:, places].transpose(0, 1) for x in parts
        ]
    else:
        taken = [by_heads(x, call.layout, call.kv_heads) for x in parts]
        lengths = _as_tensor(call.kv_lengths, taken[0].shape[0], taken[0].shape[2], device)
        longest = int(lengths.max()) if lengths.numel() else 0
        taken = [x[:, :, :longest] for x in taken]
    key, value = taken[:2]
    return (key if call.key_rope is None else torch.cat((key, taken[2]), -1)), value, lengths


def _seen(call: Attention, lengths: Tensor, kv_lengths: Tensor, s: int, s_kv: int) -> Tensor:
    """``(b, 1, s, s_kv)``: the keys that take part for each query."""
    device = lengths.device
    i = torch.arange(s, device=device).unsqueeze(1)
    j = torch.arange(s_kv, device=device)
    own, kv = (x.reshape(-1, 1, 1) for x in (lengths, kv_lengths))
    seen = (j < kv) & (i < own)
    mode = call.sparse_mode
    # A decode step sees all of its keys: its mode and its band count only with rope.
    is_decode = s == 1 and not call.is_packed and call.query_rope is None
    if mode in (FULL, MASK_ALONE):
        if call.mask is not None:
            seen = seen & (mask_by_batch(call.mask, s)[..., :s_kv] == 0)
            if mode == FULL and not is_decode:
                seen = seen & _in_band(call, j - i)
    elif not is_decode:
        ahead = j - i if mode == LEFT_UP_CAUSAL else j - i - (kv - own)
        seen = seen & (_in_band(call, ahead) if mode == BAND else ahead <= 0)
    return seen.unsqueeze(1)


def mask_by_batch(mask: Tensor, s: int) -> Tensor:
    """``(b or 1, s or 1, s_kv)`` of a mask in any of its forms."""
    if mask.dim() == 4:
        return mask.squeeze(1)
    if mask.dim() == 3:
        return mask
    return mask.unsqueeze(1) if s == 1 else mask.unsqueeze(0)


def _in_band(call: Attention, ahead: Tensor) -> Tensor:
    """Where a key is, counted from the query's own place, held to pre_tokens and next_tokens."""
    return (ahead >= -call.before) & (ahead <= call.after)


def _softmax(
    call: Attention, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted sums and the logarithms of the weights' sums, in float32."""
    b, heads, s, d = q.shape
    group = heads // call.kv_heads
    grouped = q.to(torch.float32).reshape(b, call.kv_heads, group * s, d).contiguous()
    k, v = (x.to(torch.float32).contiguous() for x in (keys, values))
    scores = torch.matmul(grouped, k.transpose(-1, -2)) * call.scale
    scores = scores.reshape(b, heads, s, k.shape[2])
    if call.pse is not None:
        scores = scores + call.pse[:, :, :s, : k.shape[2]].to(torch.float32)
    scores = torch.where(seen, scores, -torch.inf)
    most = scores.amax(-1, keepdim=True)
    if call.sink is not None:
        sink = call.sink.to(torch.float32).reshape(1, heads, 1, 1)
        most = torch.maximum(most, sink)
    # A query that sees nothing has no largest score.
    most = torch.where(most == -torch.inf, 0.0, most)
    weights = torch.exp(scores - most)
    total = weights.sum(-1, keepdim=True)
    if call.sink is not None:
        total = total + torch.exp(sink - most)
    summed = torch.matmul(weights.reshape(b, call.kv_heads, group * s, -1), v)
    out = summed.reshape(b, heads, s, -1) / total
    nothing = ~seen.any(-1, keepdim=True)
    out = torch.where(nothing, 0.0, out)
    return out, torch.where(nothing, torch.inf, most + torch.log(total))
