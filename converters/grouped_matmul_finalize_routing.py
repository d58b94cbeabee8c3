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
from npu_lowering.torch_internals import bounds


def convert(arguments: Mapping[str, Any], problem: Problem) -> Tensor:
    """Add the node, and what normalises its inputs, to the graph that TorchAIR is building.

    Args:
        arguments: those of the operator, by name, as GE tensors. ``(e, k, n)`` weights go into the
            node as they are, so that the storage format set on the device reaches it; 5-D ones are
            transposed by GE ops. Totals become counts, by GE ops: older kernels read totals as
            counts. ``(m, 1)`` of pertoken_scale becomes ``(m,)``, a missing shared_input one row of
            zeros, a missing logit ones. tuning_config is in the node only if given. A symbolic
            output_bs becomes its upper bound in the node, and a Slice after it; x and what has a
            row for each of its rows is padded where it may have fewer than that. A symbolic
            shared_input_offset becomes rows of zeros before shared_input.
        problem: the same call, checked.

    Returns:
        The GE tensor of the result, float32 ``(output_bs, n)``.

    Raises:
        TypeError: bias is float32.
        ValueError: output_bs is symbolic and has no upper bound.
    """
    _check_bias(problem)
    rows = _constant_rows(problem)
    padding = _padding(problem, rows)
    scale, row_index = arguments["scale"], arguments["row_index"]
    pertoken_scale = arguments["pertoken_scale"]
    if pertoken_scale is not None and pertoken_scale.meta.dim() == 2:
        pertoken_scale = ge.Squeeze(pertoken_scale, axis=[1])
    logit = _ones(row_index) if arguments["logit"] is None else arguments["logit"]
    shared_input, attributes = _shared_input(arguments, problem)
    inputs = {
        "scale": scale,
        "bias": arguments["bias"],
        "pertoken_scale": _padded(pertoken_scale, padding),
        "group_list": _counts(arguments["group_list"], problem),
        "shared_input": _zero_row(scale) if shared_input is None else shared_input,
        "logit": _padded(logit, padding),
        "row_index": _padded(row_index, padding),
    }
    x, w = arguments["x"], _logical_weight(arguments["w"], arguments["x"], problem)
    attributes["output_bs"] = rows
    node = _node(_padded(x, padding, 2), w, inputs, attributes, arguments["tuning_config"])
    if not is_symbolic(problem.output_bs):
        return node
    return ge.Slice(node, [0, 0], _pair(_size(arguments), -1))


def _constant_rows(problem: Problem) -> int:
    """What the node says of its rows: an attribute, and so a constant.

    Raises:
        ValueError: they are symbolic, and no bound is known.
    """
    rows = problem.output_bs
    if not is_symbolic(rows):
        return int(rows)
    if problem.max_output_bs:
        return problem.max_output_bs
    _, upper = bounds(rows)
    # Sizes without a bound of the user's are bounded by what an index can hold.
    if upper is None or upper >= _NO_BOUND:
        raise ValueError(
            f"output_bs must have an upper bound in a GE graph, got the symbolic {rows}: give one "
            "of max_output_bs=BOUND (npu_lowering.npu_grouped_matmul_finalize_routing takes it), "
            "torch._dynamo.mark_dynamic(tensor, axis, min=2, max=BOUND), or "
            "torchair.inference.set_dim_gears(tensor, {axis: [...]}); or compile with dynamic=False"
        )
    return upper


_NO_BOUND = 1 << 31


def _padding(problem: Problem, rows: int) -> int:
    """Rows to add to x, so that there are as many as the node says of its result.

    They are tail rows, which are never read.
    """
    if not is_symbolic(problem.output_bs):
        return 0
    least, _ = bounds(problem.m)
    return 0 if least >= rows else rows


def _padded(tensor: Tensor | None, rows: int, rank: int = 1) -> Tensor | None:
    """Zeros below the rows of a GE tensor."""
    if tensor is None or not rows:
        return tensor
    paddings = ge.Const([[0, rows], *[[0, 0]] * (rank - 1)], dtype=DataType.DT_INT64)
    return ge.Pad(tensor, paddings)


def _size(arguments: Mapping[str, Any]) -> Any:
    """output_bs as a GE tensor: what was passed, or the rows of x where nothing was."""
    given = arguments["output_bs"]
    if isinstance(given, Tensor):
        return given
    return ge.Gather(ge.Shape(arguments["x"], dtype=DataType.DT_INT64), [0])


def _pair(first: Any, second: int) -> Tensor:
    """int64 ``[first, second]`` of a GE number and a constant."""
    wide = ge.Cast(ge.Reshape(first, [1]), dst_type=DataType.DT_INT64)
    rest = ge.Const([second], dtype=DataType.DT_INT64)
    return ge.ConcatD([wide, rest], concat_dim=0, N=2)


def _shared_input(
    arguments: Mapping[str, Any], problem: Problem
) -> tuple[Tensor | None, dict[str, Any]]:
    """shared_input, and the attributes of the node that belong to it."""
    shared_input = arguments["shared_input"]
    if shared_input is None:
        return None, {}
    weight, offset = problem.shared_input_weight, problem.shared_input_offset
    if not is_symbolic(offset):
        return shared_input, {"shared_input_offset": offset, "shared_input_weight": weight}
    before = _pair(arguments["shared_input_offset"], 0)
    paddings = ge.Reshape(ge.ConcatD([before, _no_padding()], concat_dim=0, N=2), [2, 2])
    # The node multiplies them by the weight: they have to come out as 0.0, not as -0.0.
    zero = ge.Const(-0.0 if weight < 0 else 0.0, dtype=DataType.DT_FLOAT)
    value = ge.Cast(zero, dst_type=DataType.DT_BF16)
    padded = ge.PadV3(shared_input, paddings, value)
    return padded, {"shared_input_offset": 0, "shared_input_weight": weight}


def _no_padding() -> Tensor:
    return ge.Const([0, 0], dtype=DataType.DT_INT64)


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


def _check_bias(problem: Problem) -> None:
    """What the operator takes and the node does not."""
    if problem.bias is not None and problem.bias.dtype != torch.bfloat16:
        raise TypeError(
            "bias must be bfloat16 in a GE graph with int8 w, got float32: the device's kernel "
            "reads it as bfloat16; pass bias.bfloat16()"
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
