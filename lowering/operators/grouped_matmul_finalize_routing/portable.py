"""The eager kernel of every device that is neither CPU nor NPU: exact, in bounded memory.

Groups are walked one after the other, in blocks of rows and columns that are multiplied,
dequantised and added to the result before the next is touched. Each line is one torch op that
rounds once, and none adds two rows to a token at once, so the result has the bits of the CPU's,
whatever order the device's ``index_add`` has.

Values are checked on the host, for which the counts and row_index are copied there, once a call.
Without the checks (:mod:`npu_lowering.operators.value_checks`) the host does not know the groups:
the call is the decomposition then, whose shapes do not depend on them.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from npu_lowering.operators.exact import EXACT_K, product
from npu_lowering.operators.grouped_matmul_finalize_routing import decomposition, fractal_nz
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import Problem, check_values
from npu_lowering.operators.value_checks import are_checked

# Rows of x in one block, and float32 elements of weights.
_ROWS = 1 << 8
_WEIGHTS = 1 << 20


def run(problem: Problem) -> Tensor:
    """Compute a checked call on the device of its tensors.

    Raises:
        ValueError, IndexError: as :func:`.contract.check_values`, where values are checked.
        OverflowError: k >= 131072 and a sum of products leaves int32, where values are checked.
    """
    if not are_checked(problem.x):
        return decomposition.run(problem)
    values = torch.cat([problem.group_list, problem.row_index.to(torch.int64)]).cpu()
    group_list, row_index = values[: problem.e], values[problem.e :]
    ends = check_values(dataclasses.replace(problem, group_list=group_list, row_index=row_index))
    repeats = _has_repeats(ends, row_index, int(problem.output_bs))
    out = initial(problem)
    start = 0
    for g, end in enumerate(ends):
        for first in range(start, end, _ROWS):
            rows = slice(first, min(first + _ROWS, end))
            turns = _turns(row_index[rows]) if repeats else []
            _add_block(out, problem, g, rows, [turn.to(out.device) for turn in turns])
        start = end
    return out


def initial(problem: Problem) -> Tensor:
    """What the result holds before the first expert row: shared_input where it lies, else 0."""
    out = problem.x.new_zeros((int(problem.output_bs), int(problem.n)), dtype=torch.float32)
    if problem.shared_input is not None:
        first = problem.shared_input_offset
        rows = out[first : first + problem.shared_input.shape[0]]
        rows.copy_(problem.shared_input).mul_(problem.shared_input_weight)
    return out


def _has_repeats(ends: list[int], row_index: Tensor, output_bs: int) -> bool:
    """Whether some token has two rows in one group, which a gate's choice never gives it."""
    total = torch.tensor(ends)
    group = torch.repeat_interleave(total.diff(prepend=total.new_zeros(1)))
    rows = row_index[: ends[-1]]
    return bool(torch.unique(group * output_bs + rows).numel() < rows.numel())


def _turns(tokens: Tensor) -> list[Tensor]:
    """Rows in turns: the first ones of their tokens, the second ones, and so on."""
    token, order = torch.sort(tokens, stable=True)
    place = torch.arange(len(tokens))
    is_first = torch.cat([place[:1] == 0, token[1:] != token[:-1]])
    turn = torch.empty_like(place)
    turn[order] = place - torch.where(is_first, place, 0).cummax(0).values
    return list(torch.argsort(turn, stable=True).split(torch.bincount(turn).tolist()))


def _add_block(out: Tensor, problem: Problem, g: int, rows: slice, turns: list[Tensor]) -> None:
    """Add rows of group g to the result, columns after columns."""
    pertoken_scale, logit = problem.pertoken_scale, problem.logit
    p = None if logit is None else logit[rows]
    if pertoken_scale is not None:
        p = pertoken_scale[rows] if p is None else pertoken_scale[rows] * p
    token = problem.row_index[rows]
    n = int(problem.n)
    # A small weight is not to be outweighed by its own float32.
    most = min(_WEIGHTS, problem.w.numel() // 8) // EXACT_K
    step = max(1, most // fractal_nz.N0) * fractal_nz.N0
    for first in range(0, n, step):
        columns = slice(first, min(first + step, n))
        acc = product(problem.x[rows], _weight(problem, g, columns))
        y = acc.float() * problem.scale[g, columns].float()
        if p is not None:
            y.mul_(p.unsqueeze(1))
        if problem.bias is not None:
            bias = problem.bias[g, columns].float()
            # Two roundings, as the contract has it: addcmul could contract them into one.
            y.add_(bias if logit is None else logit[rows].unsqueeze(1) * bias)
        if not turns:
            out[:, columns].index_add_(0, token, y)
        for turn in turns:
            out[:, columns].index_add_(0, token[turn], y[turn])


def _weight(problem: Problem, g: int, columns: slice) -> Tensor:
    """``w[g][:, columns]`` of either form."""
    if not problem.w_is_nz:
        return problem.w[g, :, columns]
    panels = slice(columns.start // fractal_nz.N0, columns.stop // fractal_nz.N0)
    return fractal_nz.unfold(problem.w[g, panels])[: int(problem.k)]
