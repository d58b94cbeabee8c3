"""npu_swiglu: a gated activation, ``silu(left) * right``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from npu_lowering.operators.checking import check_dtype, require
from npu_lowering.operators.operator import GENode, NodeCall, Operator


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


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {"input": node["x"], "dim": int(node.attr("dim", -1))}


OPERATOR = Operator(
    name="npu_swiglu",
    check=check,
    returns="Tensor",
    fake=fake,
    cpu=run,
    portable=run,
    decomposition=run,
    nodes=(GENode("SwiGlu", _arguments),),
    summary="silu of one half times the other half",
    exactness="float32, rounded once; silu is the C library's",
    source="torch_npu's interface document; the place of the rounding is inferred",
)
