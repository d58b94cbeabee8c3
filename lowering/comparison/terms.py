"""The terms of a result: what is added to each output row, and what their order may change.

A call is spelled out as pairs (row of x, expert), each of which gives one term of one output row.
A defect of a device is another such list, see ``causes.py``, so both are summed by the same code.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from npu_lowering.operators.grouped_matmul_finalize_routing import (
    fractal_nz,
    npu_grouped_matmul_finalize_routing,
)
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import Problem

UNIT = 2.0**-24
"""Half the distance from 1 to the next float32: the largest relative error of one operation."""

# Elements of one block of rows; a few such blocks of 4 and 8 bytes are alive at a time.
BLOCK = 1 << 21


@dataclass(frozen=True)
class Terms:
    """What is added up, on the CPU.

    Attributes:
        problem: the call.
        rows: ``(pairs,)`` int64, the row of x of each pair; within an expert in ascending order.
        experts: ``(pairs,)`` int64 of the same pairs, not decreasing.
        targets: ``(m,)`` int64, the output row of each row of x; rows whose target is no output row
            are left out.
        weight: what is made of an expert's ``(k, n)`` weight before it is multiplied.
        bias_factor: what multiplies bias: ``"logit"``, ``"pertoken_scale * logit"`` or ``""``.
        shared_offset: first output row of shared_input.
        stores: whether the last term of an output row is stored in place of the sum.
        roundings: how many roundings of each term may differ from the contract's.
        unhit_rows_hold_anything: whether rows that nothing is added to are not compared.
    """

    problem: Problem
    rows: Tensor
    experts: Tensor
    targets: Tensor
    weight: Callable[[Tensor], Tensor] | None = None
    bias_factor: str = "logit"
    shared_offset: int = 0
    stores: bool = False
    roundings: int = 0
    unhit_rows_hold_anything: bool = False


@dataclass(frozen=True)
class Sums:
    """Some output rows of :class:`Terms`.

    Attributes:
        ordered: ``(rows, n)`` float32, added in the contract's order.
        exact: ``(rows, n)`` float64, the sum of the float32 terms.
        bound: ``(rows, n)`` float64, how far a float32 sum in any order may lie from it.
        added: ``(rows,)`` int64, how many rows of x are added.
        shared: ``(rows,)`` bool, whether shared_input is.
    """

    ordered: Tensor
    exact: Tensor
    bound: Tensor
    added: Tensor
    shared: Tensor


def contract(problem: Problem, ends: list[int]) -> Terms:
    """The terms of a call as the contract has them; ends are the running totals of its groups."""
    rows, experts = spans([(g, start, end) for g, start, end in _groups(ends)])
    return Terms(
        problem=problem,
        rows=rows,
        experts=experts,
        targets=problem.row_index.to(torch.int64),
        shared_offset=problem.shared_input_offset,
    )


def spans(groups: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor]:
    """The pairs of groups given as (expert, first row, end), experts ascending."""
    rows = [torch.arange(start, end) for _, start, end in groups if end > start]
    experts = [torch.full((end - start,), g) for g, start, end in groups if end > start]
    none = torch.zeros(0, dtype=torch.int64)
    return torch.cat([none, *rows]), torch.cat([none, *experts])


def add_up(terms: Terms, wanted: Tensor) -> Sums:
    """Sum the terms of some output rows.

    The bound holds for every order, pairwise and atomic adds included: n terms are added with
    n - 1 roundings, and such a sum lies within ``(n - 1) * 2**-24 * sum(|term|)`` of the exact one
    (Jeannerod and Rump, "Improved error bounds for inner products in floating-point arithmetic",
    2013). Adding to zero is exact, so it is no rounding.

    Args:
        terms: what is added.
        wanted: ``(rows,)`` int64, different output rows.
    """
    problem = terms.problem
    count, n, output_bs = len(wanted), int(problem.n), int(problem.output_bs)
    ordered = torch.zeros(count, n, dtype=torch.float32)
    exact = torch.zeros(count, n, dtype=torch.float64)
    size = torch.zeros(count, n, dtype=torch.float64)
    added = torch.zeros(count, dtype=torch.int64)
    shared = torch.zeros(count, dtype=torch.bool)
    if problem.shared_input is not None:
        lies = wanted - terms.shared_offset
        shared = (lies >= 0) & (lies < problem.shared_input.shape[0])
        term = problem.shared_input[lies[shared]].float() * problem.shared_input_weight
        ordered[shared], exact[shared], size[shared] = term, term.double(), term.abs().double()

    place = torch.full((output_bs,), -1, dtype=torch.int64)
    place[wanted] = torch.arange(count)
    targets = terms.targets[terms.rows]
    kept = ((targets >= 0) & (targets < output_bs)).nonzero().squeeze(1)
    kept = kept[place[targets[kept]] >= 0]
    if terms.stores:
        kept = _last_of_each(targets[kept], kept)
    for part, y, magnitude in _blocks(terms, kept):
        into = place[targets[part]]
        if terms.stores:
            ordered[into], exact[into], size[into] = y, y.double(), magnitude
        else:
            ordered.index_add_(0, into, y)
            exact.index_add_(0, into, y.double())
            size.index_add_(0, into, magnitude)
        added.index_add_(0, into, torch.ones_like(into))
    roundings = (added + shared - 1).clamp(min=0).unsqueeze(1).double()
    # The last is what float64 itself may have got wrong of the exact sum.
    relative = (roundings + terms.roundings) * UNIT + roundings * 2.0**-52
    # Where nothing is rounded the bound is 0, also of what is infinite.
    bound = torch.where(relative > 0, size * relative, 0.0)
    return Sums(ordered=ordered, exact=exact, bound=bound, added=added, shared=shared)


def _blocks(terms: Terms, kept: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of pairs of one expert, each with its float32 terms and their float64 sizes."""
    problem = terms.problem
    step = max(1, BLOCK // max(int(problem.n), int(problem.k)))
    present, counts = torch.unique_consecutive(terms.experts[kept], return_counts=True)
    for g, pairs in zip(present.tolist(), kept.split(counts.tolist())):
        w = problem.w[g]
        if problem.w_is_nz:
            w = fractal_nz.unfold(w)[: int(problem.k)]
        if terms.weight is not None:
            w = terms.weight(w)
        for part in pairs.split(step):
            yield (part, *_terms(terms, terms.rows[part], g, w))


def _terms(terms: Terms, rows: Tensor, g: int, w: Tensor) -> tuple[Tensor, Tensor]:
    """The float32 terms of some rows of x for one expert, and how large their parts are."""
    problem = terms.problem

    def of_rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[rows]

    pertoken_scale, logit = of_rows(problem.pertoken_scale), of_rows(problem.logit)
    call: dict[str, Any] = {"scale": problem.scale[g : g + 1], "row_index": torch.arange(len(rows))}
    # To rows of its own, the operator adds nothing up.
    y = npu_grouped_matmul_finalize_routing(
        problem.x[rows],
        w.unsqueeze(0),
        torch.tensor([len(rows)]),
        pertoken_scale=pertoken_scale,
        logit=logit,
        **call,
    )
    if problem.bias is None:
        return y, y.abs().double()
    bias = problem.bias[g].float().expand_as(y)
    factor = logit if terms.bias_factor else None
    if terms.bias_factor == "pertoken_scale * logit" and pertoken_scale is not None:
        factor = pertoken_scale if logit is None else pertoken_scale * logit
    if factor is not None:
        bias = factor.unsqueeze(1) * bias
    whole = y + bias
    if terms.roundings:  # which are relative to the parts, that may cancel
        return whole, y.abs().double() + bias.abs()
    return whole, whole.abs().double()


def _last_of_each(targets: Tensor, kept: Tensor) -> Tensor:
    last = dict(zip(targets.tolist(), kept.tolist()))  # of equal keys the last one stays
    return torch.tensor(sorted(last.values()), dtype=torch.int64)


def _groups(ends: list[int]) -> Iterator[tuple[int, int, int]]:
    start = 0
    for g, end in enumerate(ends):
        yield g, start, end
        start = end
