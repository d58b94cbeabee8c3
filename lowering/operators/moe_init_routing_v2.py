"""npu_moe_init_routing_v2: rows in the order of their experts, of a range of experts, quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators import expert_order
from npu_lowering.operators.checking import (
    Size,
    check_choice,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    must_be_none,
    require,
)
from npu_lowering.operators.dynamic_quant import quantised
from npu_lowering.operators.operator import GENode, IntPair, NodeCall, Operator
from npu_lowering.operators.value_checks import check_range

FLOATS = (torch.float16, torch.bfloat16, torch.float32)

DROPLESS, DROP_PAD = 0, 1
_DROP_PAD_MODES: dict[object, str] = {DROPLESS: "dropless", DROP_PAD: "drop and pad"}
TOTALS, COUNTS, KEY_VALUE = 0, 1, 2
_TOKENS_TYPES: dict[object, str] = {TOTALS: "totals", COUNTS: "counts", KEY_VALUE: "key and value"}
NO_QUANT, STATIC, DYNAMIC = -1, 0, 1
GATHER, SCATTER = 0, 1
_ROW_IDX_TYPES: dict[object, str] = {GATHER: "gather", SCATTER: "scatter"}


@dataclass(frozen=True)
class InitRoutingV2:
    """A checked call.

    Attributes:
        x: ``(tokens, h)``.
        expert_idx: ``(tokens, k)`` int32.
        scale: by quant_mode, or None.
        offset: ``(1,)`` for quant_mode 0, else None.
        rows: rows of the result that is not padded.
        capacity: rows of each expert, or None where none is dropped.
        experts: how many there are.
        first: the first active expert.
        end: the one past the last.
        tokens_type: what expert_tokens_num_type says.
        counts_tokens: whether the third result is computed.
        quant_mode: -1, 0 or 1.
        scatters: whether the second result is of row_idx_type 1.
    """

    x: Tensor
    expert_idx: Tensor
    scale: Tensor | None
    offset: Tensor | None
    rows: Size
    capacity: int | None
    experts: int
    first: int
    end: int
    tokens_type: int
    counts_tokens: bool
    quant_mode: int
    scatters: bool


def check(
    x: Tensor,
    expert_idx: Tensor,
    *,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: IntPair = [],  # noqa: B006 -- the schema's own
    row_idx_type: int = 0,
    x_dtype: int | None = None,
) -> InitRoutingV2:
    """Copy the rows of tokens, one for each active expert a token goes to, expert after expert.

    A slot ``s = token * k + i`` is the i-th choice of a token. Slots are sorted by expert, those of
    one expert in their own order; slots whose expert is not active come last.

    Args:
        x: ``(tokens, h)`` float16, bfloat16, float32, or int8 with quant_mode -1.
        expert_idx: ``(tokens, k)`` int32 in ``[0, expert_num]``. The expert ``expert_num``, which
            does not exist, is what a gate gives finished tokens; it gets no row.
        scale: float32. For quant_mode -1 ``(tokens,)``, which goes with the rows, or None; for 0
            ``(1,)``; for 1 ``(active experts, h)`` or ``(1, h)``, the factor of x, or None.
        offset: float32 ``(1,)`` for quant_mode 0, None for the others.
        active_num: rows that are given out where drop_pad_mode is 0; -1 and 0 mean all.
        expert_capacity: rows of each expert where drop_pad_mode is 1, in ``[1, tokens]``.
        expert_num: how many experts there are.
        drop_pad_mode: 0 drops nothing. 1 gives each expert expert_capacity rows, drops what is
            more and leaves zeros where there are less; it needs row_idx_type 0,
            expert_tokens_num_type 1 and all experts active.
        expert_tokens_num_type: 0 for totals, 1 for counts, 2 for pairs of expert and count.
        expert_tokens_num_flag: whether they are computed.
        quant_mode: -1 leaves x as it is; 0 is static int8, in float16 ``round(x * scale + offset)``
            half to even, held to int8; 1 is dynamic int8, by row and in float32 as
            ``npu_dynamic_quant`` does it, of ``x * scale`` where scale is given.
        active_expert_range: ``[first, end)``; empty for ``[0, expert_num)``.
        row_idx_type: 0 gives for each slot its row, -1 where it has none; 1 gives for each row its
            slot.
        x_dtype: not supported; None.

    Returns:
        expanded_x, ``(min(active_num, tokens * k), h)``, or ``(expert_num, expert_capacity, h)``;
        expanded_row_idx, int32 ``(tokens * k,)``; the counts, int64 ``(active experts,)``, or
        ``(expert_num, 2)`` with zeros after the last pair; and expanded_scale, float32, one for
        each row of expanded_x. Past the active rows a device leaves anything. Here are the rows and
        indices of slots that are not active, so what is there lies in range. Zeros are in counts
        that are not asked for, and in expanded_scale where quant_mode or scale leaves it open.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or a scalar is wrong, or two arguments do not go together.
        IndexError: an expert_idx lies outside ``[0, expert_num]``.
        NotImplementedError: a quant_mode of float8, float4 or int4, or x_dtype.

    Source: torch_npu's interface document, op-plugin's implementation and golden, and CANN's
    MoeInitRoutingV3. An exact half is rounded to even in quant_mode 1, as in the golden; CANN's
    kernel rounds it away from zero. That results which are not asked for keep their shapes is read
    from op-plugin.
    """
    must_be_none("x_dtype", x_dtype, "supported is the dtype of x")
    _check_modes(drop_pad_mode, expert_tokens_num_type, quant_mode, row_idx_type)
    check_dtype("x", x, *FLOATS, *((torch.int8,) if quant_mode == NO_QUANT else ()))
    check_rank("x", x, 2, "(tokens, h)")
    tokens = x.shape[0]
    check_dtype("expert_idx", expert_idx, torch.int32)
    check_rank("expert_idx", expert_idx, 2, "(tokens, k)")
    k = expert_idx.shape[1]
    check_shape("expert_idx", expert_idx, "(tokens, k)", (tokens, k))
    require(ValueError, k >= 1, lambda: f"expert_idx must have k >= 1, got shape {(tokens, k)}")
    first, end = _range(active_expert_range, expert_num)
    _check_scale(scale, offset, x, quant_mode, end - first)
    require(ValueError, active_num >= -1, lambda: f"active_num must be >= -1, got {active_num}")
    if drop_pad_mode == DROP_PAD:
        _check_drop_pad(expert_capacity, tokens, expert_tokens_num_type, row_idx_type)
        if (first, end) != (0, expert_num):
            raise ValueError(
                "active_expert_range must be empty or all experts with drop_pad_mode 1, "
                f"[0, {expert_num}], got [{first}, {end}]"
            )
    slots = tokens * k
    check_devices("x", {"x": x, "expert_idx": expert_idx, "scale": scale, "offset": offset})
    return InitRoutingV2(
        x,
        expert_idx,
        scale,
        offset,
        rows=slots if active_num <= 0 else torch.sym_min(active_num, slots),
        capacity=expert_capacity if drop_pad_mode == DROP_PAD else None,
        experts=expert_num,
        first=first,
        end=end,
        tokens_type=expert_tokens_num_type,
        counts_tokens=expert_tokens_num_flag,
        quant_mode=quant_mode,
        scatters=row_idx_type == SCATTER,
    )


def _check_modes(drop_pad_mode: int, tokens_type: int, quant_mode: int, row_idx_type: int) -> None:
    check_choice("drop_pad_mode", drop_pad_mode, _DROP_PAD_MODES)
    check_choice("expert_tokens_num_type", tokens_type, _TOKENS_TYPES)
    check_choice("row_idx_type", row_idx_type, _ROW_IDX_TYPES)
    if quant_mode not in (NO_QUANT, STATIC, DYNAMIC):
        raise NotImplementedError(
            "quant_mode must be -1 (none), 0 (static int8) or 1 (dynamic int8) on CPU, "
            f"got {quant_mode}"
        )


def _range(active_expert_range: IntPair, expert_num: int) -> tuple[int, int]:
    require(ValueError, expert_num >= 1, lambda: f"expert_num must be >= 1, got {expert_num}")
    given = list(active_expert_range)
    first, end = given if len(given) == 2 else (0, 0 if given else expert_num)
    if not 0 <= first < end <= expert_num:
        raise ValueError(
            "active_expert_range must be empty, or [first, end) with 0 <= first < end <= "
            f"expert_num = {expert_num}, got {given}"
        )
    return first, end


def _check_scale(
    scale: Tensor | None, offset: Tensor | None, x: Tensor, quant_mode: int, active: int
) -> None:
    static = quant_mode == STATIC
    for name, tensor in (("scale", scale), ("offset", offset)):
        if tensor is None and static:
            raise ValueError(f"{name} is required with quant_mode 0, float32 (1,), got None")
        if tensor is not None:
            if name == "offset" and not static:
                raise ValueError(
                    f"offset must be None with quant_mode {quant_mode}, got a tensor of shape "
                    f"{tuple(tensor.shape)}"
                )
            check_dtype(name, tensor, torch.float32)
            if static:
                check_shape(name, tensor, "(1,)", (1,))
    if scale is None or static:
        return
    if quant_mode == NO_QUANT:
        check_shape("scale", scale, "(tokens,)", (x.shape[0],))
    elif scale.dim() == 2 and scale.shape[0] == 1:
        check_shape("scale", scale, "(1, h)", (1, x.shape[1]))
    else:
        check_shape("scale", scale, "(active experts, h)", (active, x.shape[1]))


def _check_drop_pad(capacity: int, tokens: Size, tokens_type: int, row_idx_type: int) -> None:
    require(
        ValueError,
        capacity >= 1,
        lambda: f"expert_capacity must lie in [1, tokens] = [1, {tokens}], got {capacity}",
    )
    require(
        ValueError,
        capacity <= tokens,
        lambda: f"expert_capacity must lie in [1, tokens] = [1, {tokens}], got {capacity}",
    )
    for name, value, needed in (
        ("expert_tokens_num_type", tokens_type, COUNTS),
        ("row_idx_type", row_idx_type, GATHER),
    ):
        if value != needed:
            raise ValueError(f"{name} must be {needed} with drop_pad_mode 1, got {value}")


def fake(call: InitRoutingV2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results without their values."""
    x, slots = call.x, call.expert_idx.shape[0] * call.expert_idx.shape[1]
    shape: tuple[Size, ...] = (call.rows, x.shape[1])
    rows = call.rows
    if call.capacity is not None:
        shape = (call.experts, call.capacity, x.shape[1])
        rows = call.experts * call.capacity
    return (
        x.new_empty(shape, dtype=x.dtype if call.quant_mode == NO_QUANT else torch.int8),
        x.new_empty(slots, dtype=torch.int32),
        x.new_empty(_tokens_shape(call), dtype=torch.int64),
        x.new_empty(rows, dtype=torch.float32),
    )


