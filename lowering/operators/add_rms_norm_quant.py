"""npu_add_rms_norm with what comes behind it: a cast, or a quantisation to int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators import rms_norm
from npu_lowering.operators.checking import check_devices, check_dtype, check_shape, required
from npu_lowering.operators.dynamic_quant import INT8, quantised
from npu_lowering.operators.operator import BoolPair, GENode, NodeCall, Operator
from npu_lowering.operators.rms_norm import RmsNorm

_SOURCE = "torch_npu's interface document; CANN's kernels"


def _contiguous(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _refuse_dtype(name: str, code: int | None) -> None:
    if code not in (None, INT8):
        raise NotImplementedError(f"{name} must be None or 1, for int8, on CPU, got {code}")


# npu_add_rms_norm_cast


def check_cast(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> RmsNorm:
    """As ``npu_add_rms_norm``, with y in float32 as well.

    Args:
        x1: ``(..., *gamma.shape)`` float16 or bfloat16.
        x2: of the shape and dtype of x1.
        gamma: the factor; of the dtype of x1, or float32.
        epsilon: keeps the root from zero.

    Returns:
        y in float32, made from the rounded y; y of the dtype of x1; rstd; and the sum.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong.

    Source: torch_npu's Meta function; CANN's AddRmsNormCast kernel, which casts y back.
    """
    check_dtype("x1", x1, torch.float16, torch.bfloat16)
    return rms_norm.check_add(x1, x2, gamma, epsilon)


def fake_cast(call: RmsNorm) -> tuple[Tensor, ...]:
    """The results without their values."""
    y, rstd, total = rms_norm.fake(call)
    return torch.empty_like(y, dtype=torch.float32), y, rstd, total


def run_cast(call: RmsNorm) -> tuple[Tensor, ...]:
    """The results, on any device."""
    y, rstd, total = rms_norm.run(call)
    return y.to(torch.float32), y, rstd, total


def _cast_arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "x1": node["x1"],
        "x2": node["x2"],
        "gamma": node["gamma"],
        "epsilon": float(node.attr("epsilon", 1e-6)),
    }


CAST = Operator(
    name="npu_add_rms_norm_cast",
    check=check_cast,
    returns="(Tensor, Tensor, Tensor, Tensor)",
    fake=fake_cast,
    cpu=run_cast,
    portable=run_cast,
    decomposition=run_cast,
    nodes=(GENode("AddRmsNormCast", _cast_arguments),),
    summary="a sum, and its root mean square normalisation, also in float32",
    exactness="as npu_add_rms_norm",
    source=_SOURCE,
)


# npu_add_rms_norm_dynamic_quant


@dataclass(frozen=True)
class DynamicQuant:
    """A checked call.

    Attributes:
        norm: the normalisation.
        beta: added to it, or None.
        smooth: the factor of each of the two results, or None.
        mask: which of the two are computed.
    """

    norm: RmsNorm
    beta: Tensor | None
    smooth: tuple[Tensor | None, Tensor | None]
    mask: tuple[bool, bool]


def check_dynamic(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    *,
    smooth_scale1: Tensor | None = None,
    smooth_scale2: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-6,
    output_mask: BoolPair | None = None,
    y_dtype: int | None = None,
) -> DynamicQuant:
    """Normalise a sum, and quantise the result once or twice, as ``npu_dynamic_quant`` does.

    It is ``npu_add_rms_norm`` and ``npu_dynamic_quant`` one after another, bit for bit: the sum and
    y are rounded to the dtype of x1 in between. A device leaves them in float32.

    Args:
        x1: ``(..., k)`` float16 or bfloat16.
        x2: of the shape and dtype of x1.
        gamma: ``(k,)`` of the dtype of x1.
        smooth_scale1: ``(k,)`` of the dtype of x1, the factor before the first quantisation.
        smooth_scale2: the same of the second.
        beta: ``(k,)`` of the dtype of x1, added to y before it is rounded.
        epsilon: keeps the root from zero.
        output_mask: which of the two are computed; None for the first, and the second if both
            smooth scales are given.
        y_dtype: None or 1, int8.

    Returns:
        The two y, int8 of the shape of x1; the sum; and the two scales, float32 ``(...,)``. What is
        not computed is ``(0,)``.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong, or output_mask computes neither.
        NotImplementedError: another dtype is asked for.

    Source: torch_npu's interface document and Meta function. CANN's kernel does not round in
    between; that it does here keeps TorchAIR's fusion from changing a result.
    """
    _refuse_dtype("y_dtype", y_dtype)
    norm = _norm(x1, x2, gamma, epsilon)
    tensors = {"smooth_scale1": smooth_scale1, "smooth_scale2": smooth_scale2, "beta": beta}
    for name, tensor in tensors.items():
        if tensor is not None:
            check_dtype(name, tensor, x1.dtype)
            check_shape(name, tensor, "(k,)", gamma.shape)
    check_devices("x1", {"x1": x1, **tensors})
    if output_mask is None:
        mask = (True, smooth_scale1 is not None and smooth_scale2 is not None)
    else:
        mask = _pair(output_mask)
    return DynamicQuant(norm, beta, (smooth_scale1, smooth_scale2), mask)


def _norm(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float) -> RmsNorm:
    check_dtype("x1", x1, torch.float16, torch.bfloat16)
    check_dtype("gamma", gamma, x1.dtype)
    check_shape("gamma", gamma, "(k,)", x1.shape[-1:])
    return rms_norm.check_add(x1, x2, gamma, epsilon)


def _pair(mask: Sequence[bool]) -> tuple[bool, bool]:
    if len(mask) != 2 or not any(mask):
        raise ValueError(
            f"output_mask must be two bools, at least one of them True, got {list(mask)}"
        )
    return bool(mask[0]), bool(mask[1])


def fake_dynamic(call: DynamicQuant) -> tuple[Tensor, ...]:
    """The results without their values."""
    x = call.norm.x
    shapes = [(x.shape, x.shape[:-1]) if given else ((0,), (0,)) for given in call.mask]
    ys = (x.new_empty(shape, dtype=torch.int8) for shape, _ in shapes)
    scales = (x.new_empty(shape, dtype=torch.float32) for _, shape in shapes)
    return (*ys, torch.empty_like(x, memory_format=torch.contiguous_format), *scales)


def run_dynamic(call: DynamicQuant) -> tuple[Tensor, ...]:
    """The results, on any device."""
    y, total = _normalised(call.norm, call.beta)
    ys, scales = [], []
    for smooth, given in zip(call.smooth, call.mask):
        if given:
            wide = y.float() if smooth is None else y.float() * smooth.float()
            quantity, scale = quantised(wide)
        else:
            quantity = y.new_zeros(0, dtype=torch.int8)
            scale = y.new_zeros(0, dtype=torch.float32)
        ys.append(quantity)
        scales.append(scale)
    return (*ys, total, *scales)


def _normalised(norm: RmsNorm, beta: Tensor | None) -> tuple[Tensor, Tensor]:
    """Y, rounded to the dtype of x, and the sum."""
    if beta is None:
        y, _, total = rms_norm.run(norm)
        return y, total
    assert norm.residual is not None
    total = _contiguous(norm.x + norm.residual)
    wide, _ = rms_norm.normalised(total, norm.gamma, norm.epsilon)
    return (wide + beta.float()).to(total.dtype), total


def _dynamic_arguments(node: NodeCall) -> dict[str, Any]:
    mask = list(node.attr("output_mask", ()))
    is_int8 = node.dtype("dst_type", 2) == torch.int8
    return {
        **_cast_arguments(node),
        "smooth_scale1": node.get("smooth_scale1"),
        "smooth_scale2": node.get("smooth_scale2"),
        "beta": node.get("beta"),
        "output_mask": mask or None,
        "y_dtype": INT8 if is_int8 else node.attr("dst_type"),
    }


DYNAMIC = Operator(
    name="npu_add_rms_norm_dynamic_quant",
    check=check_dynamic,
    returns="(Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=fake_dynamic,
    cpu=run_dynamic,
    portable=run_dynamic,
    decomposition=run_dynamic,
    nodes=(GENode("AddRmsNormDynamicQuant", _dynamic_arguments),),
    summary="a sum, its root mean square normalisation, and that in int8 with a scale a row",
    unsupported="y_dtype other than int8",
    exactness="bit for bit npu_add_rms_norm and npu_dynamic_quant one after another",
    source=_SOURCE,
)


# npu_add_rms_norm_quant


@dataclass(frozen=True)
class Quant:
    """A checked call.

    Attributes:
        norm: the normalisation.
        beta: added to it, or None.
        first: scales and zero points of y1.
        second: of y2; scales None where there is none.
        divides: whether y is divided by the scales, and not multiplied.
    """

    norm: RmsNorm
    beta: Tensor | None
    first: tuple[Tensor, Tensor | None]
    second: tuple[Tensor | None, Tensor | None]
    divides: bool


def check_quant(
    x1: Tensor,
    x2: Tensor,
    gamma: Tensor,
    scales1: Tensor,
    zero_points1: Tensor | None,
    beta: Tensor | None = None,
    scales2: Tensor | None = None,
    zero_points2: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    div_mode: bool = True,
    dst_type: int | None = None,
) -> Quant:
    """Normalise a sum, and quantise the result once or twice with given scales.

    The sum and y are rounded to the dtype of x1; then, in float32::

        y1 = round(y / scales1 + zero_points1)       held to [-128, 127], half to even

    Args:
        x1: ``(..., k)`` float16 or bfloat16.
        x2: of the shape and dtype of x1.
        gamma: ``(k,)`` of the dtype of x1.
        scales1: ``(k,)`` float32 or bfloat16.
        zero_points1: ``(k,)`` int32 or bfloat16, or None.
        beta: ``(k,)`` of the dtype of x1, added to y before it is rounded.
        scales2: of the dtype of scales1, or None for no y2.
        zero_points2: of the dtype of zero_points1; needs scales2.
        axis: -1.
        epsilon: keeps the root from zero.
        div_mode: whether y is divided by the scales; multiplied otherwise.
        dst_type: None or 1, int8.

    Returns:
        y1 and y2, int8 of the shape of x1, y2 zeros without scales2; and the sum.

    Raises:
        TypeError: a dtype is wrong, or a required tensor is None.
        ValueError: a shape is wrong, or zero_points2 is given without scales2.
        NotImplementedError: another dtype or axis is asked for.

    Source: torch_npu's interface document and Meta function; CANN's AddRmsNormQuant kernel for the
    order. It does not round y in between; that it does here keeps TorchAIR's fusion from changing a
    result. That y2 is zeros is a choice: a device leaves it undefined.
    """
    _refuse_dtype("dst_type", dst_type)
    if axis != -1:
        raise NotImplementedError(f"axis must be -1, got {axis}; it is all that the device has")
    norm = _norm(x1, x2, gamma, epsilon)
    first = required("scales1", scales1, "float32 or bfloat16 (k,)")
    check_dtype("scales1", first, torch.float32, torch.bfloat16)
    if zero_points1 is not None:
        check_dtype("zero_points1", zero_points1, torch.int32, torch.bfloat16)
    if scales2 is not None:
        check_dtype("scales2", scales2, first.dtype)
    if zero_points2 is not None:
        if scales2 is None:
            raise ValueError("scales2 is required with zero_points2, got None")
        points = (torch.int32, torch.bfloat16) if zero_points1 is None else (zero_points1.dtype,)
        check_dtype("zero_points2", zero_points2, *points)
    if beta is not None:
        check_dtype("beta", beta, x1.dtype)
    tensors = {
        "scales1": scales1,
        "zero_points1": zero_points1,
        "beta": beta,
        "scales2": scales2,
        "zero_points2": zero_points2,
    }
    for name, tensor in tensors.items():
        if tensor is not None:
            check_shape(name, tensor, "(k,)", gamma.shape)
    check_devices("x1", {"x1": x1, **tensors})
    return Quant(norm, beta, (first, zero_points1), (scales2, zero_points2), div_mode)


def fake_quant(call: Quant) -> tuple[Tensor, Tensor, Tensor]:
    """The results without their values."""
    x = torch.empty_like(call.norm.x, memory_format=torch.contiguous_format)
    y = torch.empty_like(x, dtype=torch.int8)
    return y, torch.empty_like(y), x


def run_quant(call: Quant) -> tuple[Tensor, Tensor, Tensor]:
    """The results, on any device."""
    y, total = _normalised(call.norm, call.beta)
    first = _to_int8(y, *call.first, call.divides)
    scales2, points2 = call.second
    if scales2 is None:
        return first, torch.zeros_like(first), total
    return first, _to_int8(y, scales2, points2, call.divides), total


def _to_int8(y: Tensor, scales: Tensor, points: Tensor | None, divides: bool) -> Tensor:
    wide, factor = y.float(), scales.float()
    wide = wide / factor if divides else wide * factor
    if points is not None:
        wide = wide + points.float()
    return torch.round(wide).clamp(-128, 127).to(torch.int8)


QUANT = Operator(
    name="npu_add_rms_norm_quant",
    check=check_quant,
    returns="(Tensor, Tensor, Tensor)",
    fake=fake_quant,
    cpu=run_quant,
    portable=run_quant,
    decomposition=run_quant,
    summary="a sum, its root mean square normalisation, and that in int8 with given scales",
    unsupported="dst_type other than int8; axis other than -1; it has no converter to GE",
    exactness="bit for bit in the stated order",
    source=_SOURCE,
)
