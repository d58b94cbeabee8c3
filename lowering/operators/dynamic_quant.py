"""npu_dynamic_quant: int8 with a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    require,
)
from npu_lowering.operators.operator import GENode, NodeCall, Operator
from npu_lowering.operators.row_groups import ends_of, group_of_rows
from npu_lowering.operators.value_checks import are_checked

INT8 = 1
"""What torch_npu's dst_type says for int8: the number that torch gives a dtype."""


@dataclass(frozen=True)
class DynamicQuant:
    """A checked call.

    Attributes:
        x: ``(..., k)`` float16 or bfloat16.
        smooth_scales: ``(k,)`` of the dtype of x, or ``(groups, k)``, or None.
        group_index: ``(groups,)`` int32, running totals of rows, or None.
    """

    x: Tensor
    smooth_scales: Tensor | None
    group_index: Tensor | None


def check(
    input: Tensor,  # noqa: A002 -- the schema's own name
    *,
    smooth_scales: Tensor | None = None,
    group_index: Tensor | None = None,
    dst_type: int | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> DynamicQuant:
    """Quantise each row to int8 by its own largest magnitude.

    In float32 and in this order, for each row::

        x     = input * smooth_scales              where they are given; those of the row's group
        scale = max(abs(x)) / 127
        y     = round(x / scale)                   half to even; a row of zeros stays zeros

    Args:
        input: ``(..., k)`` float16, bfloat16 or float32, at least 1-D and not empty in k.
        smooth_scales: ``(k,)``, or ``(groups, k)`` with group_index; of the dtype of input.
        group_index: ``(groups,)`` int32, running totals of rows, all rows at the end; with
            smooth_scales.
        dst_type: None or 1, int8.
        quant_mode: ``"pertoken"``.
        dst_type_max: 0, for the largest value of the dtype.

    Returns:
        y, int8 of the shape of input, and scale, float32 of its shape without the last axis.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong, or a value of group_index.
        NotImplementedError: another dtype or mode is asked for.

    Source: torch_npu's interface document. Its own tests allow a difference of one in y.
    """
    for name, value, supported in (
        ("dst_type", INT8 if dst_type is None else dst_type, INT8),
        ("quant_mode", quant_mode, "pertoken"),
        ("dst_type_max", dst_type_max, 0.0),
    ):
        if value != supported:
            raise NotImplementedError(f"{name} must be {supported!r} on CPU, got {value!r}")
    check_dtype("input", input, torch.float16, torch.bfloat16, torch.float32)
    require(
        ValueError,
        input.dim() >= 1 and input.shape[-1] > 0,
        lambda: f"input must be (..., k) with k > 0, got shape {tuple(input.shape)}",
    )
    if smooth_scales is not None:
        check_dtype("smooth_scales", smooth_scales, input.dtype)
    _check_groups(input, smooth_scales, group_index)
    tensors = {"input": input, "smooth_scales": smooth_scales, "group_index": group_index}
    check_devices("input", tensors)
    return DynamicQuant(input, smooth_scales, group_index)


def _check_groups(x: Tensor, smooth_scales: Tensor | None, group_index: Tensor | None) -> None:
    k = x.shape[-1]
    if group_index is None:
        if smooth_scales is not None:
            check_shape("smooth_scales", smooth_scales, "(k,)", (k,))
        return
    if smooth_scales is None:
        raise ValueError(
            "smooth_scales is required with group_index, "
            f"got None and a tensor of shape {tuple(group_index.shape)}"
        )
    check_dtype("group_index", group_index, torch.int32)
    check_rank("group_index", group_index, 1, "(groups,)")
    groups = group_index.shape[0]
    require(ValueError, groups > 0, lambda: "group_index must not be empty, got shape (0,)")
    check_shape("smooth_scales", smooth_scales, "(groups, k)", (groups, k))


def fake(call: DynamicQuant) -> tuple[Tensor, Tensor]:
    """Y and scale without their values."""
    shape = call.x.shape
    return (
        call.x.new_empty(shape, dtype=torch.int8),
        call.x.new_empty(shape[:-1], dtype=torch.float32),
    )


def cpu(call: DynamicQuant) -> tuple[Tensor, Tensor]:
    """Y and scale, after a look at group_index."""
    if call.group_index is not None and are_checked(call.group_index):
        rows = call.x.shape[:-1].numel()
        ends = ends_of("group_index", call.group_index.tolist(), rows, totals=True)
        if ends[-1] != rows:
            raise ValueError(
                f"group_index must end with the number of rows, {rows}, got {ends[-1]}"
            )
    return run(call)


def run(call: DynamicQuant) -> tuple[Tensor, Tensor]:
    """The same, on any device, without a branch on data."""
    wide = call.x.to(torch.float32)
    scales = call.smooth_scales
    if scales is not None and call.group_index is not None:
        rows = call.x.shape[:-1].numel()
        group = group_of_rows(call.group_index, rows, totals=True).clamp(max=scales.shape[0] - 1)
        scales = scales[group].reshape(call.x.shape)
    if scales is not None:
        wide = wide * scales.to(torch.float32)
    return quantised(wide)


def quantised(wide: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and a scale for each row of a float32 tensor."""
    scale = wide.abs().amax(-1, keepdim=True) / 127.0
    y = torch.where(scale == 0, 0.0, torch.round(wide / scale)).to(torch.int8)
    return y.contiguous(), scale.squeeze(-1).contiguous()


def _arguments(node: NodeCall) -> dict[str, Any]:
    is_int8 = node.dtype("dst_type", 2) == torch.int8
    return {
        "input": node["x"],
        "smooth_scales": node.get("smooth_scales"),
        "group_index": node.get("group_index"),
        "dst_type": INT8 if is_int8 else node.attr("dst_type"),
    }


OPERATOR = Operator(
    name="npu_dynamic_quant",
    check=check,
    returns="(Tensor, Tensor)",
    fake=fake,
    cpu=cpu,
    portable=cpu,
    decomposition=run,
    nodes=(GENode("DynamicQuant", _arguments),),
    summary="int8 with a scale for each row",
    unsupported="dst_type other than int8; quant_mode other than pertoken; dst_type_max",
    exactness="bit for bit in the stated order",
    source="torch_npu's interface document",
)
