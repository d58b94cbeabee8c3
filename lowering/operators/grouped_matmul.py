"""npu_grouped_matmul: groups of consecutive rows, each with a matrix of its own."""

from __future__ import annotations

from collections.abc import Sequence
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
    code_of,
    dtype_of_code,
    must_be_none,
    require,
)
from npu_lowering.operators.exact import EXACT_K, without_autocast
from npu_lowering.operators.operator import GENode, NodeCall, Operator

_SUPPORTED = "supported are one x and one 3-D weight, int8 or float, with scale and per_token_scale"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class GroupedMatmul:
    """A checked call.

    Attributes:
        x: ``(m, k)``.
        weight: ``(e, k, n)``.
        scale: ``(e, n)`` float32 or bfloat16, or None.
        per_token_scale: ``(m,)`` float32, or None.
        group_list: ``(e,)`` int64.
        totals: whether group_list holds running totals, not counts.
        dtype: of the result.
    """

    x: Tensor
    weight: Tensor
    scale: Tensor | None
    per_token_scale: Tensor | None
    group_list: Tensor
    totals: bool
    dtype: torch.dtype


def check(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    *,
    bias: Sequence[Tensor] | None = None,
    scale: Sequence[Tensor] | None = None,
    offset: Sequence[Tensor] | None = None,
    antiquant_scale: Sequence[Tensor] | None = None,
    antiquant_offset: Sequence[Tensor] | None = None,
    per_token_scale: Sequence[Tensor] | None = None,
    group_list: Tensor | None = None,
    activation_input: Sequence[Tensor] | None = None,
    activation_quant_scale: Sequence[Tensor] | None = None,
    activation_quant_offset: Sequence[Tensor] | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    act_type: int | None = 0,
    tuning_config: Sequence[int] | None = None,
    output_dtype: int | None = None,
    x_dtype: int | None = None,
    weight_dtype: int | None = None,
    scale_dtype: int | None = None,
    per_token_scale_dtype: int | None = None,
) -> GroupedMatmul:
    """Multiply groups of consecutive rows of x, each by the matrix of its group.

    ``x[r] @ weight[g]`` for the rows r of group g. int8 products are summed in int32, exactly;
    then, in float32 and in this order, times scale[g] and times per_token_scale[r], rounded once.

    Args:
        x: one ``(m, k)`` int8, float16, bfloat16 or float32.
        weight: one ``(e, k, n)`` of the dtype of x.
        bias: not supported; None, as all that is not named here.
        scale: one ``(e, n)`` float32 or bfloat16, with int8 only; or None.
        offset: None.
        antiquant_scale: None.
        antiquant_offset: None.
        per_token_scale: one ``(m,)`` float32, with scale only; or None.
        group_list: ``(e,)`` int64, counts or running totals.
        activation_input: None.
        activation_quant_scale: None.
        activation_quant_offset: None.
        split_item: 2 or 3, for one result.
        group_type: 0, groups of rows.
        group_list_type: 0 for running totals, 1 for counts.
        act_type: 0, no activation.
        tuning_config: a hint to the device's tiling.
        output_dtype: of the result, as a torch dtype: int32 for int8 without scale, a float with
            it; None for int8's own, and for the dtype of a float x.
        x_dtype: None.
        weight_dtype: None.
        scale_dtype: None.
        per_token_scale_dtype: None.

    Returns:
        One ``(m, n)``; rows past the last group are zeros.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a size or a scalar is wrong; also for values of group_list.
        NotImplementedError: a form that is not supported is asked for.

    Source: torch_npu's interface document. Rows past the last group are undefined on a device.
    """
    del tuning_config
    given = dict(locals())
    for name in _REFUSED:
        value = given[name]
        if not isinstance(value, (list, tuple)) or len(value):
            must_be_none(name, value, _SUPPORTED)
    for name, value in (("x", x), ("weight", weight)):
        if len(value) != 1:
            raise NotImplementedError(
                f"{name} must be a list of one tensor, got {len(value)}; {_SUPPORTED}"
            )
    for name, value, known in (
        ("split_item", split_item, (2, 3)),
        ("group_type", group_type, (0,)),
        ("act_type", act_type or 0, (0,)),
    ):
        if value not in known:
            listed = " or ".join(map(str, known))
            raise NotImplementedError(f"{name} must be {listed}, got {value}; {_SUPPORTED}")
    kind = 0 if group_list_type is None else group_list_type
    check_choice("group_list_type", kind, {0: "totals", 1: "counts"})
    one_scale, one_per_token = _one("scale", scale), _one("per_token_scale", per_token_scale)
    if group_list is None:
        raise TypeError("group_list is required: expected a tensor, int64 (e,), got None")
    problem = GroupedMatmul(
        x=x[0],
        weight=weight[0],
        scale=one_scale,
        per_token_scale=one_per_token,
        group_list=group_list,
        totals=kind == 0,
        dtype=_result_dtype(x[0], one_scale, output_dtype),
    )
    _check_tensors(problem)
    return problem


_REFUSED = (
    "bias",
    "offset",
    "antiquant_scale",
    "antiquant_offset",
    "activation_input",
    "activation_quant_scale",
    "activation_quant_offset",
    "x_dtype",
    "weight_dtype",
    "scale_dtype",
    "per_token_scale_dtype",
)


def _one(name: str, tensors: Sequence[Tensor] | None) -> Tensor | None:
    if not tensors:
        return None
    if len(tensors) != 1:
        raise NotImplementedError(
            f"{name} must be a list of one tensor, got {len(tensors)}; {_SUPPORTED}"
        )
    return tensors[0]


