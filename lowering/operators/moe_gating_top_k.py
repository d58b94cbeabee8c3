"""npu_moe_gating_top_k: a gate's choice of experts, of the best groups of them."""

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
    check_rank,
    check_shape,
    require,
)
from npu_lowering.operators.operator import GENode, NodeCall, Operator
from npu_lowering.operators.value_checks import check_range

SOFTMAX, SIGMOID = 0, 1
_NORM_TYPES: dict[object, str] = {SOFTMAX: "softmax", SIGMOID: "sigmoid"}
LARGEST, TOP_2 = 0, 1
_SELECT_MODES: dict[object, str] = {LARGEST: "the largest", TOP_2: "the sum of the two largest"}
_RENORMS: dict[object, str] = {0: "as norm_type has it", 1: "weights that sum to one"}
_FEWEST_OF_GROUP = {LARGEST: 1, TOP_2: 2}


@dataclass(frozen=True)
class GatingTopK:
    """A checked call.

    Attributes:
        x: ``(tokens, experts)``.
        bias: ``(experts,)``, or None.
        input_ids: ``(tokens,)``, or None; with table.
        table: ``(ids, k)``, the experts of each id, or None.
        k: experts of a token.
        k_group: groups of a token.
        groups: how many groups there are.
        takes_two: whether a group counts by the sum of its two best, and not by its best.
        is_sigmoid: whether scores are sigmoids, and not softmaxes.
        sums_to_one: whether weights are divided by their sum.
        gives_scores: whether the third result is computed.
        factor: of the weights.
        epsilon: what is added to their sum.
    """

    x: Tensor
    bias: Tensor | None
    input_ids: Tensor | None
    table: Tensor | None
    k: int
    k_group: int
    groups: int
    takes_two: bool
    is_sigmoid: bool
    sums_to_one: bool
    gives_scores: bool
    factor: float
    epsilon: float