def _tokens_shape(call: InitRoutingV2) -> tuple[int, ...]:
    return (call.experts, 2) if call.tokens_type == KEY_VALUE else (call.end - call.first,)


def run(call: InitRoutingV2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The results, on any device, after a look at the experts."""
    check_range("expert_idx", call.expert_idx, call.experts, "expert_num", closed=True)
    order = expert_order.sorted_slots(call.expert_idx, call.first, call.end)
    if call.capacity is None:
        chosen, there = order.slots[: call.rows], None
        row_of = order.rows_of_slots() if not call.scatters else order.slots.to(torch.int32)
    else:
        chosen, there = order.with_capacity(call.capacity)
        row_of = order.rows_of_slots(call.capacity)
    rows, scales = _expanded(call, chosen, there)
    if call.capacity is not None:
        rows = rows.reshape(call.experts, call.capacity, -1)
    return rows, row_of, _tokens(call, order), scales


def _expanded(call: InitRoutingV2, chosen: Tensor, there: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows and scales of slots; zeros where a capacity has none."""
    x, token = call.x, chosen // call.expert_idx.shape[1]
    scales = torch.zeros(len(chosen), dtype=torch.float32, device=x.device)
    if call.quant_mode == STATIC:
        assert call.scale is not None
        assert call.offset is not None
        rows = expert_order.static_quantised(x, call.scale, call.offset)[token]
    elif call.quant_mode == DYNAMIC and (call.scale is None or len(call.scale) == 1):
        # A row is the same for each of its experts, so it is quantised once.
        wide = x.to(torch.float32)
        y, scale = quantised(wide if call.scale is None else wide * call.scale)
        rows, scales = y[token], scale[token]
    elif call.quant_mode == DYNAMIC:
        assert call.scale is not None
        expert = call.expert_idx.reshape(-1)[chosen].to(torch.int64) - call.first
        factor = call.scale[expert.clamp(0, len(call.scale) - 1)]
        rows, scales = quantised(x.to(torch.float32)[token] * factor)
    else:
        rows = x[token]
        if call.scale is not None:
            scales = call.scale[token]
    if there is not None:
        rows = rows.masked_fill(~there.unsqueeze(1), 0)
        scales = scales.masked_fill(~there, 0)
    return rows, scales


def _tokens(call: InitRoutingV2, order: expert_order.Order) -> Tensor:
    """How many rows each active expert has."""
    shape = _tokens_shape(call)
    if not call.counts_tokens:
        return torch.zeros(shape, dtype=torch.int64, device=call.x.device)
    if call.tokens_type == TOTALS:
        return order.totals()
    counts = order.counts()
    if call.tokens_type == COUNTS:
        return counts
    experts = torch.arange(call.first, call.end, device=counts.device)
    pairs = torch.stack((experts, counts), 1) * (counts > 0).unsqueeze(1)
    front = torch.argsort((counts == 0).to(torch.int8), stable=True)
    result = torch.zeros(shape, dtype=torch.int64, device=call.x.device)
    result[: len(pairs)] = pairs[front]
    return result


def covers(call: Mapping[str, Any]) -> bool:
    """Whether a call is without the narrow floats, which are torch_npu's alone."""
    return call.get("x_dtype") is None and call.get("quant_mode", -1) in (
        NO_QUANT,
        STATIC,
        DYNAMIC,
    )


def limits(call: InitRoutingV2) -> list[str]:
    """What of a call the device's document excludes."""
    most = 5120 if call.tokens_type == KEY_VALUE else 10240
    if call.experts <= most:
        return []
    return [
        f"expert_num must be at most {most} for expert_tokens_num_type {call.tokens_type}, "
        f"got {call.experts}"
    ]


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "x": node["x"],
        "expert_idx": node["expert_idx"],
        "scale": node.get("scale"),
        "offset": node.get("offset"),
        "active_num": int(node.attr("active_num", -1)),
        "expert_capacity": int(node.attr("expert_capacity", -1)),
        "expert_num": int(node.attr("expert_num", -1)),
        "drop_pad_mode": int(node.attr("drop_pad_mode", 0)),
        "expert_tokens_num_type": int(node.attr("expert_tokens_num_type", 0)),
        "expert_tokens_num_flag": bool(node.attr("expert_tokens_num_flag", False)),
        "quant_mode": int(node.attr("quant_mode", -1)),
        "active_expert_range": [int(each) for each in node.attr("active_expert_range", [])],
        "row_idx_type": int(node.attr("row_idx_type", 0)),
    }


OPERATOR = Operator(
    name="npu_moe_init_routing_v2",
    check=check,
    returns="(Tensor, Tensor, Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    covers=covers,
    converter="npu_lowering.converters.moe_init_routing_v2",
    nodes=(GENode("MoeInitRoutingV3", _arguments),),
    limits=limits,
    summary="the rows of tokens in the order of their experts, of a range of them, quantised",
    unsupported="x_dtype; quant_mode of float8, float4 and int4",
    exactness="exact; a stable order; int8 bit for bit in the stated order",
    source="torch_npu's interface document; op-plugin's implementation and golden; CANN's "
    "MoeInitRoutingV3",
)
