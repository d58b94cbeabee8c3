"""npu_moe_finalize_routing: the experts' rows weighed, and added up for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    Size,
    check_choice,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    require,
    required,
)
from npu_lowering.operators.operator import GENode, NodeCall, Operator
from npu_lowering.operators.value_checks import are_checked

# drop_pad_mode
_MODES: dict[object, str] = {
    0: "slots by columns, none dropped",
    1: "slots by columns, rows of a fixed capacity",
    2: "slots by rows, none dropped",
    3: "slots by rows, rows of a fixed capacity",
}


@dataclass(frozen=True)
class FinalizeRouting:
    """A checked call.

    Attributes:
        rows: ``(tokens * k, h)``, or ``(experts, capacity, h)``.
        skips: each ``(tokens, h)``, what is added to the sum.
        bias: ``(experts, h)``, or None.
        scales: ``(tokens, k)``, or None for ones.
        place: ``(tokens * k,)``, the row of each slot, -1 for a dropped one.
        by_columns: whether slots are counted token after token, and not k after k.
        experts: ``(tokens, k)``, or None; needed with bias.
        drops: whether a place may be -1.
        tokens: rows of the result.
        slots: k.
    """

    rows: Tensor
    skips: tuple[Tensor, ...]
    bias: Tensor | None
    scales: Tensor | None
    place: Tensor
    by_columns: bool
    experts: Tensor | None
    drops: bool
    tokens: Size
    slots: Size

    @property
    def h(self) -> Size:
        """Columns."""
        return self.rows.shape[-1]


def check(
    expanded_permuted_rows: Tensor,
    skip1: Tensor | None,
    skip2: Tensor | None,
    bias: Tensor | None,
    scales: Tensor | None,
    expanded_src_to_dst_row: Tensor,
    export_for_source_row: Tensor | None,
    drop_pad_mode: int | None = 0,
    k: int | None = 1,
) -> FinalizeRouting:
    """Add up, for each token, the rows of its k experts, biased and weighed.

    For token i, in float32 and in ascending j, rounded once, at the end::

        out[i] = skip1[i] + skip2[i] + sum over j of scales[i, j] * (row(i, j) + bias[expert(i, j)])

    where ``row(i, j)`` is the row of expanded_permuted_rows that the slot names.

    Args:
        expanded_permuted_rows: ``(tokens * k, h)``, and ``(experts, capacity, h)`` for
            drop_pad_mode 1 and 3; float16, bfloat16 or float32.
        skip1: ``(tokens, h)`` of the same dtype, or None.
        skip2: the same; needs skip1.
        bias: ``(experts, h)`` of the same dtype, or None; needs export_for_source_row.
        scales: ``(tokens, k)`` of the same dtype or float32, or None for ones.
        expanded_src_to_dst_row: ``(tokens * k,)`` int32, the row of each slot. Slot ``(i, j)`` is
            at ``j * tokens + i`` for drop_pad_mode 0 and 1, at ``i * k + j`` for 2 and 3. With a
            capacity, -1 is a slot that was dropped: its row counts as zeros, its bias not at all.
        export_for_source_row: ``(tokens, k)`` int32, the expert of each slot, or None.
        drop_pad_mode: 0 to 3, None for 0; see above.
        k: experts of a token where scales is None, else not looked at; None for 1.

    Returns:
        ``(tokens, h)``, contiguous, of the dtype of expanded_permuted_rows.

    Raises:
        TypeError: a dtype is wrong, or a required tensor is None.
        ValueError: a shape or a scalar is wrong, or what one argument needs is missing.
        IndexError: a row or an expert does not exist.

    Source: torch_npu's interface document and op-plugin's golden for drop_pad_mode 0 and 1. Modes 2
    and 3, the order of adds, and that a dropped slot has no bias are inferred from CANN's
    MoeFinalizeRoutingV2.
    """
    mode = 0 if drop_pad_mode is None else drop_pad_mode
    check_choice("drop_pad_mode", mode, _MODES)
    rows = required("expanded_permuted_rows", expanded_permuted_rows, "(tokens * k, h)")
    check_dtype("expanded_permuted_rows", rows, torch.float16, torch.bfloat16, torch.float32)
    drops = mode in (1, 3)
    if drops:
        check_rank("expanded_permuted_rows", rows, 3, "(experts, capacity, h)")
    else:
        check_rank("expanded_permuted_rows", rows, 2, "(tokens * k, h)")
    place = required("expanded_src_to_dst_row", expanded_src_to_dst_row, "int32 (tokens * k,)")
    check_dtype("expanded_src_to_dst_row", place, torch.int32)
    check_rank("expanded_src_to_dst_row", place, 1, "(tokens * k,)")
    tokens, slots = _slots(scales, place, 1 if k is None else k)
    if not drops:
        check_shape(
            "expanded_permuted_rows", rows, "(tokens * k, h)", (tokens * slots, rows.shape[1])
        )
    h = rows.shape[-1]
    skips = _skips(skip1, skip2, rows.dtype, (tokens, h))
    _check_bias(bias, export_for_source_row, rows.dtype, h)
    if scales is not None:
        check_dtype("scales", scales, *dict.fromkeys((rows.dtype, torch.float32)))
    if export_for_source_row is not None:
        check_dtype("export_for_source_row", export_for_source_row, torch.int32)
        check_shape("export_for_source_row", export_for_source_row, "(tokens, k)", (tokens, slots))
    tensors = {
        "expanded_permuted_rows": rows,
        "skip1": skip1,
        "skip2": skip2,
        "bias": bias,
        "scales": scales,
        "expanded_src_to_dst_row": place,
        "export_for_source_row": export_for_source_row,
    }
    check_devices("expanded_permuted_rows", tensors)
    return FinalizeRouting(
        rows=rows,
        skips=skips,
        bias=bias,
        scales=scales,
        place=place,
        by_columns=mode in (0, 1),
        experts=export_for_source_row,
        drops=drops,
        tokens=tokens,
        slots=slots,
    )


def _slots(scales: Tensor | None, place: Tensor, k: int) -> tuple[Size, Size]:
    """Tokens and k."""
    if scales is not None:
        check_rank("scales", scales, 2, "(tokens, k)")
        tokens, slots = scales.shape
    else:
        require(ValueError, k >= 1, lambda: f"k must be >= 1, got {k}")
        tokens, slots = place.shape[0] // k, k
    require(
        ValueError,
        place.shape[0] == tokens * slots,
        lambda: (
            f"expanded_src_to_dst_row must be (tokens * k,) = ({tokens} * {slots},), "
            f"got shape {tuple(place.shape)}"
        ),
    )
    return tokens, slots


def _skips(
    skip1: Tensor | None, skip2: Tensor | None, dtype: torch.dtype, shape: tuple[Size, Size]
) -> tuple[Tensor, ...]:
    if skip2 is not None and skip1 is None:
        raise ValueError(
            "skip1 is required with skip2: expected both, skip1 alone or neither, "
            f"got skip2 of shape {tuple(skip2.shape)} and skip1 None"
        )
    given = []
    for name, skip in (("skip1", skip1), ("skip2", skip2)):
        if skip is not None:
            check_dtype(name, skip, dtype)
            check_shape(name, skip, "(tokens, h)", shape)
            given.append(skip)
    return tuple(given)


def _check_bias(bias: Tensor | None, experts: Tensor | None, dtype: torch.dtype, h: Size) -> None:
    if bias is None:
        return
    if experts is None:
        raise ValueError(
            "export_for_source_row is required with bias, got bias of shape "
            f"{tuple(bias.shape)} and export_for_source_row None"
        )
    check_dtype("bias", bias, dtype)
    check_rank("bias", bias, 2, "(experts, h)")
    check_shape("bias", bias, "(experts, h)", (bias.shape[0], h))


def fake(call: FinalizeRouting) -> Tensor:
    """The result without its values."""
    return call.rows.new_empty((call.tokens, call.h))


def cpu(call: FinalizeRouting) -> Tensor:
    """The result, after a look at the indices."""
    first = -1 if call.drops else 0
    rows = call.rows.shape[:-1].numel()
    _check_indices("expanded_src_to_dst_row", call.place, first, rows)
    if call.bias is not None and call.experts is not None:
        _check_indices("export_for_source_row", call.experts, 0, call.bias.shape[0])
    return run(call)


def _check_indices(name: str, indices: Tensor, first: int, end: int) -> None:
    if not indices.numel() or not are_checked(indices):
        return
    low, high = torch.aminmax(indices)
    if int(low) < first or int(high) >= end:
        got = int(low) if int(low) < first else int(high)
        raise IndexError(f"{name} must lie in [{first}, {end}), got {got}")


def run(call: FinalizeRouting) -> Tensor:
    """The result, on any device, with k adds for all tokens at once."""
    rows, place = call.rows.flatten(0, -2), call.place.to(torch.int64)
    out = torch.zeros((call.tokens, call.h), dtype=torch.float32, device=rows.device)
    for skip in call.skips:
        out = out + skip.to(torch.float32)
    for j in range(call.slots):
        if call.by_columns:
            slot = place[j * call.tokens : (j + 1) * call.tokens]
        else:
            slot = place[j :: call.slots]
        row = rows[slot.clamp(min=0)].to(torch.float32)
        if call.bias is not None and call.experts is not None:
            row = row + call.bias[call.experts[:, j].to(torch.int64)].to(torch.float32)
        if call.drops:
            row = torch.where((slot >= 0).unsqueeze(1), row, 0.0)
        if call.scales is not None:
            row = row * call.scales[:, j].to(torch.float32).unsqueeze(1)
        out = out + row
    return out.to(rows.dtype)


def _arguments(node: NodeCall) -> dict[str, Any]:
    """Of either type: the older one has all inputs but x2, another name for one, no attributes.

    GE's definition calls the attribute K, and TorchAIR writes k.
    """
    experts = node.get("expert_idx")
    return {
        "expanded_permuted_rows": node["expanded_x"],
        "skip1": node.get("x1"),
        "skip2": node.get("x2"),
        "bias": node.get("bias"),
        "scales": node.get("scales"),
        "expanded_src_to_dst_row": node["expanded_row_idx"],
        "export_for_source_row": node.get("expanded_expert_idx") if experts is None else experts,
        "drop_pad_mode": int(node.attr("drop_pad_mode", 0)),
        "k": int(node.attr("k", node.attr("K", 1))),
    }


OPERATOR = Operator(
    name="npu_moe_finalize_routing",
    check=check,
    returns="Tensor",
    fake=fake,
    cpu=cpu,
    portable=cpu,
    decomposition=run,
    nodes=(
        GENode("MoeFinalizeRouting", _arguments),
        GENode("MoeFinalizeRoutingV2", _arguments),
    ),
    summary="the experts' rows weighed, and added up for each token",
    exactness="float32, added in ascending slots, rounded once",
    source="torch_npu's interface document, op-plugin's golden; the order of adds is inferred",
)
