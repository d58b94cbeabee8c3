"""npu_moe_gating_top_k_softmax: a gate's choice of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from npu_lowering.operators.checking import check_devices, check_dtype, check_shape, require
from npu_lowering.operators.operator import GENode, NodeCall, Operator


@dataclass(frozen=True)
class Gating:
    """A checked call.

    Attributes:
        x: ``(..., experts)``, 2-D or 3-D.
        finished: bool ``(...)``, or None.
        k: experts of a token.
    """

    x: Tensor
    finished: Tensor | None
    k: int


def check(x: Tensor, finished: Tensor | None = None, k: int = 1) -> Gating:
    """Take the softmax of a gate's scores, and its k largest for each token.

    The softmax is computed in float32. Of equal scores the lower expert comes first.

    Args:
        x: ``(tokens, experts)`` or ``(batch, tokens, experts)``, float16, bfloat16 or float32.
        finished: bool, the shape of x without its last axis. A finished token goes to the expert
            ``experts``, which does not exist.
        k: how many experts, at least 1 and at most all.

    Returns:
        The weights ``(..., k)`` of the dtype of x; the experts, int32; and the index of each slot
        in the flat order by columns, int32: ``i * tokens + token``.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or k is wrong.

    Source: torch_npu's interface document. The order of equal scores is inferred.
    """
    check_dtype("x", x, torch.float16, torch.bfloat16, torch.float32)
    require(
        ValueError,
        x.dim() in (2, 3),
        lambda: f"x must be 2-D or 3-D (..., experts), got shape {tuple(x.shape)}",
    )
    experts = x.shape[-1]
    require(
        ValueError,
        k >= 1,
        lambda: f"k must lie in [1, experts] = [1, {experts}], got {k}",
    )
    require(
        ValueError,
        k <= experts,
        lambda: f"k must lie in [1, experts] = [1, {experts}], got {k}",
    )
    if finished is not None:
        check_dtype("finished", finished, torch.bool)
        check_shape("finished", finished, "x without its last axis", x.shape[:-1])
    check_devices("x", {"x": x, "finished": finished})
    return Gating(x, finished, k)


def fake(call: Gating) -> tuple[Tensor, Tensor, Tensor]:
    """The results without their values."""
    shape = (*call.x.shape[:-1], call.k)
    experts = call.x.new_empty(shape, dtype=torch.int32)
    return call.x.new_empty(shape), experts, torch.empty_like(experts)


def run(call: Gating) -> tuple[Tensor, Tensor, Tensor]:
    """The results, on any device."""
    x, k = call.x, call.k
    scores = functional.softmax(x.to(torch.float32), -1)
    # A stable sort, since topk leaves the order of equal scores open.
    ordered, ids = torch.sort(scores, dim=-1, descending=True, stable=True)
    values, experts = ordered[..., :k], ids[..., :k]
    if call.finished is not None:
        experts = experts.masked_fill(call.finished.unsqueeze(-1), x.shape[-1])
    shape = values.shape
    tokens = shape[:-1].numel()
    slot = torch.arange(tokens * k, dtype=torch.int32, device=x.device)
    contiguous = torch.contiguous_format
    return (
        values.to(x.dtype, copy=True, memory_format=contiguous),
        experts.to(torch.int32, copy=True, memory_format=contiguous),
        slot.reshape(k, tokens).t().reshape(shape).clone(memory_format=contiguous),
    )


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {"x": node["x"], "finished": node.get("finished"), "k": int(node.attr("k"))}


OPERATOR = Operator(
    name="npu_moe_gating_top_k_softmax",
    check=check,
    returns="(Tensor, Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    nodes=(GENode("MoeGatingTopKSoftmax", _arguments),),
    summary="softmax of a gate, and its k largest for each token",
    exactness="experts exact, of equal scores the lower one first; weights float32, rounded once",
    source="torch_npu's interface document; the order of equal scores is inferred",
)
