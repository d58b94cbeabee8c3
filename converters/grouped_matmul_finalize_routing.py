"""npu_grouped_matmul_finalize_routing as one GroupedMatmulFinalizeRouting node of a GE graph.

CANN versions disagree about several forms of a call. What goes into the node is the one form that
all of them take: counts and not totals, a logit and a shared_input always, and a 3-D weight.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import DataType, Tensor

from npu_lowering.operators.grouped_matmul_finalize_routing import contract, schema
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import Problem
from npu_lowering.operators.grouped_matmul_finalize_routing.fractal_nz import K0, N0


def convert(
    x: Tensor,
    w: Tensor,
    group_list: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    shared_input: Tensor | None = None,
    logit: Tensor | None = None,
    row_index: Tensor | None = None,
    dtype: torch.dtype | None = None,
    shared_input_weight: float | None = schema.SHARED_INPUT_WEIGHT,
    shared_input_offset: int | None = schema.SHARED_INPUT_OFFSET,
    output_bs: int | None = schema.OUTPUT_BS,
    group_list_type: int | None = schema.GROUP_LIST_TYPE,
    tuning_config: Sequence[int] | None = None,
    x_dtype: int | None = None,
    w_dtype: int | None = None,
    scale_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    meta_outputs: Any = None,
) -> Tensor:
    """Add the node, and what normalises its inputs, to the graph that TorchAIR is building.

    Args:
        x: GE tensor, like all tensors here; shapes and dtypes are those of the operator, and are
            read from the fake tensors that TorchAIR keeps with its own.
        w: ``(e, k, n)`` goes into the node as it is, so that the storage format set on the device
            reaches it. ``(e, n1, k1, 16, 32)`` is transposed by GE ops.
        group_list: totals become counts, by GE ops: older kernels read totals as counts.
        scale: as for the operator.
        bias: bfloat16 only.
        offset: None.
        pertoken_scale: ``(m, 1)`` becomes ``(m,)``.
        shared_input: None becomes one row of zeros.
        logit: None becomes ones.
        row_index: as for the operator.
        dtype: as for the operator.
        shared_input_weight: as for the operator.
        shared_input_offset: as for the operator.
        output_bs: 0 and None become m, which has to be static then.
        group_list_type: as for the operator; the node always says counts.
        tuning_config: in the node only if given.
        x_dtype: None.
        w_dtype: None.
        scale_dtype: None.
        pertoken_scale_dtype: None.
        meta_outputs: what TorchAIR passes to converters that ask for it; the node needs none.

    Returns:
        The GE tensor of the node's only output, float32 ``(output_bs, n)``.

    Raises:
        TypeError, ValueError, NotImplementedError: as the operator; and for a float32 bias, and for
            an output_bs or shared_input_offset that would have to be symbolic.

    Warns:
        UserWarning: a documented limit of the device is exceeded, one warning each.
    """
    del meta_outputs
    given = {
        "x": x,
        "w": w,
        "group_list": group_list,
        "scale": scale,
        "bias": bias,
        "offset": offset,
        "pertoken_scale": pertoken_scale,
        "shared_input": shared_input,
        "logit": logit,
        "row_index": row_index,
    }
    metas: dict[str, Any] = {
        name: None if tensor is None else tensor.meta for name, tensor in given.items()
    }
    problem = contract.check(
        **metas,
        dtype=dtype,
        shared_input_weight=shared_input_weight,
        shared_input_offset=shared_input_offset,
        output_bs=output_bs,
        group_list_type=group_list_type,
        x_dtype=x_dtype,
        w_dtype=w_dtype,
        scale_dtype=scale_dtype,
        pertoken_scale_dtype=pertoken_scale_dtype,
    )
    _check_node(problem)
    for sentence in contract.limits_of(problem):
        warnings.warn(f"{schema.NAME}: {sentence}", UserWarning, stacklevel=2)

    if pertoken_scale is not None and pertoken_scale.meta.dim() == 2:
        pertoken_scale = ge.Squeeze(pertoken_scale, axis=[1])
    inputs = {
        "scale": scale,
        "bias": bias,
        "pertoken_scale": pertoken_scale,
        "group_list": _counts(group_list, problem),
        "shared_input": _zero_row(scale) if shared_input is None else shared_input,
        "logit": _ones(row_index) if logit is None else logit,
        "row_index": row_index,
    }
    attributes: dict[str, Any] = {"output_bs": problem.output_bs}
    if shared_input is not None:
        attributes["shared_input_offset"] = problem.shared_input_offset
        attributes["shared_input_weight"] = problem.shared_input_weight
    return _node(x, _logical_weight(w, x, problem), inputs, attributes, tuning_config)


def _node(
    x: Tensor,
    w: Tensor,
    inputs: dict[str, Tensor | None],
    attributes: dict[str, Any],
    tuning_config: Sequence[int] | None,
) -> Tensor:
    """The node, through the builder of the TorchAIR at hand, naming nothing that it lacks."""
    known = _parameters(ge.GroupedMatmulFinalizeRouting)
    if "offset" in known:  # an optional input, but without a default
        inputs = {**inputs, "offset": None}
    if tuning_config and "tuning_config" in known:
        attributes = {**attributes, "tuning_config": list(tuning_config)}
    return ge.GroupedMatmulFinalizeRouting(x, w, **inputs, **attributes)


@functools.cache
def _parameters(builder: Callable[..., Tensor]) -> frozenset[str]:
    return frozenset(inspect.signature(builder).parameters)


def _check_node(problem: Problem) -> None:
    """What the operator takes and the node does not."""
    if problem.bias is not None and problem.bias.dtype != torch.bfloat16:
        raise TypeError(
            "bias must be bfloat16 in a GE graph with int8 w, got float32: the device's kernel "
            "reads it as bfloat16; pass bias.bfloat16()"
        )
    if contract.is_symbolic(problem.output_bs):
        raise ValueError(
            "output_bs must be a constant in a GE graph, got the symbolic number of rows of x, "
            f"m = {problem.output_bs} (output_bs 0 or None means m); pass the number of tokens as "
            "output_bs, or compile with dynamic=False"
        )
    if contract.is_symbolic(problem.shared_input_offset):
        raise ValueError(
            "shared_input_offset must be a constant in a GE graph, got the symbolic "
            f"{problem.shared_input_offset}; pass an int, or compile with dynamic=False"
        )


def _counts(group_list: Tensor, problem: Problem) -> Tensor:
    if problem.group_list_type == schema.COUNTS or problem.e == 1:
        return group_list
    before = ge.StridedSlice(group_list, [0], [-1], [1])
    zero = ge.Const([0], dtype=DataType.DT_INT64)
    return ge.Sub(group_list, ge.ConcatD([zero, before], concat_dim=0, N=2))


def _ones(row_index: Tensor | None) -> Tensor:
    """float32 ``(m,)`` of ones."""
    return ge.Fill(ge.Shape(row_index), ge.Const(1.0, dtype=DataType.DT_FLOAT))


def _zero_row(scale: Tensor | None) -> Tensor:
    """bfloat16 ``(1, n)`` of zeros."""
    row = ge.Shape(ge.Slice(scale, [0, 0], [1, -1]))
    zeros = ge.Fill(row, ge.Const(0.0, dtype=DataType.DT_FLOAT))
    return ge.Cast(zeros, dst_type=DataType.DT_BF16)


def _logical_weight(w: Tensor, x: Tensor, problem: Problem) -> Tensor:
    """``(e, k, n)`` of a weight in either form."""
    if not problem.w_is_nz:
        return w
    sizes = problem.w.shape[:3]
    if any(contract.is_symbolic(size) for size in (*sizes, problem.k)):
        tiles = ge.Gather(ge.Shape(w, dtype=DataType.DT_INT64), [0, 2, 1])
        shape: Any = ge.Mul(tiles, [1, K0, N0])
        rest = ge.Const([-1], dtype=DataType.DT_INT64)
        k = ge.Gather(ge.Shape(x, dtype=DataType.DT_INT64), [1])
        kept: Any = ge.ConcatD([rest, k, rest], concat_dim=0, N=3)
    else:
        e, n1, k1 = sizes
        shape, kept = [e, k1 * K0, n1 * N0], [-1, problem.k, -1]
    logical = ge.Reshape(ge.Transpose(w, [0, 2, 3, 1, 4]), shape)
    padded = problem.w.shape[2] * K0
    if not contract.is_symbolic(padded) and padded == problem.k:
        return logical
    return ge.Slice(logical, [0, 0, 0], kept)