def _result_dtype(x: Tensor, scale: Tensor | None, code: int | None) -> torch.dtype:
    check_dtype("x", x, torch.int8, *_FLOATS)
    if x.dtype != torch.int8:
        return x.dtype if code is None else dtype_of_code("output_dtype", code, x.dtype)
    if scale is None:
        # torch_npu's Meta says int8 where no dtype is asked for, which no product fits in.
        default = code_of(torch.int32)
        return dtype_of_code("output_dtype", default if code is None else code, torch.int32)
    return dtype_of_code("output_dtype", code_of(torch.float16) if code is None else code, *_FLOATS)


def _check_tensors(call: GroupedMatmul) -> None:
    x, weight = call.x, call.weight
    check_rank("x", x, 2, "(m, k)")
    check_dtype("weight", weight, x.dtype)
    check_rank("weight", weight, 3, "(e, k, n)")
    e, _, n = weight.shape
    m, k = x.shape
    require(
        ValueError,
        weight.shape[1] == k,
        lambda: f"weight must be (e, k, n) with the k of x, {k}, got shape {tuple(weight.shape)}",
    )
    check_dtype("group_list", call.group_list, torch.int64)
    check_shape("group_list", call.group_list, "(e,)", (e,))
    if call.scale is not None:
        check_dtype("x with scale", x, torch.int8)
        check_dtype("scale", call.scale, torch.float32, torch.bfloat16)
        check_shape("scale", call.scale, "(e, n)", (e, n))
    if call.per_token_scale is not None:
        if call.scale is None:
            raise ValueError("scale is required with per_token_scale, got None")
        check_dtype("per_token_scale", call.per_token_scale, torch.float32)
        check_shape("per_token_scale", call.per_token_scale, "(m,)", (m,))
    check_devices("x", {k: v for k, v in vars(call).items() if isinstance(v, Tensor)})


def fake(call: GroupedMatmul) -> list[Tensor]:
    """The result without its values."""
    return [call.x.new_empty((call.x.shape[0], call.weight.shape[2]), dtype=call.dtype)]


def run(call: GroupedMatmul) -> list[Tensor]:
    """The result, on any device, group after group."""
    ends = _ends(call)
    y = call.x.new_zeros((call.x.shape[0], call.weight.shape[2]), dtype=call.dtype)
    start = 0
    for g, end in enumerate(ends):
        if end > start:
            rows = slice(start, end)
            y[rows] = _scaled(call, g, rows, _product(call.x[rows], call.weight[g]))
        start = end
    return [y]


def _ends(call: GroupedMatmul) -> list[int]:
    """Where each group ends.

    Raises:
        ValueError: a count is negative, a total decreases, or there are more rows than x has.
    """
    m, end = call.x.shape[0], 0
    ends: list[int] = []
    for g, value in enumerate(call.group_list.tolist()):
        before, end = end, value if call.totals else end + value
        if end < before or end > m:
            form = "totals that do not decrease" if call.totals else "counts >= 0"
            raise ValueError(
                f"group_list must hold {form}, of at most m = {m} rows in all, "
                f"got group_list[{g}] = {value} after {before} rows"
            )
        ends.append(end)
    return ends


def _product(x: Tensor, w: Tensor) -> Tensor:
    """``x @ w``, exact int32 for int8."""
    if x.dtype != torch.int8:
        return x @ w
    acc = torch.zeros((x.shape[0], w.shape[1]), dtype=torch.int32, device=x.device)
    for first in range(0, x.shape[1], EXACT_K):
        part = slice(first, first + EXACT_K)
        with without_autocast(x.device):
            acc += torch.mm(x[:, part].float(), w[part].float()).int()
    return acc


def _scaled(call: GroupedMatmul, g: int, rows: slice, product: Tensor) -> Tensor:
    if call.scale is None:
        return product
    y = product.float() * call.scale[g].float()
    if call.per_token_scale is not None:
        y = y * call.per_token_scale[rows].unsqueeze(1)
    return y.to(call.dtype)


def _arguments(node: NodeCall) -> dict[str, Any]:
    """TorchAIR gives the dynamic inputs it has nothing for as empty tensors."""
    weights = node.dynamic("weight")
    if node.attr("transpose_weight", False):
        weights = [weight.transpose(-1, -2) for weight in weights]
    given: dict[str, Any] = {
        name: [tensor for tensor in node.optional(name) if tensor.numel()]
        for name in ("bias", "scale", "offset", "antiquant_scale", "antiquant_offset")
    }
    per_token = node.get("per_token_scale")
    dtype = node.output_dtype()
    return {
        "x": node.dynamic("x"),
        "weight": weights,
        **given,
        "per_token_scale": None if per_token is None else [per_token],
        "group_list": node["group_list"],
        "split_item": int(node.attr("split_item", 0)),
        "group_type": int(node.attr("group_type", -1)),
        "group_list_type": int(node.attr("group_list_type", 0)),
        "act_type": int(node.attr("act_type", 0)),
        "output_dtype": None if dtype is None else code_of(dtype),
    }


OPERATOR = Operator(
    name="npu_grouped_matmul",
    check=check,
    returns="Tensor[]",
    fake=fake,
    cpu=run,
    portable=run,
    nodes=(GENode("GroupedMatmul", _arguments),),
    summary="groups of consecutive rows, each times a matrix of its own",
    unsupported="more than one x or weight; bias, offset, antiquant_*, activation_*, *_dtype; "
    "split_item 0 and 1; group_type -1 and 2; act_type",
    exactness="int8 exact; scaled in float32, rounded once; floats as torch's matmul",
    source="torch_npu's interface document and Meta function",
)
