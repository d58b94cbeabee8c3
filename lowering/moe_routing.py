"""From the experts that a gate chose to the rows, groups and weights that the operator takes.

Every shape follows from the arguments' shapes and no value is read on the host, so all of it can be
compiled, exported, and lowered to GE, which has no stable sort and no bincount for TorchAIR to use.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from npu_lowering.operators.checking import Size
from npu_lowering.operators.grouped_matmul_finalize_routing import schema
from npu_lowering.operators.operator import dtype_name


class Routing(NamedTuple):
    """What :func:`routing` makes of a gate's choice, with ``m = tokens * top_k`` rows.

    Attributes:
        order: ``(m,)`` int64, the flat slot ``token * top_k + slot`` that each row stands for. The
            rows of x are ``hidden[row_index]``; what has a row for each slot is taken by ``order``.
        row_index: ``(m,)`` int64, the token that each row is added to: ``order // top_k``.
        logit: ``(m,)`` float32, the weight of each row: ``topk_weights.reshape(m)[order]``.
        group_list: ``(experts,)`` int64, rows of each expert, or their running totals.
    """

    order: Tensor
    row_index: Tensor
    logit: Tensor
    group_list: Tensor


def routing(
    topk_ids: Tensor,
    topk_weights: Tensor,
    num_experts: int,
    *,
    group_list_type: int = schema.COUNTS,
    expert_range: tuple[int, int] | None = None,
) -> Routing:
    """Sort the chosen (token, slot) pairs by expert, and by token and slot within an expert.

    It reads nothing on the host, and its gradient flows to topk_weights.

    In a GE graph it becomes one Sort of keys that are made of Range, Mul, Add, Sub, comparisons and
    a SelectV2; one SearchSorted for totals, two and a Sub for counts; and an IndexByTensor each for
    row_index and logit, beside casts and reshapes. Nothing is divided: a slot's token is looked up.

    Args:
        topk_ids: ``(tokens, top_k)`` int64 or int32, the experts of each token. An id outside
            ``[0, num_experts)`` belongs to no expert: its row becomes a tail row, which is how a
            token that was dropped can be marked.
        topk_weights: ``(tokens, top_k)`` float32, bfloat16 or float16, their weights.
        num_experts: how many experts there are, on all devices together.
        group_list_type: 1 for counts, 0 for running totals; pass the same to the operator.
        expert_range: ``(first, last)``, last not included, the experts that are local under expert
            parallelism; None means all. group_list is theirs alone. Rows of other experts become
            *tail rows*: they come last, past the end of the last group, and the operator does not
            read them.

    Returns:
        A :class:`Routing`. All ``tokens * top_k`` rows are there, whatever the range.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, num_experts, group_list_type or expert_range is wrong.
    """
    first, last = _check(topk_ids, topk_weights, num_experts, group_list_type, expert_range)
    tokens, top_k = topk_ids.shape
    rows = tokens * top_k
    device = topk_ids.device

    ids = topk_ids.reshape(rows).to(torch.int64)
    local = torch.where((ids >= first) & (ids < last), ids - first, last - first)
    # No two keys are equal, so a sort that is not stable puts them in the one order there is.
    keys, order = torch.sort(local * rows + torch.arange(rows, device=device))
    # How many keys belong to the experts before the end of each, and before its start; each from a
    # search of its own, since a compiler may write one slice of a result over another of it.
    bounds = torch.arange(last - first + 1, device=device) * rows
    group_list = torch.searchsorted(keys, bounds[1:])
    if group_list_type == schema.COUNTS:
        group_list = group_list - torch.searchsorted(keys, bounds[:-1])
    return Routing(
        order=order,
        row_index=_tokens(tokens, top_k, device)[order],
        logit=topk_weights.reshape(rows).to(torch.float32)[order],
        group_list=group_list,
    )


def _tokens(tokens: Size, top_k: Size, device: torch.device) -> Tensor:
    """The token of each slot, ``slot // top_k`` without the division, which devices are slow at."""
    return torch.arange(tokens, device=device).unsqueeze(1).expand(tokens, top_k).reshape(-1)


def _check(
    topk_ids: Tensor,
    topk_weights: Tensor,
    num_experts: int,
    group_list_type: int,
    expert_range: tuple[int, int] | None,
) -> tuple[int, int]:
    """Hold the arguments to what they have to be, and give the range of experts."""
    if topk_ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"topk_ids must be int64 or int32, got {dtype_name(topk_ids.dtype)}")
    if topk_weights.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(
            "topk_weights must be float32, bfloat16 or float16, got "
            + dtype_name(topk_weights.dtype)
        )
    if topk_ids.dim() != 2:
        raise ValueError(f"topk_ids must be 2-D (tokens, top_k), got shape {tuple(topk_ids.shape)}")
    if topk_ids.shape[0] == 0 or topk_ids.shape[1] == 0:
        raise ValueError(
            f"topk_ids must hold at least one token and one slot, got shape {tuple(topk_ids.shape)}"
        )
    if topk_weights.shape != topk_ids.shape:
        raise ValueError(
            f"topk_weights must be of the shape of topk_ids, {tuple(topk_ids.shape)}, "
            f"got {tuple(topk_weights.shape)}"
        )
    if topk_weights.device != topk_ids.device:
        raise ValueError(
            f"topk_weights must be on the device of topk_ids, {topk_ids.device}, "
            f"got {topk_weights.device}"
        )
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}")
    if group_list_type not in (schema.TOTALS, schema.COUNTS):
        raise ValueError(f"group_list_type must be 0 (totals) or 1 (counts), got {group_list_type}")
    if expert_range is None:
        return 0, num_experts
    if len(expert_range) != 2:
        raise ValueError(
            f"expert_range must be two ints, (first, last), got {len(expert_range)} of them"
        )
    first, last = expert_range
    if not 0 <= first < last <= num_experts:
        raise ValueError(
            "expert_range must be (first, last) with 0 <= first < last <= num_experts = "
            f"{num_experts}, got ({first}, {last})"
        )
    return first, last
