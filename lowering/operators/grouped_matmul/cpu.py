"""The numbers of npu_grouped_matmul, on any device."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional

from npu_lowering.operators.grouped_matmul.contract import (
    COLUMNS,
    NO_GROUPS,
    GroupedMatmul,
)
from npu_lowering.operators.int8_product import grouped, grouped_scaled, scale_as_float


def run(call: GroupedMatmul) -> list[Tensor]:
    """The results, after a look at group_list."""
    if call.group_type == COLUMNS:
        return [_by_columns(call)]
    if call.group_type == NO_GROUPS:
        call.check_sizes()
        parts = [
            _rows(call, x.flatten(0, -2), i, _scale_of_rows(call, i, None)).reshape(
                *x.shape[:-1], call.weight[i].shape[-1]
            )
            for i, x in enumerate(call.x)
        ]
        return [torch.cat(parts)] if call.joined else parts
    ends = call.ends()
    if call.stacked and call.x[0].dtype == torch.int8:
        return [_stacked_int8(call, ends)]
    x = call.x[0]
    out = None
    if call.joined:
        shape = (x.shape[0], call.weight[0].shape[-1])
        out = torch.zeros(shape, dtype=call.dtype, device=x.device)
    parts = []
    for g, (start, end) in enumerate(zip([0, *ends], ends)):
        if out is not None and end == start:
            continue
        rows = slice(start, end)
        part = _rows(call, x[rows], g, _scale_of_rows(call, 0, rows))
        if out is not None:
            out[rows] = part
        else:
            parts.append(part)
    return parts if out is None else [out]


def _by_columns(call: GroupedMatmul) -> Tensor:
    """``(groups, m, n)``: the products of columns of x with the rows of weight that they meet."""
    x, weight, ends = call.x[0], call.weight[0], call.ends()
    parts = [x[:, start:end] @ weight[start:end] for start, end in zip([0, *ends], ends)]
    if not parts:
        return x.new_zeros((0, x.shape[0], weight.shape[-1]))
    return torch.stack(parts)


def _stacked_int8(call: GroupedMatmul, ends: list[int]) -> Tensor:
    """One x and one weight, the whole of it in one product."""
    x, weight = call.x[0], call.weight[0]
    plain = not (call.bias or call.activation) and call.dtype.is_floating_point
    if plain and call.scale and call.scale[0].dtype != torch.int64:
        per_token = call.per_token_scale[0] if call.per_token_scale else None
        return grouped_scaled(x, weight, ends, call.scale[0], per_token).to(call.dtype)
    product = grouped(x, weight, ends)
    if not call.bias and not call.scale:
        return product
    out = torch.zeros(product.shape, dtype=call.dtype, device=x.device)
    for g, (start, end) in enumerate(zip([0, *ends], ends)):
        if end > start:
            rows = slice(start, end)
            out[rows] = _finished(call, product[rows], g, _scale_of_rows(call, 0, rows))
    return out


def _scale_of_rows(call: GroupedMatmul, i: int, rows: slice | None) -> Tensor | None:
    """The scale of each row of one x, as a column."""
    if not call.per_token_scale:
        return None
    scale = call.per_token_scale[i]
    return (scale.flatten() if rows is None else scale[rows]).unsqueeze(1)


def _of_group(tensors: tuple[Tensor, ...], g: int, *, stacked: bool) -> Tensor | None:
    if not tensors:
        return None
    return tensors[0][g] if stacked else tensors[g]


def _rows(call: GroupedMatmul, x: Tensor, g: int, per_token: Tensor | None) -> Tensor:
    """Rows of one group, of the result's dtype."""
    weight = call.weight[0][g] if call.stacked else call.weight[g]
    if x.dtype == torch.int8:
        product = grouped(x, weight.unsqueeze(0), [x.shape[0]])
        return _finished(call, product, g, per_token)
    scale = _of_group(call.antiquant_scale, g, stacked=call.stacked)
    if scale is not None:
        offset = _of_group(call.antiquant_offset, g, stacked=call.stacked)
        weight = _antiquantised(weight, scale, offset)
    bias = _of_group(call.bias, g, stacked=call.stacked)
    if bias is None:
        return x @ weight
    return (x.float() @ weight.float() + bias.float()).to(call.dtype)


def _antiquantised(weight: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """int8 weights as floats: in float16 as such, for bfloat16 in float32, rounded once."""
    wide = torch.float16 if scale.dtype == torch.float16 else torch.float32
    result = weight.to(wide)
    if offset is not None:
        result = result + offset.to(wide)
    return (result * scale.to(wide)).to(scale.dtype)


def _finished(call: GroupedMatmul, product: Tensor, g: int, per_token: Tensor | None) -> Tensor:
    """int32 sums of one group's rows as the result has them."""
    bias = _of_group(call.bias, g, stacked=call.stacked)
    if bias is not None:
        product = product + bias
    scale = _of_group(call.scale, g, stacked=call.stacked)
    if scale is None:
        return product
    y = product.float() * scale_as_float(scale)
    if per_token is not None:
        y = y * per_token
    if call.dtype == torch.int8:
        return y.round().clamp(-128, 127).to(torch.int8)
    # No negative zero, as where the compiled kernel adds to zeros.
    return (_ACTIVATIONS[call.activation](y) + 0.0).to(call.dtype)


def _fast_gelu(y: Tensor) -> Tensor:
    size = y.abs()
    return y / (1 + torch.exp(-1.702 * size)) * torch.exp(0.851 * (y - size))


def _silu(y: Tensor) -> Tensor:
    return y / (torch.exp(-y) + 1.0)


def _gelu_tanh(y: Tensor) -> Tensor:
    return functional.gelu(y, approximate="tanh")


def _identity(y: Tensor) -> Tensor:
    return y


_ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    0: _identity,
    1: torch.relu,
    2: _gelu_tanh,
    4: _fast_gelu,
    5: _silu,
}
