"""npu_grouped_matmul: matrices in groups, each times a matrix of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import check_choice, code_of
from npu_lowering.operators.grouped_matmul.contract import (
    NO_GROUPS,
    ROWS,
    GroupedMatmul,
    check_group_type,
    checked,
    fake,
)
from npu_lowering.operators.grouped_matmul.cpu import run
from npu_lowering.operators.operator import GENode, NodeCall, Operator


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
    """Multiply matrices, or groups of rows of one matrix, each by a matrix of its own.

    For row r of group g::

        float x               y = x[r] @ weight[g] + bias[g]
        int8 weight of it     y = x[r] @ ((weight[g] + antiquant_offset[g]) * antiquant_scale[g])
                                  + bias[g]
        int8 x                acc = x[r] @ weight[g] + bias[g], in int32, exactly; without scale
                              this is y
                              y = float32(acc) * scale[g] * per_token_scale[r], in this order,
                              then the activation, in float32; int8 is rounded half to even and
                              clamped

    Each is rounded once, at the end: a float product without bias is torch's matmul, with one it is
    computed in float32. Antiquantised weights are made in float16, rounded after each step, and for
    bfloat16 in float32, rounded once.

    Args:
        x: several ``(m, k)``, each with its weight (group_type 0, or -1, then also of more axes);
            or one, cut in groups. int8, float16, bfloat16 or float32.
        weight: several ``(k, n)``, or, with group_type 0, one ``(e, k, n)``; of the dtype of x, or
            int8 with antiquant_scale.
        bias: ``(n,)`` for each weight, ``(e, n)`` for a 3-D one; int32 with int8, float16 with
            float16, else float32.
        scale: the same, with int8 x only: float32, bfloat16, or int64, with a float32's bits in the
            low half.
        offset: not supported; None.
        antiquant_scale: of the shape of bias and the dtype of x, float16 or bfloat16.
        antiquant_offset: the same.
        per_token_scale: float32 ``(m,)`` for each x; with a float scale.
        group_list: int64 ``(e,)``, counts or running totals; None with group_type -1, and where
            each x has its weight.
        activation_input: None.
        activation_quant_scale: None.
        activation_quant_offset: None.
        split_item: 0 or 1 for a result for each weight, 2 or 3 for one.
        group_type: -1, no groups; 0, rows of x; 2, columns of x, which meet rows of one 2-D weight.
        group_list_type: 0 or None for running totals, 1 for counts.
        act_type: with per_token_scale: 0, 1 (relu), 2 (gelu by tanh), 4 (fast gelu) or 5 (silu).
        tuning_config: a hint to the device's tiling.
        output_dtype: of the result, as a torch dtype: int32 for int8 without scale, a float with
            it, int8 or float16 with an int64 scale; None for the dtype of a float x, and for int8's
            int32, float16 and int8.
        x_dtype: None.
        weight_dtype: None.
        scale_dtype: None.
        per_token_scale_dtype: None.

    Returns:
        A ``(m, n)`` for each weight, or one of all rows; rows past the last group are zeros. With
        group_type 2 one ``(groups, m, n)``.

    Raises:
        TypeError: a dtype is wrong, or group_list or group_type is missing.
        ValueError: a shape, a size or a scalar is wrong; also for values of group_list.
        NotImplementedError: a form that is not supported is asked for.

    Source: torch_npu's interface document and Meta function, op-plugin's tests. Rows past the last
    group are undefined on a device. That the device rounds once is inferred.
    """
    del tuning_config
    given = dict(locals())
    kind = 0 if group_list_type is None else group_list_type
    check_choice("group_list_type", kind, {0: "totals", 1: "counts"})
    return checked(
        given,
        group_list=group_list,
        group_type=check_group_type(group_type, len(x)),
        totals=kind == 0,
        output_dtype=output_dtype,
    )


def check_list(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    *,
    bias: Sequence[Tensor] | None = None,
    scale: Sequence[Tensor] | None = None,
    offset: Sequence[Tensor] | None = None,
    antiquant_scale: Sequence[Tensor] | None = None,
    antiquant_offset: Sequence[Tensor] | None = None,
    per_token_scale: Sequence[Tensor] | None = None,
    group_list: Sequence[int] | None = None,
    activation_input: Sequence[Tensor] | None = None,
    activation_quant_scale: Sequence[Tensor] | None = None,
    activation_quant_offset: Sequence[Tensor] | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    act_type: int | None = 0,
    output_dtype: torch.dtype | None = None,
) -> GroupedMatmul:
    """The same with group_list as ints, which are running totals.

    Args:
        x: as of ``npu_grouped_matmul``, as all that is not said here.
        weight: several ``(k, n)``.
        bias: the same.
        scale: the same.
        offset: not supported; None.
        antiquant_scale: the same.
        antiquant_offset: the same.
        per_token_scale: the same.
        group_list: running totals, one for each weight: where the rows of one x are cut, or, with
            several x, the rows of each.
        activation_input: None.
        activation_quant_scale: None.
        activation_quant_offset: None.
        split_item: the same; one x gives several results as well.
        group_type: None.
        group_list_type: 0 or None.
        act_type: the same.
        output_dtype: the same.

    Returns:
        As ``npu_grouped_matmul``.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, a size or a scalar is wrong, group_list included.
        NotImplementedError: a form that is not supported is asked for.

    Source: torch_npu's interface document and Meta function.
    """
    given = dict(locals())
    if group_type is not None:
        raise ValueError(f"group_type must be None with group_list as ints, got {group_type}")
    if group_list_type not in (None, 0):
        raise ValueError(
            f"group_list_type must be 0 (totals) with group_list as ints, got {group_list_type}"
        )
    call = checked(
        given,
        group_list=group_list,
        group_type=ROWS if len(x) == 1 and group_list is not None else NO_GROUPS,
        totals=True,
        output_dtype=None if output_dtype is None else code_of(output_dtype),
    )
    if group_list is not None:
        call.check_ints()
    return call


def _arguments(node: NodeCall) -> dict[str, Any]:
    """TorchAIR gives the dynamic inputs it has nothing for as empty tensors."""
    weights = node.dynamic("weight")
    if node.attr("transpose_weight", False):
        weights = [weight.transpose(-1, -2) for weight in weights]
    given: dict[str, Any] = {
        name: [tensor for tensor in node.optional(name) if tensor.numel()]
        for name in ("bias", "scale", "offset", "antiquant_scale", "antiquant_offset")
    }
    # TorchAIR reads what is int64 as uint64.
    given["scale"] = [
        scale if scale.is_floating_point() else scale.view(torch.int64) for scale in given["scale"]
    ]
    per_token, groups = node.get("per_token_scale"), node.get("group_list")
    group_type = int(node.attr("group_type", NO_GROUPS))
    x, dtype = node.dynamic("x"), node.output_dtype()
    group_list: Any = groups
    if group_type == NO_GROUPS and groups is not None:  # the overload whose group_list is ints
        group_type = ROWS if len(x) == 1 else NO_GROUPS
        group_list = node.ints("group_list")
    return {
        "x": x,
        "weight": weights,
        **given,
        "per_token_scale": None if per_token is None else [per_token],
        "group_list": group_list,
        "split_item": int(node.attr("split_item", 0)),
        "group_type": group_type,
        "group_list_type": int(node.attr("group_list_type", 0)),
        "act_type": int(node.attr("act_type", 0)),
        "output_dtype": None if dtype is None else code_of(dtype),
    }


_SUMMARY = "groups of rows, or matrices of a list, each times a matrix of its own"
_UNSUPPORTED = (
    "offset, activation_input, activation_quant_*, *_dtype; int4 weights; group_type 2 with int8, "
    "scales or bias; split_item 0 and 1 where one x is cut by a tensor"
)
_EXACTNESS = "int8 exact; scaled in float32, rounded once; floats as torch's matmul"
_SOURCE = "torch_npu's interface document and Meta function, op-plugin's tests"

OPERATOR = Operator(
    name="npu_grouped_matmul",
    check=check,
    returns="Tensor[]",
    fake=fake,
    cpu=run,
    portable=run,
    nodes=(GENode("GroupedMatmul", _arguments),),
    summary=_SUMMARY,
    unsupported=_UNSUPPORTED,
    exactness=_EXACTNESS,
    source=_SOURCE,
)

LIST = Operator(
    name="npu_grouped_matmul.List",
    check=check_list,
    returns="Tensor[]",
    fake=fake,
    cpu=run,
    portable=run,
    summary=_SUMMARY + ", cut by a list of ints",
    unsupported=_UNSUPPORTED,
    exactness=_EXACTNESS,
    source=_SOURCE,
)
