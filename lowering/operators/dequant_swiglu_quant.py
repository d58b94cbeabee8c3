"""npu_dequant_swiglu_quant: int32 sums scaled, gated, and quantised again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    check_choice,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    require,
    required,
)
from npu_lowering.operators.dynamic_quant import INT8, quantised
from npu_lowering.operators.operator import GENode, NodeCall, Operator
from npu_lowering.operators.row_groups import ends_of, group_of_rows
from npu_lowering.operators.value_checks import are_checked

STATIC, DYNAMIC = 0, 1
_HALVES, _PAIRS, _CLAMPED_HALVES, _SILU_CLAMPED = range(4)
_QUANT_MODES: dict[object, str] = {STATIC: "static", DYNAMIC: "dynamic"}
_SWIGLU_MODES: dict[object, str] = {
    _HALVES: "halves",
    _PAIRS: "clamped, columns in pairs",
    _CLAMPED_HALVES: "clamped halves",
    _SILU_CLAMPED: "halves, clamped after silu",
}
_SCALES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Gate:
    """The activation.

    Attributes:
        mode: which form, 0 to 3.
        left: whether the first half, or the first of each pair, is what silu is taken of.
        limit: what values are clamped to.
        alpha: the factor in the sigmoid.
        bias: what is added to the linear half.
    """

    mode: int
    left: bool
    limit: float = 7.0
    alpha: float = 1.702
    bias: float = 1.0

    def of(self, wide: Tensor) -> Tensor:
        """Half as many columns of a float32 tensor."""
        h = wide.shape[-1] // 2
        if self.mode == _PAIRS:
            act, linear = wide[..., ::2], wide[..., 1::2]
        else:
            first, second = wide.split([h, h], -1)
            act, linear = (first, second) if self.left else (second, first)
        # exp of torch may differ in the last bit between vectors and single numbers.
        act, linear = act.contiguous(), linear.contiguous()
        if self.mode == _HALVES:
            return act / (torch.exp(-act) + 1.0) * linear
        linear = linear.clamp(-self.limit, self.limit)
        if self.mode == _SILU_CLAMPED:
            return (act / (torch.exp(-act) + 1.0)).clamp(max=self.limit) * linear
        act = act.clamp(max=self.limit)
        return act / (torch.exp(act * -self.alpha) + 1.0) * (linear + self.bias)


@dataclass(frozen=True)
class DequantSwigluQuant:
    """A checked call.

    Attributes:
        x: ``(..., 2 * h)`` int32, float16 or bfloat16.
        weight_scale: ``(groups, 2 * h)`` float32, or None.
        activation_scale: float32, an element a row, or None.
        bias: ``(groups, 2 * h)``, or None.
        quant_scale: ``(groups, h)`` or ``(groups, 1)``, or None.
        quant_offset: of the shape of quant_scale, or None.
        group_index: ``(groups,)`` int64 counts, or None for one group of all rows.
        dynamic: whether each row gets a scale of its own.
        gate: the activation.
    """

    x: Tensor
    weight_scale: Tensor | None
    activation_scale: Tensor | None
    bias: Tensor | None
    quant_scale: Tensor | None
    quant_offset: Tensor | None
    group_index: Tensor | None
    dynamic: bool
    gate: Gate


def check(
    x: Tensor,
    *,
    weight_scale: Tensor | None = None,
    activation_scale: Tensor | None = None,
    bias: Tensor | None = None,
    quant_scale: Tensor | None = None,
    quant_offset: Tensor | None = None,
    group_index: Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    dst_type: int | None = None,
    round_mode: int | None = None,
    activate_dim: int | None = None,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> DequantSwigluQuant:
    """Scale the sums of an int8 product, gate one half with the other, and quantise to int8.

    In float32 and in this order, for row r of group g::

        t = x[r] + bias[g]                     in int32, where bias is int32
        t = float32(t) * weight_scale[g] * activation_scale[r]
        t = t + bias[g]                        where bias is a float
        a, b = the halves of t                 a is the second one, with activate_left the first one

    swiglu_mode 0::

        s = a / (1 + exp(-a)) * b

    swiglu_mode 1 takes a from the even columns and b from the odd ones, 2 from the halves::

        a = min(a, clamp_limit);  b = max(min(b, clamp_limit), -clamp_limit)
        s = a / (1 + exp(-glu_alpha * a)) * (b + glu_bias)

    swiglu_mode 3::

        s = min(a / (1 + exp(-a)), clamp_limit) * max(min(b, clamp_limit), -clamp_limit)

    quant_mode 1, a scale for each row::

        s = s * quant_scale[g];  scale[r] = max(abs(s)) / 127;  y[r] = round(s / scale[r])

    quant_mode 0::

        y[r] = clamp(round(s / quant_scale[g] + quant_offset[g]), -128, 127)

    Rounding is half to even; a missing factor counts as 1, a missing addend as 0.

    Args:
        x: ``(..., 2 * h)`` int32, float16 or bfloat16, at least 2-D; rows are all axes but the
            last.
        weight_scale: ``(groups, 2 * h)`` float32, or ``(2 * h,)`` for one group; required with
            int32, forbidden with floats.
        activation_scale: float32, an element a row: of the shape of x without its last axis, or
            with 1 in its place; with int32 only.
        bias: ``(groups, 2 * h)``, or ``(2 * h,)`` for one group; int32, float32, float16 or
            bfloat16; with int32 only.
        quant_scale: ``(groups, h)``, or ``(h,)`` for one group, and with quant_mode 0
            ``(groups,)`` as well; float32, float16 or bfloat16.
        quant_offset: of the shape and dtype of quant_scale; with quant_mode 0 only.
        group_index: ``(groups,)`` int64, rows of each group; None for one group of all rows.
        activate_left: which half silu is taken of; must be True with swiglu_mode 1.
        quant_mode: 0, static, or 1, dynamic.
        dst_type: None or torch.int8.
        round_mode: None or 0, half to even.
        activate_dim: None or the last axis.
        swiglu_mode: 0 to 3, see above.
        clamp_limit: what swiglu_mode 1, 2 and 3 clamp to; > 0 and finite.
        glu_alpha: of swiglu_mode 1 and 2.
        glu_bias: of swiglu_mode 1 and 2.

    Returns:
        y, int8 ``(..., h)``, and scale, float32 of the shape of x without its last axis. Rows past
        the last group are zeros in both, and so is scale with quant_mode 0; a device leaves there
        what was in memory.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a count or a scalar is wrong, or arguments exclude each other.
        NotImplementedError: another dtype, rounding or axis is asked for.

    Source: torch_npu's interface document, the aclnnDequantSwigluQuantV2 document and the kernel of
    CANN's ops-nn. Its kernel for groups multiplies by 1/127, others divide by 127, so scale may
    differ in the last bit. The document forbids bias beside group_index, and the kernel takes it.
    """
    required("x", x, "int32, float16 or bfloat16 (..., 2 * h)")
    check_choice("quant_mode", quant_mode, _QUANT_MODES)
    check_choice("swiglu_mode", swiglu_mode, _SWIGLU_MODES)
    _check_unsupported(x, dst_type, round_mode, activate_dim)
    if swiglu_mode == _PAIRS and not activate_left:
        raise ValueError("activate_left must be True with swiglu_mode 1, got False")
    if swiglu_mode != _HALVES and not 0 < clamp_limit < math.inf:
        raise ValueError(f"clamp_limit must be > 0 and finite, got {clamp_limit}")
    check_dtype("x", x, torch.int32, torch.float16, torch.bfloat16)
    require(
        ValueError,
        x.dim() >= 2 and x.shape[-1] > 0 and x.shape[-1] % 2 == 0,
        lambda: f"x must be (..., 2 * h), at least 2-D, got shape {tuple(x.shape)}",
    )
    groups = 1
    if group_index is not None:
        check_dtype("group_index", group_index, torch.int64)
        check_rank("group_index", group_index, 1, "(groups,)")
        groups = group_index.shape[0]
        require(ValueError, groups > 0, lambda: "group_index must not be empty, got shape (0,)")
    given = {
        "weight_scale": weight_scale,
        "activation_scale": activation_scale,
        "bias": bias,
        "quant_scale": quant_scale,
        "quant_offset": quant_offset,
        "group_index": group_index,
    }
    check_devices("x", {"x": x, **given})
    _check_dequant(x, given)
    quant_scale, quant_offset = _checked_quant(x, given, groups, quant_mode)
    return DequantSwigluQuant(
        x=x,
        weight_scale=_by_group("weight_scale", weight_scale, groups, x.shape[-1]),
        activation_scale=activation_scale,
        bias=_by_group("bias", bias, groups, x.shape[-1]),
        quant_scale=quant_scale,
        quant_offset=quant_offset,
        group_index=group_index,
        dynamic=quant_mode == DYNAMIC,
        gate=Gate(swiglu_mode, activate_left, clamp_limit, glu_alpha, glu_bias),
    )


def _check_unsupported(
    x: Tensor, dst_type: int | None, round_mode: int | None, activate_dim: int | None
) -> None:
    if dst_type not in (None, INT8):
        raise NotImplementedError(
            f"dst_type must be None or torch.int8 (1), got {dst_type}; "
            "npu_dequant_swiglu_quant is computed for int8"
        )
    if round_mode not in (None, 0):
        raise NotImplementedError(
            f"round_mode must be None or 0 (half to even), which int8 takes, got {round_mode}"
        )
    if activate_dim not in (None, -1, x.dim() - 1):
        raise NotImplementedError(
            f"activate_dim must be None, -1 or {x.dim() - 1}, the last axis of x, "
            f"got {activate_dim}"
        )


def _check_dequant(x: Tensor, given: Mapping[str, Tensor | None]) -> None:
    weight_scale, activation_scale = given["weight_scale"], given["activation_scale"]
    bias = given["bias"]
    if x.dtype != torch.int32:
        for name in ("weight_scale", "activation_scale", "bias"):
            value = given[name]
            if value is not None:
                raise ValueError(
                    f"{name} must be None where x is not int32, "
                    f"got a tensor of shape {tuple(value.shape)}"
                )
        return
    if weight_scale is None:
        raise ValueError("weight_scale is required where x is int32, got None")
    check_dtype("weight_scale", weight_scale, torch.float32)
    if activation_scale is not None:
        check_dtype("activation_scale", activation_scale, torch.float32)
        shape = (*x.shape[:-1], 1) if activation_scale.dim() == x.dim() else x.shape[:-1]
        check_shape("activation_scale", activation_scale, "an element a row of x", shape)
    if bias is not None:
        check_dtype("bias", bias, torch.int32, *_SCALES)


def _by_group(name: str, tensor: Tensor | None, groups: int, columns: int) -> Tensor | None:
    """A tensor with a row for each group; one row need not be written as two axes."""
    if tensor is None:
        return None
    if tensor.dim() == 1:
        require(
            ValueError,
            groups == 1,
            lambda: (
                f"{name} must be (groups, columns) = {(groups, columns)}, "
                f"got shape {tuple(tensor.shape)}"
            ),
        )
        check_shape(name, tensor, "(columns,)", (columns,))
        return tensor.unsqueeze(0)
    check_shape(name, tensor, "(groups, columns)", (groups, columns))
    return tensor


def _checked_quant(
    x: Tensor, given: Mapping[str, Tensor | None], groups: int, quant_mode: int
) -> tuple[Tensor | None, Tensor | None]:
    scale, offset = given["quant_scale"], given["quant_offset"]
    if offset is not None:
        got = f"got a tensor of shape {tuple(offset.shape)}"
        if quant_mode == DYNAMIC:
            raise ValueError(f"quant_offset must be None with quant_mode 1 (dynamic), {got}")
        if scale is None:
            raise ValueError(f"quant_scale is required with quant_offset, {got} and None")
        check_dtype("quant_offset", offset, scale.dtype)
        check_shape("quant_offset", offset, "of the shape of quant_scale", scale.shape)
    if scale is None:
        return None, None
    check_dtype("quant_scale", scale, *_SCALES)
    h = x.shape[-1] // 2
    if quant_mode == STATIC and scale.dim() == 1 and (groups != 1 or scale.shape[0] == 1):
        check_shape("quant_scale", scale, "(groups,)", (groups,))
        return scale.unsqueeze(1), None if offset is None else offset.unsqueeze(1)
    return _by_group("quant_scale", scale, groups, h), _by_group("quant_offset", offset, groups, h)


def fake(call: DequantSwigluQuant) -> tuple[Tensor, Tensor]:
    """Y and scale without their values."""
    *rows, columns = call.x.shape
    return (
        call.x.new_empty((*rows, columns // 2), dtype=torch.int8),
        call.x.new_empty(rows, dtype=torch.float32),
    )


def cpu(call: DequantSwigluQuant) -> tuple[Tensor, Tensor]:
    """The same with numbers, after a look at the counts."""
    rows, columns = call.x.shape[:-1].numel(), call.x.shape[-1]
    if call.group_index is not None and are_checked(call.group_index):
        ends_of("group_index", call.group_index.tolist(), rows, totals=False)
    return _by_blocks(call, max(1, _BLOCK // columns))


def run(call: DequantSwigluQuant) -> tuple[Tensor, Tensor]:
    """The same, on any device, without a branch on data."""
    return _by_blocks(call, None)


# Elements of x that are gone through at a time: what lies in a cache is not fetched anew by each
# step, and its memory not asked of the system.
_BLOCK = 1 << 16


def _by_blocks(call: DequantSwigluQuant, step: int | None) -> tuple[Tensor, Tensor]:
    """Blocks of so many rows, or all at once."""
    *shape, columns = call.x.shape
    x = call.x.reshape(-1, columns)
    rows = x.shape[0]
    tokens = None if call.activation_scale is None else call.activation_scale.reshape(-1, 1)
    group = None
    if call.group_index is not None:
        group = group_of_rows(call.group_index, rows, totals=False)
    if step is None or rows <= step:
        y, scale = _rows(call, x, tokens, group)
    else:
        parts = [
            _rows(
                call,
                x[first : first + step],
                None if tokens is None else tokens[first : first + step],
                None if group is None else group[first : first + step],
            )
            for first in range(0, rows, step)
        ]
        y, scale = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return y.reshape(*shape, columns // 2), scale.reshape(shape)


def _rows(
    call: DequantSwigluQuant, x: Tensor, tokens: Tensor | None, group: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Y and scale of some rows, whose groups are given."""
    inside = None
    if group is not None and call.group_index is not None:
        groups = call.group_index.shape[0]
        inside = group < groups
        group = group.clamp(max=groups - 1)

    def of_rows(tensor: Tensor) -> Tensor:
        return tensor if group is None else tensor[group]

    gated = call.gate.of(_dequantised(call, x, tokens, of_rows))
    if call.dynamic:
        if call.quant_scale is not None:
            gated = gated * of_rows(call.quant_scale.to(torch.float32))
        y, scale = quantised(gated)
    else:
        if call.quant_scale is not None:
            gated = gated / of_rows(call.quant_scale.to(torch.float32))
        if call.quant_offset is not None:
            gated = gated + of_rows(call.quant_offset.to(torch.float32))
        y = gated.round().clamp(-128, 127).to(torch.int8)
        scale = torch.zeros(x.shape[0], dtype=torch.float32, device=x.device)
    if inside is not None:
        y = torch.where(inside.unsqueeze(1), y, 0)
        scale = torch.where(inside, scale, 0.0)
    return y, scale


