"""npu_rms_norm and npu_add_rms_norm: root mean square normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    check_devices,
    check_dtype,
    check_shape,
    require,
)
from npu_lowering.operators.operator import Derivative, GENode, NodeCall, Operator

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class RmsNorm:
    """A checked normalisation.

    Attributes:
        x: any shape; what is normalised.
        gamma: the factor, of the shape of the last axes of x.
        epsilon: what is added to the mean square.
        residual: what is added to x first, of its shape, or None.
    """

    x: Tensor
    gamma: Tensor
    epsilon: float
    residual: Tensor | None = None


def check(input: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> RmsNorm:  # noqa: A002 -- the schema's own
    """Divide by the root mean square over the last axes, and scale by gamma.

    In float32, and rounded once, at the end::

        rstd = 1 / sqrt(mean(x ** 2) + epsilon)
        y    = x * rstd * gamma

    Args:
        input: ``(..., *gamma.shape)`` float16, bfloat16 or float32.
        gamma: the factor; of the dtype of input, or float32.
        epsilon: keeps the root from zero.

    Returns:
        y, of the shape and dtype of input, and rstd, float32, with axes of one for those of gamma.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: gamma is not of the shape of the last axes of input.

    Source: torch_npu's interface document. That the device rounds once, at the end, is inferred.
    """
    return _checked("input", input, gamma, epsilon)


def check_add(x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> RmsNorm:
    """Add two tensors, and normalise the sum as ``npu_rms_norm`` does.

    The sum is rounded to the dtype of x1, and it is the rounded sum that is normalised.

    Args:
        x1: ``(..., *gamma.shape)`` float16, bfloat16 or float32.
        x2: of the shape and dtype of x1.
        gamma: the factor; of the dtype of x1, or float32.
        epsilon: keeps the root from zero.

    Returns:
        y and the sum, of the shape and dtype of x1, with rstd between them as of ``npu_rms_norm``.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong.

    Source: torch_npu's interface document. That the rounded sum is normalised is inferred.
    """
    check_dtype("x2", x2, x1.dtype)
    check_shape("x2", x2, "of the shape of x1", x1.shape)
    return _checked("x1", x1, gamma, epsilon, x2)


def _checked(
    name: str, x: Tensor, gamma: Tensor, epsilon: float, residual: Tensor | None = None
) -> RmsNorm:
    check_dtype(name, x, *FLOATS)
    check_dtype("gamma", gamma, *dict.fromkeys((x.dtype, torch.float32)))
    require(
        ValueError,
        0 < gamma.dim() <= x.dim(),
        lambda: (
            f"gamma must have at least one and at most the {x.dim()} dimensions of {name}, "
            f"got shape {tuple(gamma.shape)}"
        ),
    )
    check_shape("gamma", gamma, f"the last axes of {name}", x.shape[x.dim() - gamma.dim() :])
    check_devices(name, {name: x, "gamma": gamma, "x2": residual})
    return RmsNorm(x, gamma, epsilon, residual)


def fake(call: RmsNorm) -> tuple[Tensor, ...]:
    """Y and rstd, and the sum where there is a second addend."""
    x, last = call.x, call.gamma.dim()
    rstd = x.new_empty((*x.shape[: x.dim() - last], *[1] * last), dtype=torch.float32)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    if call.residual is None:
        return y, rstd
    return y, rstd, torch.empty_like(y)


def run(call: RmsNorm) -> tuple[Tensor, ...]:
    """The same with numbers, on any device."""
    x, gamma = call.x.contiguous(), call.gamma
    if call.residual is not None:
        x = (call.x + call.residual).contiguous()
    y, rstd = normalised(x, gamma, call.epsilon)
    return (y.to(x.dtype), rstd) if call.residual is None else (y.to(x.dtype), rstd, x)


def normalised(x: Tensor, gamma: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Y and rstd in float32, y not rounded to the dtype of x yet."""
    wide = x.to(torch.float32)
    axes = tuple(range(x.dim() - gamma.dim(), x.dim()))
    rstd = torch.rsqrt(wide.pow(2).mean(axes, keepdim=True) + epsilon)
    return wide * rstd * gamma.to(torch.float32), rstd


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "input": node["x"],
        "gamma": node["gamma"],
        "epsilon": float(node.attr("epsilon", 1e-6)),
    }


def _add_arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "x1": node["x1"],
        "x2": node["x2"],
        "gamma": node["gamma"],
        "epsilon": float(node.attr("epsilon", 1e-6)),
    }


@dataclass(frozen=True)
class Backward:
    """A checked derivative.

    Attributes:
        dy: the gradient of y, of the shape of x.
        x: what was normalised.
        gamma: the factor.
        rstd: as forward gave it.
    """

    dy: Tensor
    x: Tensor
    gamma: Tensor
    rstd: Tensor


