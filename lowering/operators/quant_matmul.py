"""npu_quant_matmul: the product of int8 matrices, scaled to a float or to int8 again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    Size,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    code_of,
    dtype_of_code,
    must_be_none,
    require,
    required,
)
from npu_lowering.operators.exact import OVERFLOW_K
from npu_lowering.operators.int8_product import grouped, scale_as_float
from npu_lowering.operators.operator import GENode, NodeCall, Operator

_SUPPORTED = "npu_quant_matmul is computed for int8 x1 and x2"


@dataclass(frozen=True)
class QuantMatmul:
    """A checked call.

    Attributes:
        x1: ``(..., m, k)`` int8.
        x2: ``(..., k, n)`` int8.
        scale: ``(1,)`` or ``(n,)``.
        offset: the same, float32, or None.
        pertoken_scale: ``(m,)`` float32, or None.
        bias: ``(n,)``, ``(1, n)`` or ``(batch, 1, n)``, or None.
        dtype: of the result.
        batch: the axes before the last two, broadcast.
    """

    x1: Tensor
    x2: Tensor
    scale: Tensor
    offset: Tensor | None
    pertoken_scale: Tensor | None
    bias: Tensor | None
    dtype: torch.dtype
    batch: tuple[Size, ...]


def check(
    x1: Tensor,
    x2: Tensor,
    scale: Tensor,
    *,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    bias: Tensor | None = None,
    output_dtype: int | None = None,
    x1_dtype: int | None = None,
    x2_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    scale_dtype: int | None = None,
    group_sizes: Sequence[int] | None = None,
    y_scale: Tensor | None = None,
) -> QuantMatmul:
    """Multiply int8 matrices, and scale the sums.

    The sums, with an int32 bias, are exact in int32; then, in float32 and in this order::

        y = (x1 @ x2 + bias) * scale * pertoken_scale[row]       where bias is int32 or None
        y = (x1 @ x2) * scale * pertoken_scale[row] + bias       where bias is a float

    rounded once; to int8 as ``clamp(round(y + offset), -128, 127)``, half to even. An int32 result
    is the sums alone.

    Args:
        x1: ``(..., m, k)`` int8, 2-D to 6-D.
        x2: ``(..., k, n)`` int8, 2-D to 6-D; the axes before the last two are broadcast.
        scale: ``(1,)`` or ``(n,)``; float32, bfloat16 (for bfloat16 and int32 results), or int64
            with a float32's bits in the low half.
        offset: ``(1,)`` or ``(n,)`` float32, for an int8 result.
        pertoken_scale: ``(m,)`` float32, for a float result.
        bias: ``(n,)``, ``(1, n)`` with a 2-D result, or ``(batch, 1, n)`` with a 3-D one; int32;
            bfloat16 or float32 for a bfloat16 result; float16 or float32 for a float16 result with
            pertoken_scale.
        output_dtype: None or torch.int8, torch.float16, torch.bfloat16 or torch.int32.
        x1_dtype: None, as all that follows.
        x2_dtype: None.
        pertoken_scale_dtype: None.
        scale_dtype: None.
        group_sizes: None, or zeros.
        y_scale: None.

    Returns:
        ``(..., m, n)``, contiguous.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong, or arguments exclude each other.
        NotImplementedError: a form other than int8 is asked for.

    Source: torch_npu's interface document, its table of dtypes, and its Meta function. That the
    device rounds once is inferred.
    """
    for name, value in (
        ("x1_dtype", x1_dtype),
        ("x2_dtype", x2_dtype),
        ("pertoken_scale_dtype", pertoken_scale_dtype),
        ("scale_dtype", scale_dtype),
        ("y_scale", y_scale),
        ("group_sizes", group_sizes if group_sizes is not None and any(group_sizes) else None),
    ):
        must_be_none(name, value, _SUPPORTED)
    for name, tensor in (("x1", x1), ("x2", x2)):
        required(name, tensor, "int8")
        if tensor.dtype != torch.int8:
            raise NotImplementedError(f"{name} must be int8, got {tensor.dtype}; {_SUPPORTED}")
        require(
            ValueError,
            2 <= tensor.dim() <= 6,
            _says(f"{name} must be 2-D to 6-D", tensor),
        )
    k, n = x1.shape[-1], x2.shape[-1]
    require(
        ValueError,
        x2.shape[-2] == k,
        _says(f"x2 must be (..., k, n) with the k of x1, {k}", x2),
    )
    require(ValueError, k < OVERFLOW_K, _says(f"x1 must have k < {OVERFLOW_K}", x1))
    allowed = (torch.int8, torch.float16, torch.bfloat16, torch.int32)
    code = code_of(torch.int8) if output_dtype is None else output_dtype
    dtype = dtype_of_code("output_dtype", code, *allowed)
    call = QuantMatmul(
        x1=x1,
        x2=x2,
        scale=scale,
        offset=offset,
        pertoken_scale=pertoken_scale,
        bias=bias,
        dtype=dtype,
        batch=_batch(x1, x2),
    )
    _check_scales(call, n)
    _check_bias(call, n)
    check_devices("x1", {k: v for k, v in vars(call).items() if isinstance(v, Tensor)})
    return call


def _says(rule: str, tensor: Tensor) -> Any:
    """The message of a tensor whose shape breaks a rule."""
    return lambda: f"{rule}, got shape {tuple(tensor.shape)}"


def _batch(x1: Tensor, x2: Tensor) -> tuple[Size, ...]:
    """The axes before the last two, broadcast."""
    first, second = list(x1.shape[:-2]), list(x2.shape[:-2])
    length = max(len(first), len(second))
    first = [1] * (length - len(first)) + first
    second = [1] * (length - len(second)) + second
    batch: list[Size] = []
    for a, b in zip(first, second):
        if a == 1:
            batch.append(b)
            continue
        require(
            ValueError,
            b == 1 or a == b,
            lambda: (
                "x1 and x2 must have axes before the last two that can be broadcast, got shapes "
                f"{tuple(x1.shape)} and {tuple(x2.shape)}"
            ),
        )
        batch.append(a)
    return tuple(batch)


def _check_scales(call: QuantMatmul, n: Size) -> None:
    required("scale", call.scale, "float32, bfloat16 or int64, (1,) or (n,)")
    allowed = [torch.float32]
    if call.dtype in (torch.bfloat16, torch.int32):
        allowed.append(torch.bfloat16)
    if call.dtype in (torch.int8, torch.float16) and call.pertoken_scale is None:
        allowed.append(torch.int64)
    check_dtype("scale", call.scale, *allowed)
    _check_columns("scale", call.scale, n)
    if call.offset is not None:
        if call.dtype != torch.int8:
            raise ValueError(
                "offset must be None but for an int8 result, got a tensor of shape "
                f"{tuple(call.offset.shape)} and output_dtype {call.dtype}"
            )
        check_dtype("offset", call.offset, torch.float32)
        _check_columns("offset", call.offset, n)
    if call.pertoken_scale is not None:
        if call.dtype not in (torch.float16, torch.bfloat16):
            raise ValueError(
                "pertoken_scale must be None but for a float16 or bfloat16 result, got a tensor "
                f"of shape {tuple(call.pertoken_scale.shape)} and output_dtype {call.dtype}"
            )
        check_dtype("pertoken_scale", call.pertoken_scale, torch.float32)
        check_shape("pertoken_scale", call.pertoken_scale, "(m,)", (call.x1.shape[-2],))


def _check_columns(name: str, tensor: Tensor, n: Size) -> None:
    check_rank(name, tensor, 1, "(1,) or (n,)")
    size = tensor.shape[0]
    require(
        ValueError,
        size == 1 or size == n,
        _says(f"{name} must be (1,) or (n,) = ({n},)", tensor),
    )


def _check_bias(call: QuantMatmul, n: Size) -> None:
    bias = call.bias
    if bias is None:
        return
    allowed = [torch.int32]
    if call.dtype == torch.bfloat16:
        allowed += [torch.bfloat16, torch.float32]
    if call.dtype == torch.float16 and call.pertoken_scale is not None:
        allowed += [torch.float16, torch.float32]
    check_dtype("bias", bias, *allowed)
    if bias.dim() == 3 and len(call.batch) == 1:
        check_shape("bias", bias, "(batch, 1, n)", (call.batch[0], 1, n))
    elif bias.dim() == 2 and not call.batch:
        check_shape("bias", bias, "(1, n)", (1, n))
    else:
        check_shape("bias", bias, "(n,)", (n,))


def fake(call: QuantMatmul) -> Tensor:
    """The result without its values."""
    shape = (*call.batch, call.x1.shape[-2], call.x2.shape[-1])
    return call.x1.new_empty(shape, dtype=call.dtype)


def run(call: QuantMatmul) -> Tensor:
    """The result, on any device."""
    acc = _product(call)
    bias = call.bias
    if bias is not None and bias.dtype == torch.int32:
        acc, bias = acc + bias, None
    if call.dtype == torch.int32:
        return acc
    y = acc.float() * scale_as_float(call.scale)
    if call.pertoken_scale is not None:
        y = y * call.pertoken_scale.unsqueeze(1)
    if bias is not None:
        y = y + bias.float()
    if call.dtype == torch.int8:
        if call.offset is not None:
            y = y + call.offset
        return y.round().clamp(-128, 127).to(torch.int8)
    return y.to(call.dtype)


def _product(call: QuantMatmul) -> Tensor:
    """int32 ``(..., m, n)``: each matrix of x2 is a group of the rows that meet it."""
    (m, k), n = call.x1.shape[-2:], call.x2.shape[-1]
    if call.x2.dim() == 2:
        rows = call.x1.reshape(-1, k)
        return grouped(rows, call.x2.unsqueeze(0), [rows.shape[0]]).reshape(*call.batch, m, n)
    x1 = call.x1.expand(*call.batch, m, k).reshape(-1, k)
    x2 = call.x2.expand(*call.batch, k, n).reshape(-1, k, n)
    return grouped(x1, x2, [m * (i + 1) for i in range(x2.shape[0])]).reshape(*call.batch, m, n)


def _arguments(node: NodeCall) -> dict[str, Any]:
    x1, x2, scale = node["x1"], node["x2"], node["scale"]
    if not scale.is_floating_point():  # TorchAIR may read int64 as uint64
        scale = scale.view(torch.int64)
    return {
        "x1": x1.transpose(-1, -2) if node.attr("transpose_x1", False) else x1,
        "x2": x2.transpose(-1, -2) if node.attr("transpose_x2", False) else x2,
        "scale": scale,
        "offset": node.get("offset"),
        "pertoken_scale": node.get("pertoken_scale"),
        "bias": node.get("bias"),
        "output_dtype": code_of(node.dtype("dtype")),
    }


OPERATOR = Operator(
    name="npu_quant_matmul",
    check=check,
    returns="Tensor",
    fake=fake,
    cpu=run,
    portable=run,
    nodes=(GENode("QuantBatchMatmulV3", _arguments),),
    summary="the product of int8 matrices, scaled",
    unsupported="int4 (int32) and float8 x1 and x2; *_dtype, group_sizes, y_scale",
    exactness="sums exact; scaled in float32, rounded once",
    source="torch_npu's interface document and Meta function",
)
