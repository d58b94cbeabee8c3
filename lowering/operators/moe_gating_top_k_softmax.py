"""npu_moe_gating_top_k_softmax and its v2: a gate's choice of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from npu_lowering.operators.checking import (
    check_choice,
    check_devices,
    check_dtype,
    check_shape,
    require,
)
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
    values, experts = _largest(scores, k)
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


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, and where they are, by a stable sort.

    topk leaves the order of equal scores open.
    """
    ordered, ids = torch.sort(scores, dim=-1, descending=True, stable=True)
    return ordered[..., :k], ids[..., :k]


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


_RENORMS: dict[object, str] = {0: "softmax, then the k largest", 1: "the k largest, then softmax"}


@dataclass(frozen=True)
class GatingV2:
    """A checked call of the v2.

    Attributes:
        gating: what it shares with the first.
        is_of_chosen: whether the softmax is that of the chosen alone.
        gives_scores: whether the third result is the softmax of all.
    """

    gating: Gating
    is_of_chosen: bool
    gives_scores: bool


def check_v2(
    x: Tensor,
    *,
    k: int = 1,
    finished: Tensor | None = None,
    renorm: int | None = 0,
    output_softmax: bool | None = False,
) -> GatingV2:
    """Take the softmax of a gate's scores, and its k largest for each token, or the other way.

    The softmax is computed in float32, and rounded once. Of equal scores the lower expert comes
    first.

    Args:
        x: ``(tokens, experts)`` or ``(batch, tokens, experts)``, float16, bfloat16 or float32.
        k: how many experts, at least 1 and at most all.
        finished: bool, the shape of x without its last axis. A finished token goes to the expert
            ``experts``, which does not exist.
        renorm: 0 takes the k largest of the softmax; 1 the softmax of the k largest of x, which
            sums to one. None for 0.
        output_softmax: whether the softmax of all is given out; for renorm 0 alone. None for False.

    Returns:
        The weights ``(..., k)`` of the dtype of x; the experts, int32; and the softmax, float32 of
        the shape of x, or an empty ``(0,)`` where it is not given out.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, k or renorm is wrong.

    Source: torch_npu's interface document and op-plugin's golden; the order of equal scores is the
    golden's.
    """
    kind = 0 if renorm is None else renorm
    check_choice("renorm", kind, _RENORMS)
    return GatingV2(check(x, finished, k), kind == 1, kind == 0 and bool(output_softmax))


def fake_v2(call: GatingV2) -> tuple[Tensor, Tensor, Tensor]:
    """The results without their values."""
    values, experts, _ = fake(call.gating)
    x = call.gating.x
    shape = x.shape if call.gives_scores else (0,)
    return values, experts, x.new_empty(shape, dtype=torch.float32)


def run_v2(call: GatingV2) -> tuple[Tensor, Tensor, Tensor]:
    """The results, on any device."""
    x = call.gating.x
    scores = x.new_empty(0, dtype=torch.float32)
    if call.is_of_chosen:
        values, experts = _largest(x.to(torch.float32), call.gating.k)
        values = functional.softmax(values, -1)
    else:
        softmax = functional.softmax(x.to(torch.float32), -1)
        values, experts = _largest(softmax, call.gating.k)
        if call.gives_scores:
            scores = softmax.contiguous()
    if call.gating.finished is not None:
        experts = experts.masked_fill(call.gating.finished.unsqueeze(-1), x.shape[-1])
    contiguous = torch.contiguous_format
    return (
        values.to(x.dtype, copy=True, memory_format=contiguous),
        experts.to(torch.int32, copy=True, memory_format=contiguous),
        scores,
    )


def _arguments_v2(node: NodeCall) -> dict[str, Any]:
    return {
        **_arguments(node),
        "renorm": int(node.attr("renorm", 0)),
        "output_softmax": bool(node.attr("output_softmax_result_flag", False)),
    }


V2 = Operator(
    name="npu_moe_gating_top_k_softmax_v2",
    check=check_v2,
    returns="(Tensor, Tensor, Tensor)",
    fake=fake_v2,
    cpu=run_v2,
    portable=run_v2,
    converter="npu_lowering.converters.moe_gating_top_k_softmax_v2",
    nodes=(GENode("MoeGatingTopKSoftmaxV2", _arguments_v2),),
    summary="softmax of a gate and its k largest for each token, or the other way",
    exactness="experts exact, of equal scores the lower one first; weights float32, rounded once",
    source="torch_npu's interface document; op-plugin's golden",
)
