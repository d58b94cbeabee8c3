"""The operator as standard, traceable torch ops: for export, other runtimes and other devices.

There is no branch on data and no value leaves the graph. The integer matmul becomes float32 ones
that are exact: int8 values are exact in float32, TF32 and bfloat16 alike, and a float32 sum of 1024
products is at most 2**24, exact in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npu_lowering.operators.exact import EXACT_K, without_autocast
from npu_lowering.operators.grouped_matmul_finalize_routing import fractal_nz, schema
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import Problem

# k-rows of a part below which there is nothing to save.
_SMALLEST_PART = 64

# Inductor's C++ for one thread stores whole rows where it has to add them: wrong sums, unsaid.
# Found in 2.6; element by element it adds.
_ROWS_ARE_STORED = torch.__version__.startswith(("2.5.", "2.6."))


def run(problem: Problem) -> Tensor:
    """Compute a checked call with standard torch ops, on real, fake or proxy tensors."""
    ends = totals(problem)
    row = torch.arange(problem.m, device=problem.x.device)
    # Tail rows may hold anything, in any tensor: they are computed on and then masked away.
    counts = row < ends[-1]
    group = groups_of(row, ends)

    y = _grouped_matmul(problem, ends, group).float() * problem.scale.float()[group]
    p = problem.logit
    if problem.pertoken_scale is not None:
        p = problem.pertoken_scale if p is None else problem.pertoken_scale * p
    if p is not None:
        y = y * p.unsqueeze(1)
    if problem.bias is not None:
        bias = problem.bias.float()[group]
        y = y + (bias if problem.logit is None else problem.logit.unsqueeze(1) * bias)
    # -0.0 is what changes no float when added, 0.0 included; 0.0 would turn -0.0 into 0.0.
    y = torch.where(counts.unsqueeze(1), y, -0.0)
    # int64, since other runtimes scatter by nothing else.
    row_index = torch.where(counts, problem.row_index, 0).to(torch.int64)
    return add_rows(_initial(problem), row_index, y)


def add_rows(totals: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """``totals.index_add(0, index, rows)``."""
    if not _ROWS_ARE_STORED:
        return totals.index_add(0, index, rows)
    place = index.unsqueeze(1) * rows.shape[1] + torch.arange(rows.shape[1], device=rows.device)
    flat = totals.reshape(-1).index_add(0, place.reshape(-1), rows.reshape(-1))
    return flat.view(totals.shape)


def totals(problem: Problem) -> Tensor:
    """Where each group ends."""
    if problem.group_list_type == schema.COUNTS:
        return problem.group_list.cumsum(0)
    return problem.group_list


def groups_of(rows: Tensor, ends: Tensor) -> Tensor:
    """The group that each row lies in, the last one for rows past all of them.

    A comparison with every end, and not searchsorted, which is no operator of core ATen: other
    runtimes have none. It costs e bytes a row, which is little beside the row itself.
    """
    return (ends.unsqueeze(0) <= rows.unsqueeze(1)).sum(1).clamp(max=ends.shape[0] - 1)


def _grouped_matmul(problem: Problem, ends: Tensor, group: Tensor) -> Tensor:
    """Exact int32 ``x[r] @ w[group[r]]``, ``(m, n)``; tail rows come out undefined.

    ``torch._grouped_mm`` is no help: its Meta function refuses float32, so it cannot be traced.
    Each group is cut into blocks of ceil(m / e) rows, the last one not full, which makes at most
    2 * e blocks whatever the groups are: one batched GEMM of about twice the arithmetic, where
    masking would cost e times.
    """
    x, k, m, e = problem.x, problem.k, problem.m, problem.e
    w = fractal_nz.unfold(problem.w) if problem.w_is_nz else problem.w
    size = (m + e - 1) // e
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    blocks = (ends - starts + size - 1) // size
    past = blocks.cumsum(0)
    first = past - blocks

    block = torch.arange(2 * e, device=x.device)
    expert = groups_of(block, past)
    row = (starts[expert] + (block - first[expert]) * size).unsqueeze(1)
    # Past the end of a group lie rows of others; nobody asks for what comes of them.
    row = (row + torch.arange(size, device=x.device)).clamp(max=m - 1)
    # At most (e - 1) * (size - 1) + m - 1, tail rows included, which 2 * e blocks hold.
    place = first[group] * size + torch.arange(m, device=x.device) - starts[group]

    acc = torch.zeros((), dtype=torch.int32, device=x.device)
    # Two copies of the weights' part are alive, one of them in float32: a thirty-second of k each
    # time keeps them below the weights themselves.
    step = max(_SMALLEST_PART, min(EXACT_K, k // 32))
    for start in range(0, k, step):
        part = slice(start, min(start + step, k))
        with without_autocast(x.device):
            products = torch.bmm(x[:, part][row].float(), w[:, part][expert].float())
        # The rows that count, before they are made integers: there are half as many at most.
        acc = acc + products.flatten(0, 1)[place].int()
        del products
    return acc


def _initial(problem: Problem) -> Tensor:
    out = problem.x.new_zeros((problem.output_bs, problem.n), dtype=torch.float32)
    if problem.shared_input is None:
        return out
    shared = problem.shared_input.float() * problem.shared_input_weight
    first = problem.shared_input_offset
    # Joining slices would leave guards on their lengths in an exported program.
    return torch.slice_scatter(out, shared, 0, first, first + shared.shape[0])
