"""npu_moe_init_routing and npu_moe_compute_expert_tokens: rows in the order of their experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    Size,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    require,
)
from npu_lowering.operators.operator import GENode, NodeCall, Operator
from npu_lowering.operators.value_checks import check_range


@dataclass(frozen=True)
class InitRouting:
    """A checked call.

    Attributes:
        x: ``(tokens, h)``.
        row_idx: ``(tokens, k)`` int32, where each slot lies in the flat order by columns.
        expert_idx: ``(tokens, k)`` int32, the expert of each slot.
        active: tokens whose rows are given out, at most tokens.
    """

    x: Tensor
    row_idx: Tensor
    expert_idx: Tensor
    active: Size


def check(x: Tensor, row_idx: Tensor, expert_idx: Tensor, active_num: int) -> InitRouting:
    """Copy the rows of tokens, one for each expert a token goes to, expert after expert.

    Args:
        x: ``(tokens, h)`` float16, bfloat16 or float32.
        row_idx: ``(tokens, k)`` int32, a permutation: slot ``(token, i)`` is ``i * tokens + token``
            as ``npu_moe_gating_top_k_softmax`` gives it.
        expert_idx: ``(tokens, k)`` int32.
        active_num: tokens that count; more than there are means all.

    Returns:
        The rows, ``(min(tokens, active_num) * k, h)`` of the dtype of x; for each slot, by
        row_idx, the row that it went to, ``(tokens * k,)`` int32; and the experts of the rows,
        sorted, ``(tokens * k,)`` int32. Slots of one expert keep their order.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong, or active_num is negative.
        IndexError: a row_idx lies outside ``[0, tokens * k)``.

    Source: torch_npu's interface document, and CANN's MoeInitRouting.
    """
    check_dtype("x", x, torch.float16, torch.bfloat16, torch.float32)
    check_rank("x", x, 2, "(tokens, h)")
    check_dtype("row_idx", row_idx, torch.int32)
    check_rank("row_idx", row_idx, 2, "(tokens, k)")
    tokens, k = x.shape[0], row_idx.shape[1]
    check_shape("row_idx", row_idx, "(tokens, k)", (tokens, k))
    check_dtype("expert_idx", expert_idx, torch.int32)
    check_shape("expert_idx", expert_idx, "(tokens, k)", (tokens, k))
    require(ValueError, active_num >= 0, lambda: f"active_num must be >= 0, got {active_num}")
    check_devices("x", {"x": x, "row_idx": row_idx, "expert_idx": expert_idx})
    return InitRouting(x, row_idx, expert_idx, torch.sym_min(tokens, active_num))


def fake(call: InitRouting) -> tuple[Tensor, Tensor, Tensor]:
    """The results without their values."""
    x, (tokens, k) = call.x, call.row_idx.shape
    indices = call.row_idx.new_empty(tokens * k)
    return x.new_empty((call.active * k, x.shape[1])), indices, torch.empty_like(indices)


def cpu(call: InitRouting) -> tuple[Tensor, Tensor, Tensor]:
    """The results, after a look at row_idx, which is written through."""
    check_range("row_idx", call.row_idx, call.row_idx.numel(), "tokens * k")
    return run(call)


def run(call: InitRouting) -> tuple[Tensor, Tensor, Tensor]:
    """The results, on any device."""
    x, (tokens, k) = call.x, call.row_idx.shape
    row_idx = call.row_idx.reshape(-1)
    experts, order = torch.sort(call.expert_idx.reshape(-1), stable=True)
    came_from = row_idx[order].to(torch.int64)
    place = torch.arange(tokens * k, dtype=row_idx.dtype, device=x.device)
    went_to = torch.zeros_like(place).index_copy(0, came_from, place)
    return x[came_from[: call.active * k] % tokens], went_to, experts


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "x": node["x"],
        "row_idx": node["row_idx"],
        "expert_idx": node["expert_idx"],
        "active_num": int(node.attr("active_num")),
    }


OPERATOR = Operator(
    name="npu_moe_init_routing",
    check=check,
    returns="(Tensor, Tensor, Tensor)",
    fake=fake,
    cpu=cpu,
    portable=cpu,
    nodes=(GENode("MoeInitRouting", _arguments),),
    summary="the rows of tokens in the order of their experts",
    exactness="exact; a stable order",
    source="torch_npu's interface document; CANN's MoeInitRouting",
)


@dataclass(frozen=True)
class ExpertTokens:
    """A checked call.

    Attributes:
        experts: ``(rows,)`` int32, sorted.
        num_expert: how many there are.
    """

    experts: Tensor
    num_expert: int


def check_expert_tokens(sorted_expert_for_source_row: Tensor, num_expert: int) -> ExpertTokens:
    """Count the rows up to the end of each expert.

    Args:
        sorted_expert_for_source_row: ``(rows,)`` int32, sorted, as ``npu_moe_init_routing`` gives.
        num_expert: how many experts there are.

    Returns:
        ``(num_expert,)`` int32: for each expert, the rows of it and of those before it.

    Raises:
        TypeError: the dtype is wrong.
        ValueError: the shape is wrong, or num_expert is less than 1.

    Source: torch_npu's interface document.
    """
    name = "sorted_expert_for_source_row"
    check_dtype(name, sorted_expert_for_source_row, torch.int32)
    check_rank(name, sorted_expert_for_source_row, 1, "(rows,)")
    require(ValueError, num_expert >= 1, lambda: f"num_expert must be >= 1, got {num_expert}")
    return ExpertTokens(sorted_expert_for_source_row, num_expert)


def fake_expert_tokens(call: ExpertTokens) -> Tensor:
    """The result without its values."""
    return call.experts.new_empty(call.num_expert)


def run_expert_tokens(call: ExpertTokens) -> Tensor:
    """The totals, on any device."""
    ends = torch.arange(call.num_expert, dtype=torch.int32, device=call.experts.device)
    return torch.searchsorted(call.experts.contiguous(), ends, right=True).to(torch.int32)


def _expert_tokens_arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "sorted_expert_for_source_row": node["sorted_experts"],
        "num_expert": int(node.attr("num_experts")),
    }


EXPERT_TOKENS = Operator(
    name="npu_moe_compute_expert_tokens",
    check=check_expert_tokens,
    returns="Tensor",
    fake=fake_expert_tokens,
    cpu=run_expert_tokens,
    portable=run_expert_tokens,
    nodes=(GENode("MoeComputeExpertTokens", _expert_tokens_arguments),),
    summary="running totals of the rows of each expert",
    exactness="exact",
    source="torch_npu's interface document",
)
