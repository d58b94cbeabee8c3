"""The derivative of the operator, for its float inputs.

With ``acc[r] = x[r] @ w[g]``, ``p[r] = pertoken_scale[r] * logit[r]`` and ``grad[r]`` the row of
the output's gradient that row r was added to::

    d shared_input      = shared_input_weight * grad_output[offset : offset + rows]
    d scale[g]          = sum of p[r] * acc[r] * grad[r] over the rows of g
    d pertoken_scale[r] = logit[r] * sum(acc[r] * scale[g] * grad[r])
    d logit[r]          = sum((pertoken_scale[r] * acc[r] * scale[g] + bias[g]) * grad[r])
    d bias[g]           = sum of logit[r] * grad[r] over the rows of g

acc comes from the operator itself, called with row_index = arange(m), so backward runs and lowers
wherever forward does. Everything else is torch ops without a branch on data, so backward can be
traced, and differentiated again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import torch
from torch import Tensor

from npu_lowering.operators.checking import Size, is_symbolic
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import Problem
from npu_lowering.operators.grouped_matmul_finalize_routing.decomposition import (
    add_rows,
    groups_of,
    totals,
)
from npu_lowering.operators.operator import Derivative

Op = Callable[..., Tensor]

# Rows whose (rows, n) intermediates are alive at a time in eager mode.
_ROWS = 2048


def backward(
    op: Op, problem: Problem, grad_outputs: tuple[Any, ...], wanted: frozenset[str]
) -> dict[str, Tensor]:
    """The gradients of the wanted inputs, float32.

    Args:
        op: the operator.
        problem: the call that forward computed.
        grad_outputs: of the one result, ``(output_bs, n)`` float32.
        wanted: names among scale, bias, pertoken_scale, shared_input and logit.
    """
    (grad_output,) = grad_outputs
    grads: dict[str, Tensor] = {}
    if problem.shared_input is not None and "shared_input" in wanted:
        first = problem.shared_input_offset
        rows = grad_output[first : first + problem.shared_input.shape[0]]
        grads["shared_input"] = rows * problem.shared_input_weight
    if not wanted - {"shared_input"}:
        return grads
    ends = totals(problem)
    parts = [
        _backward_rows(op, problem, ends, grad_output, rows, wanted) for rows in _pieces(problem.m)
    ]
    for name in wanted - {"shared_input"}:
        pieces = [part[name] for part in parts]
        if name in ("scale", "bias"):
            grads[name] = pieces[0] if len(pieces) == 1 else torch.stack(pieces).sum(0)
        else:
            grads[name] = torch.cat(pieces)
    return grads


def _pieces(m: Size) -> list[slice]:
    if is_symbolic(m):  # cannot be cut without specialising it
        return [slice(0, m)]
    return [slice(first, min(first + _ROWS, m)) for first in range(0, m, _ROWS)]


def _backward_rows(
    op: Op,
    problem: Problem,
    ends: Tensor,
    grad_output: Tensor,
    rows: slice,
    wanted: frozenset[str],
) -> dict[str, Tensor]:
    """The gradients that the given rows of x contribute."""
    row = torch.arange(rows.start, rows.stop, device=ends.device)
    counts = row < ends[-1]
    group = groups_of(row, ends)
    row_index = torch.where(counts, problem.row_index[rows], 0)
    # Tail rows may hold anything, NaN included: nothing of them may reach a sum.
    grad = torch.where(counts.unsqueeze(1), grad_output[row_index], 0.0)
    logit = _or_one(problem.logit, rows, counts)
    pertoken_scale = _or_one(problem.pertoken_scale, rows, counts)

    found: dict[str, Tensor] = {}
    zeros = torch.zeros_like(problem.scale, dtype=torch.float32)
    if wanted & {"scale", "pertoken_scale", "logit"}:
        weighted = _products(op, problem, ends, rows) * grad
        found["scale"] = add_rows(zeros, group, weighted * (pertoken_scale * logit).unsqueeze(1))
        dot = torch.where(counts, (weighted * problem.scale.float()[group]).sum(1), 0.0)
        found["pertoken_scale"] = logit * dot
        found["logit"] = pertoken_scale * dot
    if problem.bias is not None:
        if "logit" in wanted:
            bias = problem.bias.float()[group]
            found["logit"] = found["logit"] + torch.where(
                counts.unsqueeze(1), bias * grad, 0.0
            ).sum(1)
        found["bias"] = add_rows(zeros, group, logit.unsqueeze(1) * grad)
    return found


def _or_one(factor: Tensor | None, rows: slice, counts: Tensor) -> Tensor:
    """A factor for each row: 1 where it is missing, 0 for the tail."""
    if factor is None:
        return counts.to(torch.float32)
    return torch.where(counts, factor[rows], 0.0)


def _products(op: Op, problem: Problem, ends: Tensor, rows: slice) -> Tensor:
    """float32 ``x[r] @ w[g]`` of the given rows, zeros for tail rows, by the operator itself."""
    x = problem.x[rows]
    m, n = x.shape[0], problem.n
    cut = ends.clamp(rows.start, rows.stop)
    group_list = cut - torch.cat([cut.new_full((1,), rows.start), cut[:-1]])
    ones = torch.ones(m, dtype=torch.float32, device=x.device)
    # Device versions disagree on which of these may be left out; all of them take all of them.
    return op(
        x=x,
        w=problem.w,
        group_list=group_list,
        scale=torch.ones_like(problem.scale),
        pertoken_scale=ones,
        shared_input=torch.zeros((1, n), dtype=torch.bfloat16, device=x.device),
        logit=ones,
        row_index=torch.arange(m, device=x.device),
    )


def forward(op: Op, problem: Problem, tangents: Mapping[str, Tensor]) -> Tensor:
    """The tangent of the result: the operator is linear in each of its float inputs alone.

    So it is a sum of calls, each with one input replaced by its tangent.
    """
    values = {
        "pertoken_scale": problem.pertoken_scale,
        "logit": problem.logit,
    }
    total = problem.x.new_zeros((problem.output_bs, problem.n), dtype=torch.float32)
    # What has no tangent and is not multiplied by one is left out of a call.
    for name, tangent in tangents.items():
        call: dict[str, Any] = {"scale": problem.scale, "bias": None, **values, name: tangent}
        if name == "logit":
            call["bias"] = problem.bias
        elif name == "bias":
            call["scale"] = torch.zeros_like(problem.scale)
        elif name == "shared_input":
            call["scale"] = torch.zeros_like(problem.scale)
            call["logit"] = torch.zeros_like(problem.logit) if problem.logit is not None else None
            call["shared_input_offset"] = problem.shared_input_offset
            call["shared_input_weight"] = problem.shared_input_weight
        total = total + op(
            x=problem.x,
            w=problem.w,
            group_list=problem.group_list,
            row_index=problem.row_index,
            output_bs=problem.output_bs,
            group_list_type=problem.group_list_type,
            **call,
        )
    return total


DERIVATIVE = Derivative(
    inputs=("scale", "bias", "pertoken_scale", "shared_input", "logit"),
    backward=backward,
    forward=forward,
)
