"""npu_grouped_matmul_swiglu_quant, both versions: grouped int8 products, gated, quantised again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    Size,
    check_choice,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    must_be_none,
    require,
)
from npu_lowering.operators.dequant_swiglu_quant import Gate
from npu_lowering.operators.dynamic_quant import INT8, quantised
from npu_lowering.operators.exact import OVERFLOW_K
from npu_lowering.operators.int8_product import grouped_scaled
from npu_lowering.operators.operator import GENode, NodeCall, Operator
from npu_lowering.operators.row_groups import ends_of

_SUPPORTED = "it is computed for int8 x and weight, quantised to int8 row by row"
_FLOAT32 = 6
_SILU = Gate(0, True)


@dataclass(frozen=True)
class GroupedSwigluQuant:
    """A checked call.

    Attributes:
        x: ``(m, k)`` int8.
        weight: ``(e, k, n)``, or ``(e, n / 32, ceil(k / 16), 16, 32)``, int8.
        weight_scale: ``(e, n)``.
        x_scale: ``(m,)`` float32.
        group_list: ``(e,)`` int64.
        totals: whether group_list holds running totals, not counts.
        has_offset: whether there is a third result, a number that means nothing.
    """

    x: Tensor
    weight: Tensor
    weight_scale: Tensor
    x_scale: Tensor
    group_list: Tensor
    totals: bool
    has_offset: bool


def check(
    x: Tensor,
    weight: Tensor,
    group_list: Tensor,
    weight_scale: Tensor,
    x_scale: Tensor,
    *,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
) -> GroupedSwigluQuant:
    """Multiply groups of rows, each by the matrix of its group, gate, and quantise each row.

    The sums are exact in int32; then, in float32 and in this order, for row r of group g::

        t = float32(x[r] @ weight[g]) * weight_scale[g] * x_scale[r]
        a, b = the halves of t;  s = a / (1 + exp(-a)) * b
        scale[r] = max(abs(s)) / 127;  y[r] = round(s / scale[r])        half to even

    Args:
        x: ``(m, k)`` int8.
        weight: ``(e, k, n)`` int8, or, FRACTAL_NZ spelled out,
            ``(e, n / 32, ceil(k / 16), 16, 32)``.
        group_list: ``(e,)`` int64, running totals.
        weight_scale: ``(e, n)`` float32, float16 or bfloat16.
        x_scale: ``(m,)`` float32.
        bias: not supported; None.
        offset: None.

    Returns:
        y, int8 ``(m, n / 2)``, scale, float32 ``(m,)``, both with zeros past the last group, where
        a device leaves what was in memory, and an offset, float32 without axes, a zero that means
        nothing.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or a value of group_list is wrong.
        NotImplementedError: bias or offset is given.

    Source: torch_npu's interface document and op-plugin's golden, which quantises by 127 / max
    where this divides by max / 127, so that y may differ by one.
    """
    must_be_none("bias", bias, _SUPPORTED)
    must_be_none("offset", offset, _SUPPORTED)
    call = GroupedSwigluQuant(x, weight, weight_scale, x_scale, group_list, True, True)
    _check_tensors(call, torch.float32, torch.float16, torch.bfloat16)
    return call


def check_v2(
    x: Tensor,
    weight: Sequence[Tensor],
    weight_scale: Sequence[Tensor],
    x_scale: Tensor,
    group_list: Tensor,
    *,
    smooth_scale: Tensor | None = None,
    weight_assist_matrix: Sequence[Tensor] | None = None,
    bias: Tensor | None = None,
    dequant_mode: int | None = 0,
    dequant_dtype: int | None = 6,
    quant_mode: int | None = 0,
    quant_dtype: int | None = 1,
    group_list_type: int | None = 0,
    tuning_config: Sequence[int] | None = None,
    x_dtype: int | None = None,
    weight_dtype: int | None = None,
    weight_scale_dtype: int | None = None,
    x_scale_dtype: int | None = None,
) -> GroupedSwigluQuant:
    """The same with totals or counts, and lists of one weight and one scale.

    The arithmetic is that of ``npu_grouped_matmul_swiglu_quant``.

    Args:
        x: ``(m, k)`` int8.
        weight: one ``(e, k, n)`` int8, or ``(e, n / 32, ceil(k / 16), 16, 32)``.
        weight_scale: one ``(e, n)`` float32 or bfloat16.
        x_scale: ``(m,)`` float32.
        group_list: ``(e,)`` int64, totals or counts.
        smooth_scale: not supported; None, as it has to be for int8 weights.
        weight_assist_matrix: None, or no tensor.
        bias: None.
        dequant_mode: 0, a scale for each column.
        dequant_dtype: 6, torch.float32.
        quant_mode: 0, a scale for each row.
        quant_dtype: 1, torch.int8.
        group_list_type: 0 for running totals, 1 for counts.
        tuning_config: a hint to the device's tiling.
        x_dtype: None.
        weight_dtype: None.
        weight_scale_dtype: None.
        x_scale_dtype: None.

    Returns:
        y, int8 ``(m, n / 2)``, and scale, float32 ``(m,)``, both with zeros past the last group.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or a value of group_list is wrong.
        NotImplementedError: another form is asked for.

    Source: torch_npu's interface document and op-plugin's golden, as of the first version.
    """
    del tuning_config
    for name, value in (
        ("smooth_scale", smooth_scale),
        ("weight_assist_matrix", weight_assist_matrix or None),
        ("bias", bias),
        ("x_dtype", x_dtype),
        ("weight_dtype", weight_dtype),
        ("weight_scale_dtype", weight_scale_dtype),
        ("x_scale_dtype", x_scale_dtype),
    ):
        must_be_none(name, value, _SUPPORTED)
    for name, number, default in (
        ("dequant_mode", dequant_mode, 0),
        ("dequant_dtype", dequant_dtype, _FLOAT32),
        ("quant_mode", quant_mode, 0),
        ("quant_dtype", quant_dtype, INT8),
    ):
        if number not in (None, default):
            raise NotImplementedError(f"{name} must be {default}, got {number}; {_SUPPORTED}")
    kind = 0 if group_list_type is None else group_list_type
    check_choice("group_list_type", kind, {0: "totals", 1: "counts"})
    for name, tensors in (("weight", weight), ("weight_scale", weight_scale)):
        if len(tensors) != 1:
            raise ValueError(f"{name} must be a list of one tensor, got {len(tensors)}")
    call = GroupedSwigluQuant(
        x, weight[0], weight_scale[0], x_scale, group_list, kind == 0, has_offset=False
    )
    _check_tensors(call, torch.float32, torch.bfloat16)
    return call


def _check_tensors(call: GroupedSwigluQuant, *scales: torch.dtype) -> None:
    x, weight = call.x, call.weight
    check_dtype("x", x, torch.int8)
    check_rank("x", x, 2, "(m, k)")
    check_dtype("weight", weight, torch.int8)
    m, k = x.shape
    require(ValueError, k < OVERFLOW_K, lambda: f"x must have k < {OVERFLOW_K}, got {k}")
    check_dtype("weight_scale", call.weight_scale, *scales)
    check_rank("weight_scale", call.weight_scale, 2, "(e, n)")
    e, n = call.weight_scale.shape
    require(
        ValueError,
        n % 2 == 0,
        lambda: f"weight_scale must be (e, n) with n even, got shape {(e, n)}",
    )
    if weight.dim() == 5:
        form = (e, n // 32, (k + 15) // 16, 16, 32)
        check_shape("weight", weight, "(e, n / 32, ceil(k / 16), 16, 32)", form)
        require(
            ValueError,
            n % 32 == 0,
            lambda: f"weight_scale must be (e, n) with n % 32 == 0 for a 5-D weight, got n = {n}",
        )
    else:
        check_shape("weight", weight, "(e, k, n)", (e, k, n))
    check_dtype("x_scale", call.x_scale, torch.float32)
    check_shape("x_scale", call.x_scale, "(m,)", (m,))
    check_dtype("group_list", call.group_list, torch.int64)
    check_shape("group_list", call.group_list, "(e,)", (e,))
    check_devices("x", {k: v for k, v in vars(call).items() if isinstance(v, Tensor)})


def fake(call: GroupedSwigluQuant) -> tuple[Tensor, ...]:
    """The results without their values."""
    m: Size = call.x.shape[0]
    y = call.x.new_empty((m, call.weight_scale.shape[1] // 2))
    scale = call.x.new_empty((m,), dtype=torch.float32)
    offset = call.x.new_empty((), dtype=torch.float32)
    return (y, scale, offset) if call.has_offset else (y, scale)


def run(call: GroupedSwigluQuant) -> tuple[Tensor, ...]:
    """The results, on any device."""
    ends = ends_of("group_list", call.group_list.tolist(), call.x.shape[0], totals=call.totals)
    weight, k = call.weight, call.x.shape[1]
    if weight.dim() == 5:
        weight = weight.permute(0, 2, 3, 1, 4).flatten(1, 2).flatten(2)[:, :k]
    scale = call.weight_scale
    if scale.dtype == torch.float16:
        scale = scale.float()
    wide = grouped_scaled(call.x, weight, ends, scale, call.x_scale)
    y, row_scale = quantised(_SILU.of(wide))
    if not call.has_offset:
        return y, row_scale
    return y, row_scale, torch.zeros((), dtype=torch.float32, device=y.device)


def _arguments(node: NodeCall) -> dict[str, Any]:
    bias = node.get("bias")
    return {
        "x": node["x"],
        "weight": node.dynamic("weight"),
        "weight_scale": node.dynamic("weight_scale"),
        "x_scale": node["x_scale"],
        "group_list": node["group_list"],
        "smooth_scale": node.get("smooth_scale"),
        "weight_assist_matrix": [
            each for each in node.optional("weight_assist_matrix") if each.numel()
        ],
        "bias": bias if bias is not None and bias.numel() else None,
        "dequant_mode": int(node.attr("dequant_mode", 0)),
        "quant_mode": int(node.attr("quant_mode", 0)),
        "quant_dtype": INT8 if node.dtype("quant_dtype", 2) == torch.int8 else 0,
        "group_list_type": int(node.attr("group_list_type", 0)),
    }


_SUMMARY = "grouped int8 products, scaled, gated by silu, and quantised row by row"
_EXACTNESS = "sums exact; float32 in the stated order; exp is the C library's"
_SOURCE = "torch_npu's interface document, op-plugin's golden"

OPERATOR = Operator(
    name="npu_grouped_matmul_swiglu_quant",
    check=check,
    returns="(Tensor, Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    converter="npu_lowering.converters.grouped_matmul_swiglu_quant",
    summary=_SUMMARY,
    unsupported="bias, offset; int4 weights",
    exactness=_EXACTNESS,
    source=_SOURCE,
)

V2 = Operator(
    name="npu_grouped_matmul_swiglu_quant_v2",
    check=check_v2,
    returns="(Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    nodes=(GENode("GroupedMatmulSwigluQuantV2", _arguments),),
    summary=_SUMMARY,
    unsupported="smooth_scale, weight_assist_matrix, bias, *_dtype; other modes and dtypes; int4 "
    "weights",
    exactness=_EXACTNESS,
    source=_SOURCE,
)