def check_backward(dy: Tensor, input: Tensor, gamma: Tensor, rstd: Tensor) -> Backward:  # noqa: A002
    """The derivative of ``npu_rms_norm``, from the rstd that it gave.

    In float32, dx rounded once, at the end, where the mean is over the axes of gamma::

        x_hat  = input * rstd
        g      = dy * gamma
        dx     = rstd * (g - x_hat * mean(g * x_hat))
        dgamma = sum of dy * x_hat over the other axes

    Args:
        dy: of the shape and dtype of input.
        input: ``(..., *gamma.shape)`` float16, bfloat16 or float32.
        gamma: the factor; of the dtype of input, or float32.
        rstd: float32, with axes of one for those of gamma.

    Returns:
        dx, of the shape and dtype of input, and dgamma, float32 of the shape of gamma.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong.

    Source: torch_npu's Meta function; the formula is the derivative's own, its order is inferred.
    """
    call = _checked("input", input, gamma, 0.0)
    check_dtype("dy", dy, input.dtype)
    check_shape("dy", dy, "of the shape of input", input.shape)
    check_dtype("rstd", rstd, torch.float32)
    lead = input.shape[: input.dim() - gamma.dim()]
    check_shape("rstd", rstd, "input's other axes and ones", (*lead, *[1] * gamma.dim()))
    check_devices("input", {"input": input, "dy": dy, "rstd": rstd})
    return Backward(dy, call.x, gamma, rstd)


def fake_backward(call: Backward) -> tuple[Tensor, Tensor]:
    """The results without their values."""
    dx = torch.empty_like(call.x, memory_format=torch.contiguous_format)
    return dx, call.gamma.new_empty(call.gamma.shape, dtype=torch.float32)


def run_backward(call: Backward) -> tuple[Tensor, Tensor]:
    """The results, on any device."""
    dy, x, gamma = (each.contiguous().to(torch.float32) for each in (call.dy, call.x, call.gamma))
    own = x.dim() - gamma.dim()
    normal = x * call.rstd
    weighed = dy * gamma
    mean = (weighed * normal).mean(tuple(range(own, x.dim())), keepdim=True)
    dx = (call.rstd * (weighed - normal * mean)).to(call.x.dtype)
    # No axes would mean all of them.
    dgamma = (dy * normal).sum(tuple(range(own))) if own else dy * normal
    return dx.clone(memory_format=torch.contiguous_format), dgamma


def _derivative(
    op: Callable[..., Any],
    call: RmsNorm,
    grads: tuple[Any, ...],
    wanted: frozenset[str],
) -> Mapping[str, Tensor]:
    """Through npu_rms_norm_backward, which the device has; rstd adds its own share to x."""
    dy, drstd = grads
    y, rstd = op(call.x, call.gamma, call.epsilon)
    dy = torch.zeros_like(y) if dy is None else dy
    x, gamma = call.x, call.gamma
    if drstd is not None:  # two shares, which are rounded once, together
        dy, x, gamma = (each.to(torch.float32) for each in (dy, x, gamma))
    dx, dgamma = torch.ops.npu.npu_rms_norm_backward(dy, x, gamma, rstd)
    if drstd is not None:
        dx = dx - drstd * rstd.pow(3) * x / gamma.numel()
    found = {"input": dx, "gamma": dgamma}
    return {name: found[name] for name in wanted}


def _backward_arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "dy": node["dy"],
        "input": node["x"],
        "gamma": node["gamma"],
        "rstd": node["rstd"],
    }


_EXACTNESS = "float32, rounded once to the dtype of the input"
_SOURCE = "torch_npu's interface document; the place of the rounding is inferred"

OPERATOR = Operator(
    name="npu_rms_norm",
    check=check,
    returns="(Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    decomposition=run,
    derivative=Derivative(("input", "gamma"), _derivative),
    nodes=(GENode("RmsNorm", _arguments),),
    summary="root mean square normalisation",
    exactness=_EXACTNESS,
    source=_SOURCE,
)

ADD = Operator(
    name="npu_add_rms_norm",
    check=check_add,
    returns="(Tensor, Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    decomposition=run,
    nodes=(GENode("AddRmsNorm", _add_arguments),),
    summary="a sum, and its root mean square normalisation",
    exactness=_EXACTNESS,
    source=_SOURCE,
)

BACKWARD = Operator(
    name="npu_rms_norm_backward",
    check=check_backward,
    returns="(Tensor, Tensor)",
    fake=fake_backward,
    cpu=run_backward,
    portable=run_backward,
    decomposition=run_backward,
    nodes=(GENode("RmsNormGrad", _backward_arguments),),
    summary="the derivative of npu_rms_norm",
    exactness="float32, rounded once to the dtype of the input",
    source="torch_npu's Meta function; the formula is the derivative's own",
)
