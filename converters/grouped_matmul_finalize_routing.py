"""npu_grouped_matmul_finalize_routing as one GroupedMatmulFinalizeRouting node of a GE graph.

CANN versions disagree about several forms of a call. What goes into the node is the one form that
all of them take: counts and not totals, a logit and a shared_input always, and a 3-D weight.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import DataType, Tensor

from npu_lowering.operators.checking import is_symbolic
from npu_lowering.operators.grouped_matmul_finalize_routing import schema
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import Problem
from npu_lowering.operators.grouped_matmul_finalize_routing.fractal_nz import K0, N0


def convert(arguments: Mapping[str, Any], problem: Problem) -> Tensor:
    """Add the node, and what normalises its inputs, to the graph that TorchAIR is building.

    Args:
        arguments: those of the operator, by name, as GE tensors. ``(e, k, n)`` weights go into the
            node as they are, so that the storage format set on the device reaches it; 5-D ones are
            transposed by GE ops. Totals become counts, by GE ops: older kernels read totals as
            counts. ``(m, 1)`` of pertoken_scale becomes ``(m,)``, a missing shared_input one row of
            zeros, a missing logit ones. tuning_config is in the node only if given.
        problem: the same call, checked.

    Returns:
        The GE tensor of the node's only output, float32 ``(output_bs, n)``.

    Raises:
        TypeError: bias is float32.
        ValueError: output_bs or shared_input_offset would have to be symbolic.
    """
    _check_node(problem)
    x, scale, row_index = arguments["x"], arguments["scale"], arguments["row_index"]
    pertoken_scale = arguments["pertoken_scale"]
    if pertoken_scale is not None and pertoken_scale.meta.dim() == 2:
        pertoken_scale = ge.Squeeze(pertoken_scale, axis=[1])
    shared_input, logit = arguments["shared_input"], arguments["logit"]
    inputs = {
        "scale": scale,
        "bias": arguments["bias"],
        "pertoken_scale": pertoken_scale,
        "group_list": _counts(arguments["group_list"], problem),
        "shared_input": _zero_row(scale) if shared_input is None else shared_input,
        "logit": _ones(row_index) if logit is None else logit,
        "row_index": row_index,
    }
    attributes: dict[str, Any] = {"output_bs": problem.output_bs}
    if shared_input is not None:
        attributes["shared_input_offset"] = problem.shared_input_offset
        attributes["shared_input_weight"] = problem.shared_input_weight
    weight = _logical_weight(arguments["w"], x, problem)
    return _node(x, weight, inputs, attributes, arguments["tuning_config"])


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
    if is_symbolic(problem.output_bs):
        raise ValueError(
            "output_bs must be a constant in a GE graph, got the symbolic number of rows of x, "
            f"m = {problem.output_bs} (output_bs 0 or None means m); pass the number of tokens as "
            "output_bs, or compile with dynamic=False"
        )
    if is_symbolic(problem.shared_input_offset):
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
    if any(is_symbolic(size) for size in (*sizes, problem.k)):
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
    if not is_symbolic(padded) and padded == problem.k:
        return logical
    return ge.Slice(logical, [0, 0, 0], kept)
