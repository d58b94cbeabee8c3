"""npu_swiglu: a gated activation, ``silu(left) * right``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from npu_lowering.operators.checking import check_devices, check_dtype, check_shape, require
from npu_lowering.operators.operator import Derivative, GENode, NodeCall, Operator


@dataclass(frozen=True)
class Swiglu:
    """A checked call.

    Attributes:
        x: the two halves, side by side.
        dim: the axis that they lie on, not negative.
    """

    x: Tensor
    dim: int


def check(input: Tensor, dim: int = -1) -> Swiglu:  # noqa: A002 -- the schema's own name
    """Cut a tensor in two along an axis, and gate the second half with the first.

    ``silu(left) * right`` in float32, rounded once, at the end.

    Args:
        input: at least 1-D, float16, bfloat16 or float32; an even number of elements along dim.
        dim: the axis.

    Returns:
        A contiguous tensor of the dtype of input, half as long along dim.

    Raises:
        TypeError: the dtype is wrong.
        ValueError: dim is no axis of input, or its length is odd.

    Source: torch_npu's interface document. That the device rounds once, at the end, is inferred.
    """
    check_dtype("input", input, torch.float16, torch.bfloat16, torch.float32)
    rank = input.dim()
    require(
        ValueError,
        -rank <= dim < rank,
        lambda: f"dim must be an axis of input, in [{-rank}, {rank}), got {dim}",
    )
    require(
        ValueError,
        input.shape[dim] % 2 == 0,
        lambda: f"input must be of even length along dim {dim}, got shape {tuple(input.shape)}",
    )
    return Swiglu(input, dim % rank)


def fake(call: Swiglu) -> Tensor:
    """The result without its values."""
    shape = list(call.x.shape)
    shape[call.dim] = shape[call.dim] // 2
    return call.x.new_empty(shape)


def run(call: Swiglu) -> Tensor:
    """The result, on any device."""
    half = call.x.shape[call.dim] // 2
    left, right = call.x.to(torch.float32).split([half, half], call.dim)
    gated: Tensor = functional.silu(left) * right
    return gated.to(call.x.dtype).contiguous()


@dataclass(frozen=True)
class SwigluBackward:
    """A checked call.

    Attributes:
        grad: the gradient of the result.
        forward: the call that gave the result.
    """

    grad: Tensor
    forward: Swiglu


def check_backward(grad_output: Tensor, input: Tensor, dim: int = -1) -> SwigluBackward:  # noqa: A002
    """The gradient of ``npu_swiglu``.

    With s = 1 / (1 + exp(-left)), in float32, rounded once, at the end::

        left   grad * right * (s + left * (1 - s) * s)
        right  grad * left * s

    Args:
        grad_output: of the shape of the result and the dtype of input.
        input: what ``npu_swiglu`` was called with.
        dim: the axis, the same.

    Returns:
        A contiguous tensor of the shape and dtype of input.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: dim is no axis of input, its length is odd, or grad_output has another shape.

    Source: op-plugin's golden. That the device rounds once, at the end, is inferred.
    """
    forward = check(input, dim)
    shape = list(input.shape)
    shape[forward.dim] = shape[forward.dim] // 2
    check_dtype("grad_output", grad_output, input.dtype)
    check_shape("grad_output", grad_output, "of the shape of the result", shape)
    check_devices("grad_output", {"grad_output": grad_output, "input": input})
    return SwigluBackward(grad_output, forward)


def fake_backward(call: SwigluBackward) -> Tensor:
    """The gradient without its values."""
    return torch.empty_like(call.forward.x, memory_format=torch.contiguous_format)


def run_backward(call: SwigluBackward) -> Tensor:
    """The gradient, on any device."""
    x, dim = call.forward.x, call.forward.dim
    half = x.shape[dim] // 2
    left, right = x.to(torch.float32).split([half, half], dim)
    left, right = left.contiguous(), right.contiguous()
    grad = call.grad.to(torch.float32).contiguous()
    s = torch.sigmoid(left)
    of_left = grad * right * (s + left * (1 - s) * s)
    return torch.cat([of_left, grad * (left * s)], dim).to(x.dtype).contiguous()


def _backward(
    op: Any, call: Swiglu, grads: tuple[Any, ...], wanted: frozenset[str]
) -> Mapping[str, Tensor]:
    del op
    if not wanted:
        return {}
    grad = grads[0]
    return {"input": torch.ops.npu.npu_swiglu_backward(grad.to(call.x.dtype), call.x, call.dim)}


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {"input": node["x"], "dim": int(node.attr("dim", -1))}


def _backward_arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "grad_output": node["y_grad"],
        "input": node["x"],
        "dim": int(node.attr("dim", -1)),
    }


OPERATOR = Operator(
    name="npu_swiglu",
    check=check,
    returns="Tensor",
    fake=fake,
    cpu=run,
    portable=run,
    decomposition=run,
    derivative=Derivative(inputs=("input",), backward=_backward),
    nodes=(GENode("SwiGlu", _arguments),),
    summary="silu of one half times the other half",
    exactness="float32, rounded once; silu is the C library's",
    source="torch_npu's interface document; the place of the rounding is inferred",
)

BACKWARD = Operator(
    name="npu_swiglu_backward",
    check=check_backward,
    returns="Tensor",
    fake=fake_backward,
    cpu=run_backward,
    portable=run_backward,
    decomposition=run_backward,
    nodes=(GENode("SwiGluGrad", _backward_arguments),),
    summary="the gradient of npu_swiglu",
    exactness="float32, rounded once; the sigmoid is the C library's",
    source="op-plugin's golden; the place of the rounding is inferred",
)
