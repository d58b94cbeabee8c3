"""The eager CPU kernel: exact, deterministic, in bounded memory.

The compiled kernel does the work where there is one (:mod:`.native`). Elsewhere groups
are walked one after the other, each in blocks of rows that are multiplied, dequantised and added to
the result before the next is touched. Either way neither ``(m, n)`` nor a second copy of the
weights ever exists, and rows are added in ascending order, which makes the order of adds that of a
sequential loop, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from npu_lowering.operators.exact import OVERFLOW_K, is_plain, plain, product
from npu_lowering.operators.grouped_matmul_finalize_routing import fractal_nz, native
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import Problem, check_values
from npu_lowering.operators.grouped_matmul_finalize_routing.portable import initial

# Elements of one block of accumulators; 4 bytes each, and two such blocks are alive at a time.
_BLOCK = 1 << 22
# Bytes of one block of unpacked 5-D weights.
_WEIGHT_BLOCK = 1 << 24


def run(problem: Problem) -> Tensor:
    """Compute a checked call whose tensors are on the CPU.

    Raises:
        ValueError, IndexError: as :func:`.contract.check_values`.
        OverflowError: k >= 131072 and a sum of products leaves int32.
        ValueError, RuntimeError: the variable NPU_LOWERING_KERNEL asks for what is not there.
    """
    ends = check_values(problem)
    out = initial(problem)
    if problem.k < OVERFLOW_K and native.available():
        native.grouped_matmul_combine(
            out,
            problem.x,
            problem.w,
            ends,
            problem.scale,
            problem.bias,
            problem.pertoken_scale,
            problem.logit,
            problem.row_index,
        )
    else:
        _add_groups(out, problem, ends)
    return out


def _add_groups(out: Tensor, problem: Problem, ends: list[int]) -> None:
    start = 0
    for g, end in enumerate(ends):
        for columns, w in _weight_blocks(problem, g) if end > start else ():
            _add_group(out[:, columns], problem, g, start, end, columns, w)
        start = end


def _weight_blocks(problem: Problem, g: int) -> Iterator[tuple[slice, Tensor]]:
    """The weight of one group as ``(k, columns)`` blocks, each with the columns it is of."""
    w = problem.w[g]
    n, k = int(problem.n), int(problem.k)
    if not problem.w_is_nz:
        step = n if is_plain(w) else max(1, _WEIGHT_BLOCK // k)
        for first in range(0, n, step):
            columns = slice(first, min(first + step, n))
            yield columns, plain(w[:, columns])
        return
    panels, rows = w.shape[0], w.shape[1] * fractal_nz.K0
    step = max(1, _WEIGHT_BLOCK // (rows * fractal_nz.N0))
    for a in range(0, panels, step):
        block = fractal_nz.unfold(w[a : a + step])
        columns = slice(a * fractal_nz.N0, a * fractal_nz.N0 + block.shape[1])
        yield columns, block[:k]


def _add_group(
    out: Tensor, problem: Problem, g: int, start: int, end: int, columns: slice, w: Tensor
) -> None:
    """Add the rows ``[start, end)`` of group g, for some columns, to the result."""
    scale = problem.scale[g, columns].float()
    bias = None if problem.bias is None else problem.bias[g, columns].float()
    step = max(1, _BLOCK // w.shape[1])
    for first in range(start, end, step):
        rows = slice(first, min(first + step, end))
        y = torch.mul(product(plain(problem.x[rows]), w), scale)
        pertoken_scale, logit = problem.pertoken_scale, problem.logit
        if pertoken_scale is not None and logit is not None:
            y.mul_((pertoken_scale[rows] * logit[rows]).unsqueeze(1))
        elif pertoken_scale is not None:
            y.mul_(pertoken_scale[rows].unsqueeze(1))
        elif logit is not None:
            y.mul_(logit[rows].unsqueeze(1))
        if bias is not None:
            # Two roundings, as the contract has it: addcmul could contract them into one.
            y.add_(bias if logit is None else torch.outer(logit[rows], bias))
        out.index_add_(0, problem.row_index[rows], y)
