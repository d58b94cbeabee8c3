"""npu_moe_re_routing: rows that came rank after rank, put expert after expert."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    check_choice,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    must_be_none,
)
from npu_lowering.operators.operator import GENode, NodeCall, Operator
from npu_lowering.operators.value_checks import are_checked


@dataclass(frozen=True)
class ReRouting:
    """A checked call.

    Attributes:
        tokens: ``(rows, h)``.
        counts: ``(ranks, experts)`` int32 or int64.
        scales: float32 ``(rows,)``, or None.
    """

    tokens: Tensor
    counts: Tensor
    scales: Tensor | None


def check(
    tokens: Tensor,
    expert_token_num_per_rank: Tensor,
    *,
    per_token_scales: Tensor | None = None,
    expert_token_num_type: int = 1,
    idx_type: int = 0,
    tokens_dtype: int | None = None,
) -> ReRouting:
    """Sort rows that lie by rank, and by expert within a rank, by expert, and by rank within one.

    Args:
        tokens: ``(rows, h)`` float16, bfloat16 or int8.
        expert_token_num_per_rank: ``(ranks, experts)`` int32 or int64, the rows of each expert that
            came from each rank; none is negative, and together they are the rows of tokens.
        per_token_scales: float32 ``(rows,)``, which go with the rows, or None.
        expert_token_num_type: 1, the counts of experts.
        idx_type: 0, the row that each row was.
        tokens_dtype: not supported; None.

    Returns:
        The rows; their scales, float32 ``(rows,)``, zeros where there are none; the row that each
        was, int32 ``(rows,)``; and the rows of each expert, ``(experts,)`` of the dtype of
        expert_token_num_per_rank.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or a scalar is wrong, a count is negative, or the counts do not add up.
        NotImplementedError: tokens_dtype is given.

    Source: torch_npu's interface document, and CANN's MoeReRouting.
    """
    must_be_none("tokens_dtype", tokens_dtype, "supported is the dtype of tokens")
    check_choice("expert_token_num_type", expert_token_num_type, {1: "counts"})
    check_choice("idx_type", idx_type, {0: "gather"})
    check_dtype("tokens", tokens, torch.float16, torch.bfloat16, torch.int8)
    check_rank("tokens", tokens, 2, "(rows, h)")
    counts = expert_token_num_per_rank
    check_dtype("expert_token_num_per_rank", counts, torch.int32, torch.int64)
    check_rank("expert_token_num_per_rank", counts, 2, "(ranks, experts)")
    if per_token_scales is not None:
        check_dtype("per_token_scales", per_token_scales, torch.float32)
        check_shape("per_token_scales", per_token_scales, "(rows,)", (tokens.shape[0],))
    check_devices(
        "tokens",
        {
            "tokens": tokens,
            "expert_token_num_per_rank": counts,
            "per_token_scales": per_token_scales,
        },
    )
    return ReRouting(tokens, counts, per_token_scales)


def fake(call: ReRouting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results without their values."""
    rows, h = call.tokens.shape
    new = call.tokens.new_empty
    return (
        new((rows, h)),
        new(rows, dtype=torch.float32),
        new(rows, dtype=torch.int32),
        new(call.counts.shape[1], dtype=call.counts.dtype),
    )


def run(call: ReRouting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results, on any device, after a look at the counts."""
    rows, counts = call.tokens.shape[0], call.counts.contiguous()
    _check_counts(counts, rows)
    experts = torch.arange(counts.shape[1], device=counts.device).expand(counts.shape)
    of_row = torch.repeat_interleave(
        experts.reshape(-1), counts.reshape(-1).to(torch.int64), output_size=rows
    )
    was = torch.argsort(of_row, stable=True)
    if call.scales is None:
        scales = torch.zeros(rows, dtype=torch.float32, device=was.device)
    else:
        scales = call.scales[was]
    return call.tokens[was], scales, was.to(torch.int32), counts.sum(0, dtype=counts.dtype)


def _check_counts(counts: Tensor, rows: int) -> None:
    if not are_checked(counts):
        return
    negative = (counts < 0).nonzero()
    if len(negative):
        rank, expert = negative[0].tolist()
        raise ValueError(
            "expert_token_num_per_rank must not be negative, got "
            f"expert_token_num_per_rank[{rank}, {expert}] = {int(counts[rank, expert])}"
        )
    total = int(counts.sum())
    if total != rows:
        raise ValueError(
            f"expert_token_num_per_rank must add up to the rows of tokens, {rows}, got {total}"
        )


def covers(call: Mapping[str, Any]) -> bool:
    """Whether a call is without the narrow floats, which are torch_npu's alone."""
    return call.get("tokens_dtype") is None


def limits(call: ReRouting) -> list[str]:
    """What of a call the device's document excludes."""
    h = call.tokens.shape[1]
    return [] if h < 16384 else [f"h of tokens must be less than 16384, got {h}"]


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "tokens": node["tokens"],
        "expert_token_num_per_rank": node["expert_token_num_per_rank"],
        "per_token_scales": node.get("per_token_scales"),
        "expert_token_num_type": int(node.attr("expert_token_num_type", 1)),
        "idx_type": int(node.attr("idx_type", 0)),
    }


OPERATOR = Operator(
    name="npu_moe_re_routing",
    check=check,
    returns="(Tensor, Tensor, Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    covers=covers,
    nodes=(GENode("MoeReRouting", _arguments),),
    limits=limits,
    summary="rows that came rank after rank, put expert after expert",
    unsupported="tokens_dtype",
    exactness="exact",
    source="torch_npu's interface document; CANN's MoeReRouting",
)