def check(
    x: Tensor,
    k: int,
    *,
    bias: Tensor | None = None,
    input_ids: Tensor | None = None,
    tid2eid: Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> GatingTopK:
    """Choose k experts for each token, from the k_group best groups of experts.

    In float32 and in this order, for each token::

        norm    = softmax(x), or 1 / (1 + exp(-x))
        score   = norm + bias
        groups  = the k_group best, by the largest score or the sum of the two largest
        experts = the k best scores of those groups
        y       = norm[experts]
        y       = y / (sum(y) + eps)            norm_type 1, or renorm 1
        y       = y * routed_scaling_factor     and rounded to the dtype of x

    Of equal scores the lower expert comes first, of equal groups the lower group.

    Args:
        x: ``(tokens, experts)`` float16, bfloat16 or float32.
        k: how many experts, at least 1 and at most those of k_group groups.
        bias: ``(experts,)`` of the dtype of x, or None; it moves the choice, not the weights.
        input_ids: ``(tokens,)`` int32 or int64, or None; with tid2eid.
        tid2eid: ``(ids, k)`` int32 or int64, or None. With it the experts of a token are
            ``tid2eid[input_ids]`` and nothing is sorted.
        k_group: how many groups of a token, in ``[1, group_count]``.
        group_count: into how many groups the experts are divided, evenly and in order.
        group_select_mode: 0 takes groups by their largest score, 1 by the sum of the two largest.
        renorm: 1 divides by the sum of weights with softmax as well.
        norm_type: 0 is softmax, 1 sigmoid.
        out_flag: whether norm is given out.
        routed_scaling_factor: a factor of all weights.
        eps: keeps the sum of weights from zero.

    Returns:
        The weights, ``(tokens, k)`` of the dtype of x; the experts, int32 of the same shape; and
        norm, float32 ``(tokens, experts)``, zeros where it is not asked for.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or a scalar is wrong, or one of input_ids and tid2eid is missing.
        IndexError: an input_ids or a tid2eid names what does not exist.

    Source: torch_npu's interface document and op-plugin's golden; CANN's MoeGatingTopK and the
    golden of its own test for renorm. That a group outside the choice never gives an expert, as the
    golden has it for finite scores, and how input_ids choose, are inferred.
    """
    check_dtype("x", x, torch.float16, torch.bfloat16, torch.float32)
    check_rank("x", x, 2, "(tokens, experts)")
    experts = x.shape[1]
    if bias is not None:
        check_dtype("bias", bias, x.dtype)
        check_shape("bias", bias, "(experts,)", (experts,))
    check_choice("group_select_mode", group_select_mode, _SELECT_MODES)
    check_choice("renorm", renorm, _RENORMS)
    check_choice("norm_type", norm_type, _NORM_TYPES)
    _check_groups(experts, k, k_group, group_count, group_select_mode)
    _check_table(x, input_ids, tid2eid, k)
    check_devices("x", {"x": x, "bias": bias, "input_ids": input_ids, "tid2eid": tid2eid})
    return GatingTopK(
        x,
        bias,
        input_ids,
        tid2eid,
        k=k,
        k_group=k_group,
        groups=group_count,
        takes_two=group_select_mode == TOP_2,
        is_sigmoid=norm_type == SIGMOID,
        sums_to_one=norm_type == SIGMOID or renorm == 1,
        gives_scores=out_flag,
        factor=routed_scaling_factor,
        epsilon=eps,
    )


def _check_groups(experts: int, k: int, k_group: int, groups: int, mode: int) -> None:
    require(ValueError, groups >= 1, lambda: f"group_count must be >= 1, got {groups}")
    require(
        ValueError,
        experts % groups == 0,
        lambda: f"group_count must divide the experts, {experts}, got {groups}",
    )
    if not 1 <= k_group <= groups:
        raise ValueError(f"k_group must lie in [1, group_count] = [1, {groups}], got {k_group}")
    of_group = experts // groups
    # One group of all is chosen without a look at its scores.
    fewest = 1 if groups == 1 else _FEWEST_OF_GROUP[mode]
    require(
        ValueError,
        of_group >= fewest,
        lambda: (
            f"group_count must leave a group at least {fewest} experts for group_select_mode "
            f"{mode}, got {groups} groups of {of_group}"
        ),
    )

    def message() -> str:
        return (
            "k must lie in [1, k_group * experts / group_count] = "
            f"[1, {k_group * of_group}], got {k}"
        )

    require(ValueError, k >= 1, message)
    require(ValueError, k <= k_group * of_group, message)


def _check_table(x: Tensor, input_ids: Tensor | None, table: Tensor | None, k: int) -> None:
    if (input_ids is None) != (table is None):
        missing, given = ("tid2eid", "input_ids") if table is None else ("input_ids", "tid2eid")
        raise ValueError(f"{missing} is required with {given}, got None")
    if input_ids is None or table is None:
        return
    check_dtype("input_ids", input_ids, torch.int32, torch.int64)
    check_shape("input_ids", input_ids, "(tokens,)", (x.shape[0],))
    check_dtype("tid2eid", table, torch.int32, torch.int64)
    check_rank("tid2eid", table, 2, "(ids, k)")
    check_shape("tid2eid", table, "(ids, k)", (table.shape[0], k))


def fake(call: GatingTopK) -> tuple[Tensor, Tensor, Tensor]:
    """The results without their values."""
    x, shape = call.x, (call.x.shape[0], call.k)
    return (
        x.new_empty(shape),
        x.new_empty(shape, dtype=torch.int32),
        x.new_empty(x.shape, dtype=torch.float32),
    )


def run(call: GatingTopK) -> tuple[Tensor, Tensor, Tensor]:
    """The results, on any device."""
    wide = call.x.to(torch.float32).contiguous()
    # Not torch.sigmoid, of which equal inputs differ in the last bit by where in a row they are,
    # so that the order of equal scores would be chance.
    norm = 1 / (1 + torch.exp(-wide)) if call.is_sigmoid else functional.softmax(wide, -1)
    experts = _chosen(call, norm) if call.table is None else _looked_up(call, call.table)
    y = norm.gather(1, experts)
    if call.sums_to_one:
        y = y / (y.sum(-1, keepdim=True) + call.epsilon)
    y = y * call.factor
    return (
        y.to(call.x.dtype),
        experts.to(torch.int32),
        norm if call.gives_scores else torch.zeros_like(norm),
    )


def _chosen(call: GatingTopK, norm: Tensor) -> Tensor:
    """int64 ``(tokens, k)``: the best experts of the best groups."""
    score = norm if call.bias is None else norm + call.bias.to(torch.float32)
    if call.k_group == call.groups:
        return _best(score, call.k)
    groups = score.unflatten(1, (call.groups, score.shape[1] // call.groups))
    of_group = groups.topk(2, -1).values.sum(-1) if call.takes_two else groups.amax(-1)
    # Those of the chosen groups, in the order of the experts, so that equal scores keep it.
    chosen = _best(of_group, call.k_group).sort(-1).values
    among = groups.gather(1, chosen.unsqueeze(-1).expand(-1, -1, groups.shape[-1])).flatten(1)
    best = _best(among, call.k)
    size = groups.shape[-1]
    experts: Tensor = chosen.gather(1, best // size) * size + best % size
    return experts


def _best(score: Tensor, k: int) -> Tensor:
    """The k largest of each row, of equal ones the first; topk leaves their order open."""
    order: Tensor = torch.sort(score, dim=-1, descending=True, stable=True)[1]
    return order[:, :k].clone(memory_format=torch.contiguous_format)


def _looked_up(call: GatingTopK, table: Tensor) -> Tensor:
    assert call.input_ids is not None
    check_range("input_ids", call.input_ids, table.shape[0], "ids")
    check_range("tid2eid", table, call.x.shape[1], "experts")
    return table[call.input_ids.to(torch.int64)].to(torch.int64)


def limits(call: GatingTopK) -> list[str]:
    """What of a call the device's document excludes."""
    experts = call.x.shape[1]
    padded = -(-(experts // call.groups) // 32) * 32 * call.groups
    if padded <= 2048:
        return []
    return [
        "the experts must be at most 2048, those of each group counted up to a multiple of 32, "
        f"got {experts} in {call.groups} groups"
    ]


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "x": node["x"],
        "k": int(node.attr("k")),
        "bias": node.get("bias"),
        "input_ids": node.get("input_ids"),
        "tid2eid": node.get("tid2eid"),
        "k_group": int(node.attr("k_group", 1)),
        "group_count": int(node.attr("group_count", 1)),
        "group_select_mode": int(node.attr("group_select_mode", 0)),
        "renorm": int(node.attr("renorm", 0)),
        "norm_type": int(node.attr("norm_type", 0)),
        "out_flag": bool(node.attr("out_flag", False)),
        "routed_scaling_factor": float(node.attr("routed_scaling_factor", 1.0)),
        "eps": float(node.attr("eps", 1e-20)),
    }


OPERATOR = Operator(
    name="npu_moe_gating_top_k",
    check=check,
    returns="(Tensor, Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    nodes=(GENode("MoeGatingTopK", _arguments),),
    limits=limits,
    summary="a gate's choice of experts, from the best groups of them",
    exactness="experts exact, of equal scores the lower one first; weights float32, rounded once",
    source="torch_npu's interface document; op-plugin's golden; CANN's MoeGatingTopK",
)
