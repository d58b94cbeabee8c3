"""npu_dynamic_quant: int8 with a scale for each row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    check_devices,
    check_dtype,
    check_shape,
    must_be_none,
    require,
)
from npu_lowering.operators.operator import GENode, NodeCall, Operator

INT8 = 1
"""What torch_npu's dst_type says for int8: the number that torch gives a dtype."""


@dataclass(frozen=True)
class DynamicQuant:
    """A checked call.

    Attributes:
        x: ``(..., k)`` float16 or bfloat16.
        smooth_scales: ``(k,)`` of the dtype of x, or None.
    """

    x: Tensor
    smooth_scales: Tensor | None


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

        x     = input * smooth_scales              where they are given
        scale = max(abs(x)) / 127
        y     = round(x / scale)                   half to even; a row of zeros stays zeros

    Args:
        input: ``(..., k)`` float16, bfloat16 or float32, at least 1-D and not empty in k.
        smooth_scales: ``(k,)``, of the dtype of input.
        group_index: not supported; None.
        dst_type: None or 1, int8.
        quant_mode: ``"pertoken"``.
        dst_type_max: 0, for the largest value of the dtype.

    Returns:
        y, int8 of the shape of input, and scale, float32 of its shape without the last axis.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong.
        NotImplementedError: another dtype or mode is asked for.

    Source: torch_npu's interface document. Its own tests allow a difference of one in y.
    """
    must_be_none("group_index", group_index, "supported is one smooth_scales for all rows")
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
        check_shape("smooth_scales", smooth_scales, "(k,)", (input.shape[-1],))
    check_devices("input", {"input": input, "smooth_scales": smooth_scales})
    return DynamicQuant(input, smooth_scales)


def fake(call: DynamicQuant) -> tuple[Tensor, Tensor]:
    """Y and scale without their values."""
    shape = call.x.shape
    return (
        call.x.new_empty(shape, dtype=torch.int8),
        call.x.new_empty(shape[:-1], dtype=torch.float32),
    )


def run(call: DynamicQuant) -> tuple[Tensor, Tensor]:
    """Y and scale, on any device."""
    wide = call.x.to(torch.float32)
    if call.smooth_scales is not None:
        wide = wide * call.smooth_scales.to(torch.float32)
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
    cpu=run,
    portable=run,
    decomposition=run,
    nodes=(GENode("DynamicQuant", _arguments),),
    summary="int8 with a scale for each row",
    unsupported="group_index; dst_type other than int8; quant_mode other than pertoken; "
    "dst_type_max",
    exactness="bit for bit in the stated order",
    source="torch_npu's interface document",
)