def _dequantised(
    call: DequantSwigluQuant, x: Tensor, tokens: Tensor | None, of_rows: Callable[[Tensor], Tensor]
) -> Tensor:
    """Float32 ``(rows, 2 * h)``."""
    bias = call.bias
    if bias is not None and bias.dtype == torch.int32:
        x, bias = x + of_rows(bias), None
    wide = x.to(torch.float32)
    if call.weight_scale is not None:
        wide = wide * of_rows(call.weight_scale)
    if tokens is not None:
        wide = wide * tokens
    if bias is not None:
        wide = wide + of_rows(bias.to(torch.float32))
    return wide


def _arguments(node: NodeCall) -> dict[str, Any]:
    modes = {"static": STATIC, "dynamic": DYNAMIC}
    is_int8 = node.dtype("dst_type", 2) == torch.int8
    return {
        "x": node["x"],
        **{
            name: node.get(name)
            for name in (
                "weight_scale",
                "activation_scale",
                "bias",
                "quant_scale",
                "quant_offset",
                "group_index",
            )
        },
        "activate_left": bool(node.attr("activate_left", False)),
        "quant_mode": modes[node.attr("quant_mode", "static")],
        "dst_type": INT8 if is_int8 else int(node.attr("dst_type")),
        "round_mode": 0 if node.attr("round_mode", "rint") == "rint" else 1,
        "activate_dim": int(node.attr("activate_dim", -1)),
        "swiglu_mode": int(node.attr("swiglu_mode", 0)),
        "clamp_limit": float(node.attr("clamp_limit", 7.0)),
        "glu_alpha": float(node.attr("glu_alpha", 1.702)),
        "glu_bias": float(node.attr("glu_bias", 1.0)),
    }


OPERATOR = Operator(
    name="npu_dequant_swiglu_quant",
    check=check,
    returns="(Tensor, Tensor)",
    fake=fake,
    cpu=cpu,
    portable=cpu,
    decomposition=run,
    nodes=(GENode("DequantSwigluQuant", _arguments),),
    summary="int32 sums scaled, gated by silu, and quantised to int8",
    unsupported="dst_type other than int8; round_mode other than 0; activate_dim other than the "
    "last axis",
    exactness="float32 in the stated order; exp is the C library's",
    source="torch_npu's interface document, CANN's ops-nn",
)
