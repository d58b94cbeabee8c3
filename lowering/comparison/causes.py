"""Known ways in which a device's output goes wrong: a table of hypotheses.

Each is a function from the terms of the contract to the terms that such a defect adds up instead;
it gives nothing where the call is such that the defect would change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Callable

import torch
from torch import Tensor

from npu_lowering.comparison.terms import Terms, spans
from npu_lowering.operators.grouped_matmul_finalize_routing import fractal_nz, schema

Hypothesis = Callable[[Terms], Iterator[Terms]]


@dataclass(frozen=True)
class Cause:
    """A defect by name.

    Attributes:
        name: a short name, which tests and callers may compare with.
        sentence: what happened and what to look at.
        hypothesis: the terms that it would add up, one form of it after the other.
    """

    name: str
    sentence: str
    hypothesis: Hypothesis


def _changed(terms: Terms, **changes: Any) -> Terms:
    return replace(terms, problem=replace(terms.problem, **changes))


def _unhit_rows(terms: Terms) -> Iterator[Terms]:
    yield replace(terms, unhit_rows_hold_anything=True)


def _offset_on_row_index(terms: Terms) -> Iterator[Terms]:
    if terms.shared_offset:
        yield replace(terms, targets=terms.targets + terms.shared_offset)


def _shared_offset_left_out(terms: Terms) -> Iterator[Terms]:
    if terms.shared_offset and terms.problem.shared_input is not None:
        yield replace(terms, shared_offset=0)


def _totals_as_counts(terms: Terms) -> Iterator[Terms]:
    if terms.problem.group_list_type == schema.TOTALS:
        m, start, groups = int(terms.problem.m), 0, []
        for g, value in enumerate(terms.problem.group_list.tolist()):
            end = min(start + value, m)
            groups.append((g, start, end))
            start = end
        yield _regrouped(terms, groups)


def _counts_as_totals(terms: Terms) -> Iterator[Terms]:
    if terms.problem.group_list_type == schema.COUNTS:
        counts = terms.problem.group_list.tolist()
        # A total smaller than the one before makes no rows; the next starts either at the smaller
        # total, or at the end of the rows so far, or after as many rows as there were.
        befores = [0, *counts[:-1]]
        yield _regrouped(terms, [(g, befores[g], end) for g, end in enumerate(counts)])
        so_far, running, taken = 0, [], []
        for g, end in enumerate(counts):
            running.append((g, so_far, end))
            so_far = max(so_far, end)
        yield _regrouped(terms, running)
        so_far = 0
        for g, end in enumerate(counts):
            stop = min(so_far + max(0, end - befores[g]), int(terms.problem.m))
            taken.append((g, so_far, stop))
            so_far = stop
        yield _regrouped(terms, taken)


def _regrouped(terms: Terms, groups: list[tuple[int, int, int]]) -> Terms:
    rows, experts = spans(groups)
    return replace(terms, rows=rows, experts=experts)


def _tail_rows(terms: Terms) -> Iterator[Terms]:
    end, m, e = len(terms.rows), int(terms.problem.m), int(terms.problem.e)
    if end < m:
        for expert in sorted({e - 1, int(terms.experts[-1]) if end else e - 1}):
            tail = torch.arange(end, m)
            rows = torch.cat([terms.rows, tail])
            experts = torch.cat([terms.experts, torch.full_like(tail, expert)])
            yield replace(terms, rows=rows, experts=experts)


def _without(name: str) -> Hypothesis:
    def hypothesis(terms: Terms) -> Iterator[Terms]:
        if getattr(terms.problem, name) is not None:
            yield _changed(terms, **{name: None})

    return hypothesis


def _shared_weight(terms: Terms) -> Iterator[Terms]:
    if terms.problem.shared_input is not None and terms.problem.shared_input_weight != 1.0:
        yield _changed(terms, shared_input_weight=1.0)


def _bias_bits(terms: Terms) -> Iterator[Terms]:
    bias = terms.problem.bias
    if bias is not None and bias.dtype == torch.float32:
        halves = bias.contiguous().reshape(-1).view(torch.bfloat16)
        yield _changed(terms, bias=halves[: bias.numel()].reshape(bias.shape))


def _bias_scaled(terms: Terms) -> Iterator[Terms]:
    if terms.problem.bias is not None and terms.problem.pertoken_scale is not None:
        yield replace(terms, bias_factor="pertoken_scale * logit")


def _bias_without_logit(terms: Terms) -> Iterator[Terms]:
    if terms.problem.bias is not None and terms.problem.logit is not None:
        yield replace(terms, bias_factor="")


def _nz_order(terms: Terms) -> Iterator[Terms]:
    problem = terms.problem
    k, n = int(problem.k), int(problem.n)
    if k % fractal_nz.K0 or n % fractal_nz.N0:
        return
    k1, n1 = k // fractal_nz.K0, n // fractal_nz.N0
    cut, tiles = (k1, fractal_nz.K0, n1, fractal_nz.N0), (n1, k1, fractal_nz.K0, fractal_nz.N0)

    def rearranged(*order: int) -> Callable[[Tensor], Tensor]:
        """Tiles put down in another order, and read as FRACTAL_NZ."""
        return lambda w: fractal_nz.unfold(w.reshape(cut).permute(order).reshape(tiles))

    # FRACTAL_NZ read row by row, and rows read as FRACTAL_NZ.
    yield replace(terms, weight=lambda w: w.reshape(cut).permute(2, 0, 1, 3).reshape(k, n))
    yield replace(terms, weight=lambda w: fractal_nz.unfold(w.reshape(tiles)))
    yield replace(terms, weight=rearranged(0, 2, 1, 3))  # tiles along n first
    yield replace(terms, weight=rearranged(2, 0, 3, 1))  # each tile transposed
    yield replace(terms, weight=rearranged(0, 2, 3, 1))  # both


def _weight_transposed(terms: Terms) -> Iterator[Terms]:
    k, n = int(terms.problem.k), int(terms.problem.n)
    yield replace(terms, weight=lambda w: w.t().reshape(k, n))
    if k != n:  # else it is the same
        yield replace(terms, weight=lambda w: w.reshape(n, k).t())


def _stored(terms: Terms) -> Iterator[Terms]:
    yield replace(_changed(terms, shared_input=None), stores=True)


def _rounded(terms: Terms) -> Iterator[Terms]:
    yield replace(terms, roundings=4)


CAUSES = (
    Cause(
        "unhit_rows",
        "rows that nothing is added to do not hold 0: the output was not initialised",
        _unhit_rows,
    ),
    Cause(
        "rounded_terms",
        "each term is right but for its last bits: the factors are multiplied in another order "
        "(acc * scale * pertoken_scale * logit), or a product and a sum are fused",
        _rounded,
    ),
    Cause(
        "offset_on_row_index",
        "shared_input_offset was added to row_index; it moves shared_input only",
        _offset_on_row_index,
    ),
    Cause(
        "shared_offset_left_out",
        "shared_input was added from row 0 on: shared_input_offset was left out",
        _shared_offset_left_out,
    ),
    Cause(
        "totals_as_counts",
        "group_list holds totals (group_list_type=0) and was read as counts; older kernels read "
        "nothing else: pass counts",
        _totals_as_counts,
    ),
    Cause(
        "counts_as_totals",
        "group_list holds counts (group_list_type=1) and was read as totals",
        _counts_as_totals,
    ),
    Cause(
        "tail_rows",
        "tail rows, which lie past the last group, were added as rows of the last expert",
        _tail_rows,
    ),
    Cause("logit_left_out", "logit was left out", _without("logit")),
    Cause("pertoken_scale_left_out", "pertoken_scale was left out", _without("pertoken_scale")),
    Cause("bias_left_out", "bias was left out", _without("bias")),
    Cause(
        "bias_bits",
        "bias is float32 and its bits were read as bfloat16: pass bias.bfloat16()",
        _bias_bits,
    ),
    Cause(
        "bias_scaled",
        "bias was multiplied by pertoken_scale; it is multiplied by logit only",
        _bias_scaled,
    ),
    Cause("bias_without_logit", "bias was not multiplied by logit", _bias_without_logit),
    Cause("shared_input_left_out", "shared_input was left out", _without("shared_input")),
    Cause(
        "shared_input_weight_left_out",
        "shared_input was added without shared_input_weight",
        _shared_weight,
    ),
    Cause(
        "nz_order",
        "the tiles of w were read in a wrong order: FRACTAL_NZ as ND, ND as FRACTAL_NZ, or tiles "
        "transposed; pass npu_format_cast(w, 29) of the (e, k, n) weight",
        _nz_order,
    ),
    Cause(
        "weight_transposed",
        "w was laid out as (e, n, k) and read as (e, k, n), or the other way round",
        _weight_transposed,
    ),
    Cause(
        "stored",
        "the last row was stored where all rows should be added up, and shared_input was left out: "
        "kernels that get neither logit nor shared_input did so",
        _stored,
    ),
)
"""Every known cause; the order is that of a report."""
