"""npu_moe_init_routing_quant: rows in the order of their experts, always quantised to int8."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npu_lowering.operators import moe_init_routing_v2
from npu_lowering.operators.checking import check_choice, require
from npu_lowering.operators.moe_init_routing_v2 import COUNTS, DYNAMIC, STATIC, InitRoutingV2
from npu_lowering.operators.operator import Operator

_QUANT_MODES: dict[object, str] = {STATIC: "static int8", DYNAMIC: "dynamic int8"}
NOT_COUNTED, TOTALS = 0, 1
_TOKENS_MODES: dict[object, str] = {NOT_COUNTED: "none", TOTALS: "totals", 2: "counts"}


@dataclass(frozen=True)
class InitRoutingQuant:
    """A checked call.

    Attributes:
        routing: the same call of the v2, of all experts and with their counts.
        tokens_mode: what expert_tokens_num_mode says, where nothing is dropped; else 0.
        counts_before: whether counts before the drop are given out.
    """

    routing: InitRoutingV2
    tokens_mode: int
    counts_before: bool


def check(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = 1024,
    expert_capacity: int = 0,
    expert_num: int = 256,
    drop_pad_mode: int = 0,
    expert_tokens_num_mode: int = 0,
    expert_tokens_before_capacity_flag: bool = False,
    quant_mode: int = 1,
) -> InitRoutingQuant:
    """Copy the rows of tokens as int8, one for each expert a token goes to, expert after expert.

    The order of rows and the int8 are those of ``npu_moe_init_routing_v2``.

    Args:
        x: ``(tokens, h)`` float16, bfloat16 or float32.
        expert_idx: ``(tokens, k)`` int32 in ``[0, expert_num]``, the last of which does not exist.
        scale: float32. For quant_mode 0 ``(1,)``; for 1 ``(expert_num, h)`` or ``(1, h)``, the
            factor of x, or None.
        offset: float32 ``(1,)`` for quant_mode 0, None for 1.
        active_num: rows that are given out where drop_pad_mode is 0; 0 means all.
        expert_capacity: rows of each expert where drop_pad_mode is 1, in ``[1, tokens]``.
        expert_num: how many experts there are.
        drop_pad_mode: 0 drops nothing; 1 gives each expert expert_capacity rows.
        expert_tokens_num_mode: 0 counts nothing, 1 gives totals, 2 counts, where drop_pad_mode is
            0; with 1 it is not looked at.
        expert_tokens_before_capacity_flag: whether rows are counted before any are dropped, where
            drop_pad_mode is 1; with 0 it is not looked at.
        quant_mode: 0 is static, 1 dynamic.

    Returns:
        expanded_x, int8 ``(min(active_num, tokens * k), h)``, or ``(expert_num, expert_capacity,
        h)``; the row of each slot, int32 ``(tokens * k,)``, -1 for none; the totals or counts,
        int32 ``(expert_num,)``; the counts before the drop, the same; and for quant_mode 1 the
        scale of each row, float32. What is not asked for is an empty ``(0,)``, where torch_npu
        gives None, which a schema of tensors cannot say from Python.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or a scalar is wrong, or two arguments do not go together.
        IndexError: an expert_idx lies outside ``[0, expert_num]``.

    Source: op-plugin's implementation and golden; CANN's MoeInitRoutingQuantV2.
    """
    check_choice("quant_mode", quant_mode, _QUANT_MODES)
    check_choice("expert_tokens_num_mode", expert_tokens_num_mode, _TOKENS_MODES)
    require(ValueError, active_num >= 0, lambda: f"active_num must be >= 0, got {active_num}")
    routing = moe_init_routing_v2.check(
        x,
        expert_idx,
        scale=scale,
        offset=offset,
        active_num=active_num,
        expert_capacity=expert_capacity,
        expert_num=expert_num,
        drop_pad_mode=drop_pad_mode,
        expert_tokens_num_type=COUNTS,
        expert_tokens_num_flag=True,
        quant_mode=quant_mode,
    )
    drops = routing.capacity is not None
    return InitRoutingQuant(
        routing,
        tokens_mode=NOT_COUNTED if drops else expert_tokens_num_mode,
        counts_before=drops and expert_tokens_before_capacity_flag,
    )


def fake(call: InitRoutingQuant) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results without their values."""
    rows, row_of, counts, scales = moe_init_routing_v2.fake(call.routing)
    return (rows, row_of, *_asked(call, counts, scales))


def run(call: InitRoutingQuant) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The results, on any device, after a look at the experts."""
    rows, row_of, counts, scales = moe_init_routing_v2.run(call.routing)
    return (rows, row_of, *_asked(call, counts, scales))


def _asked(call: InitRoutingQuant, counts: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is asked for of counts and scales."""
    none = counts.new_empty(0, dtype=torch.int32)
    tokens = before = none
    if call.tokens_mode != NOT_COUNTED:
        tokens = (counts.cumsum(0) if call.tokens_mode == TOTALS else counts).to(torch.int32)
    if call.counts_before:
        before = counts.to(torch.int32)
    is_dynamic = call.routing.quant_mode == DYNAMIC
    return tokens, before.clone(), scales if is_dynamic else scales.new_empty(0)


def limits(call: InitRoutingQuant) -> list[str]:
    """What of a call the device's document excludes."""
    return moe_init_routing_v2.limits(call.routing)


OPERATOR = Operator(
    name="npu_moe_init_routing_quant",
    check=check,
    returns="(Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    limits=limits,
    summary="the rows of tokens as int8 in the order of their experts",
    exactness="a stable order; int8 bit for bit in the stated order",
    source="op-plugin's implementation and golden; CANN's MoeInitRoutingQuantV2",
)
