"""Kernels of GE operators: element by element, and reductions.

Each follows torch's CPU operator, so that a compiled graph gives what eager gives, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from npu_lowering.offdevice.engine.call import Call, Result
from npu_lowering.offdevice.engine.graph import GraphError
from npu_lowering.offdevice.engine.kernels.table import Function, Table

KERNELS = Table()


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    def kernel(call: Call) -> Result:
        return function(call["x"])

    return kernel


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def kernel(call: Call) -> Result:
        a, b = call["x1"], call["x2"]
        if a.dtype != b.dtype and a.dim() and b.dim():
            # GE does not promote: whoever builds the node has to cast first. Only numbers are
            # left as Python has them, an int beside a float tensor.
            raise GraphError(f"x1 and x2 must have one dtype, got {a.dtype} and {b.dtype}")
        return function(a, b)

    return kernel


def _trunc_div(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="trunc")


def _floor_div(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


@KERNELS.kernel("Cast")
def _cast(call: Call) -> Result:
    return call["x"].to(call.dtype("dst_type"))


@KERNELS.kernel("Pow")
def _pow(call: Call) -> Result:
    return torch.pow(call["x1"], call["x2"])


@KERNELS.kernel("Muls")
def _muls(call: Call) -> Result:
    return call["x"] * float(call.attr("value"))


@KERNELS.kernel("Adds")
def _adds(call: Call) -> Result:
    return call["x"] + float(call.attr("value"))


@KERNELS.kernel("AxpyV2")
def _axpy_v2(call: Call) -> Result:
    alpha = call["alpha"].item()
    x1 = call["x1"]
    return torch.add(x1, call["x2"], alpha=alpha if x1.is_floating_point() else int(alpha))


@KERNELS.kernel("Sxpy")
def _sxpy(call: Call) -> Result:
    return torch.sub(call["x1"], call["x2"], alpha=call["alpha"].item())


@KERNELS.kernel("Exp")
def _exp(call: Call) -> Result:
    base, scale, shift = (
        float(call.attr(name, default))
        for name, default in (("base", -1.0), ("scale", 1.0), ("shift", 0.0))
    )
    x = call["x"] if (scale, shift) == (1.0, 0.0) else call["x"] * scale + shift
    if base == -1.0:  # GE's way to say e
        return torch.exp(x)
    return torch.exp2(x) if base == 2.0 else torch.pow(base, x)


@KERNELS.kernel("Log")
def _log(call: Call) -> Result:
    base, scale, shift = (
        float(call.attr(name, default))
        for name, default in (("base", -1.0), ("scale", 1.0), ("shift", 0.0))
    )
    x = call["x"] if (scale, shift) == (1.0, 0.0) else call["x"] * scale + shift
    if base == -1.0:
        return torch.log(x)
    if base in (2.0, 10.0):
        return torch.log2(x) if base == 2.0 else torch.log10(x)
    return torch.log(x) / torch.log(torch.tensor(base, dtype=x.dtype))


@KERNELS.kernel("Trunc")
def _trunc(call: Call) -> Result:
    return torch.trunc(call["input_x"])


@KERNELS.kernel("ClipByValueV2")
def _clip_by_value_v2(call: Call) -> Result:
    return torch.clamp(call["x"], call["clip_value_min"], call["clip_value_max"])


@KERNELS.kernel("Lerp")
def _lerp(call: Call) -> Result:
    return torch.lerp(call["start"], call["end"], call["weight"])


@KERNELS.kernel("Addcmul")
def _addcmul(call: Call) -> Result:
    return torch.addcmul(call["input_data"], call["x1"], call["x2"], value=call["value"].item())


@KERNELS.kernel("Addcdiv")
def _addcdiv(call: Call) -> Result:
    return torch.addcdiv(call["input_data"], call["x1"], call["x2"], value=call["value"].item())


def _axes(call: Call) -> tuple[int, ...]:
    """Axes to reduce, from the input of ReduceSum or the attribute of ReduceSumD."""
    if call.get("axes") is not None:
        return tuple(call.ints("axes"))
    return tuple(int(axis) for axis in call.attr("axes"))


def _reduce(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Function:
    def kernel(call: Call) -> Result:
        x, axes = call["x"], _axes(call)
        if not axes and call.attr("noop_with_empty_axes", True):
            return x  # no axes means none here, while torch takes it to mean all
        return function(x, axes or tuple(range(x.dim())), bool(call.attr("keep_dims", False)))

    return kernel


def _one_by_one(
    function: Callable[[Tensor, int, bool], Tensor],
) -> Callable[[Tensor, tuple[int, ...], bool], Tensor]:
    """A reduction that torch has for one axis only."""

    def reduce(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
            x = function(x, axis, keep)
        return x

    return reduce


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _prod(x: Tensor, axis: int, keep: bool) -> Tensor:
    return torch.prod(x, axis, keepdim=keep, dtype=x.dtype)


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.log(torch.sum(torch.exp(x), axes, keepdim=keep))


@KERNELS.kernel("LpNormV2")
def _lp_norm_v2(call: Call) -> Result:
    axes = tuple(call.attr("axes", ()))
    norm = torch.linalg.vector_norm(
        call["x"], float(call.attr("p", 2.0)), axes or None, bool(call.attr("keepdim", False))
    )
    epsilon = float(call.attr("epsilon", 1e-12))
    return torch.clamp(norm, min=epsilon) if epsilon else norm


def _arg(function: Callable[..., Tensor]) -> Function:
    def kernel(call: Call) -> Result:
        (axis,) = call.ints("dimension")
        return function(call["x"], dim=axis).to(call.dtype("dtype", 9))

    return kernel


def _arg_with_value(function: Callable[..., tuple[Tensor, Tensor]]) -> Function:
    def kernel(call: Call) -> Result:
        keep = bool(call.attr("keep_dims", False))
        values, indices = function(call["x"], int(call.attr("dimension")), keep)
        return indices.to(torch.int32), values

    return kernel


def _cumulate(function: Callable[..., Tensor], neutral: int) -> Function:
    def kernel(call: Call) -> Result:
        x, (axis,) = call["x"], call.ints("axis")
        reverse = bool(call.attr("reverse", False))
        x = x.flip(axis) if reverse else x
        total = function(x, axis, dtype=x.dtype)
        if call.attr("exclusive", False):
            first = torch.full_like(total.narrow(axis, 0, min(1, x.shape[axis])), neutral)
            total = torch.cat([first, total.narrow(axis, 0, max(x.shape[axis] - 1, 0))], axis)
        return total.flip(axis) if reverse else total

    return kernel


for _type, _function in {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Add": _binary(torch.add),
    "AddV2": _binary(torch.add),
    "ArgMaxV2": _arg(torch.argmax),
    "ArgMaxWithValue": _arg_with_value(torch.max),
    "ArgMin": _arg(torch.argmin),
    "ArgMinWithValue": _arg_with_value(torch.min),
    "Asin": _unary(torch.asin),
    "Atan": _unary(torch.atan),
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Ceil": _unary(torch.ceil),
    "Cos": _unary(torch.cos),
    "Cumprod": _cumulate(torch.cumprod, 1),
    "Cumsum": _cumulate(torch.cumsum, 0),
    "Div": _binary(torch.div),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Expm1": _unary(torch.expm1),
    "Floor": _unary(torch.floor),
    "FloorDiv": _binary(_floor_div),
    "FloorMod": _binary(torch.remainder),
    "Greater": _binary(torch.gt),
    "GreaterEqual": _binary(torch.ge),
    "Invert": _unary(torch.bitwise_not),
    "IsFinite": _unary(torch.isfinite),
    "IsInf": _unary(torch.isinf),
    "IsNan": _unary(torch.isnan),
    "LeftShift": _binary(torch.bitwise_left_shift),
    "Less": _binary(torch.lt),
    "LessEqual": _binary(torch.le),
    "Log1p": _unary(torch.log1p),
    "LogicalAnd": _binary(torch.logical_and),
    "LogicalNot": _unary(torch.logical_not),
    "LogicalOr": _binary(torch.logical_or),
    "Maximum": _binary(torch.maximum),
    "Minimum": _binary(torch.minimum),
    "Mod": _binary(torch.fmod),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "NotEqual": _binary(torch.ne),
    "RealDiv": _binary(torch.div),
    "Reciprocal": _unary(torch.reciprocal),
    "ReduceAll": _reduce(_one_by_one(torch.all)),
    "ReduceAny": _reduce(_one_by_one(torch.any)),
    "ReduceLogSumExp": _reduce(_log_sum_exp),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceProd": _reduce(_one_by_one(_prod)),
    "ReduceSum": _reduce(_sum),
    "ReduceSumD": _reduce(_sum),
    "RightShift": _binary(torch.bitwise_right_shift),
    "Round": _unary(torch.round),
    "Rsqrt": _unary(torch.rsqrt),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sqrt": _unary(torch.sqrt),
    "Square": _unary(torch.square),
    "Sub": _binary(torch.sub),
    "Tan": _unary(torch.tan),
    "TruncateDiv": _binary(_trunc_div),
}.items():
    KERNELS.add(_type, _function)
