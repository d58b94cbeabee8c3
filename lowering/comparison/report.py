"""Comparing a device's output with the exact one, and saying what may have gone wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.comparison.causes import CAUSES
from npu_lowering.comparison.terms import BLOCK, Sums, Terms, add_up, contract
from npu_lowering.operators.grouped_matmul_finalize_routing.contract import check, check_values
from npu_lowering.operators.operator import dtype_name

WORST = 5
"""Rows that a report names."""
FIRST = 8
"""Output rows, the worst ones, that each cause is tried on before it is tried on all."""

INF = float("inf")
# Rounding to bfloat16, which has 8 significant bits.
_BFLOAT16_UNIT = 2.0**-8


@dataclass(frozen=True)
class WorstRow:
    """An output row of a report.

    Attributes:
        index: the output row.
        column: its element that the order of adds explains least; the next two are that one's.
        error: the distance from the exact sum of its terms.
        order_bound: what the order of float32 adds alone may explain of that; the rounding of a
            bfloat16 output is part of it.
        added: how many rows of x are added to it.
        shared: whether shared_input is.
    """

    index: int
    column: int
    error: float
    order_bound: float
    added: int
    shared: bool


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; prints as a few lines.

    Attributes:
        shape: ``(output_bs, n)``.
        equal: whether every element equals that of the contract's order of adds; 0.0 equals -0.0,
            and a NaN equals a NaN.
        max_abs_error: the largest error from that result; inf where a NaN or an infinity is
            wrong or missing.
        max_rel_error: the largest error relative to its element, where that is not 0.
        order_ratio: the largest ratio of an element's distance from the exact sum to what the
            order of float32 adds may explain. At most 1 where the order explains all.
        explained_by_order: whether it does; equal results are.
        outside: how many elements it does not explain.
        outside_rows: in how many rows those are.
        worst_rows: up to five rows, those first that the order explains least.
        causes: the names of known defects whose output `actual` is, see ``causes.py``; empty where
            the order explains all, or where none fits.
        likely: a sentence for each cause.
        notes: what was done to `actual` before it was compared.
    """

    shape: tuple[int, int]
    equal: bool
    max_abs_error: float
    max_rel_error: float
    order_ratio: float
    explained_by_order: bool
    outside: int
    outside_rows: int
    worst_rows: tuple[WorstRow, ...]
    causes: tuple[str, ...]
    likely: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.equal:
            return "equal to the last bit"
        if self.explained_by_order:
            return "explained by the order of adds"
        size = self.shape[0] * self.shape[1]
        return (
            f"not explained by the order of adds: {self.outside} of {size} elements in "
            f"{self.outside_rows} of {self.shape[0]} rows"
        )

    def __str__(self) -> str:
        """The verdict, the figures, the worst rows, the causes."""
        lines = [
            self.verdict,
            f"largest error: {self.max_abs_error:.3g} absolute, {self.max_rel_error:.3g} relative; "
            f"{self.order_ratio:.3g} times what the order of float32 adds can explain",
        ]
        if not self.equal:
            lines.append("row     column  error       order explains  rows added")
            lines += [
                f"{row.index:<8}{row.column:<8}{row.error:<12.3g}{row.order_bound:<16.3g}{row.added}"
                + (" and shared_input" if row.shared else "")
                for row in self.worst_rows
            ]
        if not self.explained_by_order:
            lines += [
                f"likely cause: {sentence} ({name}, which gives this output in every row)"
                for name, sentence in zip(self.causes, self.likely)
            ] or [f"no known cause gives this output ({len(CAUSES)} tried)"]
        return "\n".join((*lines, *self.notes))


def compare(actual: Tensor, x: Tensor, w: Tensor, group_list: Tensor, **kwargs: Any) -> Comparison:
    """Compare an output of the operator with the exact one.

    The call is computed anew on the CPU, exactly as the contract has it. The float32 sum of an
    element's terms, added in any order, lies within ``(terms - 1) * 2**-24 * sum(|term|)`` of the
    exact sum. What differs by more has another cause, and the known ones are tried: each says which
    output it would give, and is named where actual is that output, up to the order of adds.

    The cost is that of the operator on the CPU. Where the order does not explain all, there come
    some 25 forms of defects, each on the rows of x that are added to the worst output row, and once
    more the operator's for each defect that fits there. Memory is about 150 MB, beside copies on
    the CPU of what is on a device.

    Args:
        actual: ``(output_bs, n)`` float32 or bfloat16 of any device: the output in question. The
            rounding of bfloat16 is added to what is explained.
        x: as for :func:`npu_lowering.npu_grouped_matmul_finalize_routing`, of any device.
        w: as there.
        group_list: as there.
        **kwargs: the operator's keyword arguments.

    Returns:
        A :class:`Comparison`; print it.

    Raises:
        TypeError, ValueError, IndexError, NotImplementedError: the call is not legal; as the
            operator on CPU. Also where actual is of another dtype or shape.
    """
    call: dict[str, Any] = {"x": x, "w": w, "group_list": group_list, **kwargs}
    for name, value in call.items():
        if isinstance(value, Tensor):
            call[name] = value.detach().cpu()
    problem = check(**call)
    shape = (int(problem.output_bs), int(problem.n))
    if actual.dtype not in (torch.float32, torch.bfloat16):
        got = dtype_name(actual.dtype)
        raise TypeError(f"actual must be float32 or bfloat16, got {got}")
    if tuple(actual.shape) != shape:
        raise ValueError(f"actual must be (output_bs, n) = {shape}, got {tuple(actual.shape)}")
    notes = []
    if actual.device.type != "cpu":  # pragma: no cover -- it takes another device
        notes.append(f"actual was on {actual.device} and was copied to the CPU")
    if actual.dtype == torch.bfloat16:
        notes.append("actual is bfloat16; its rounding is part of what the order explains")
    found = actual.detach().cpu()

    with torch.device("cpu"):  # whatever the default device is
        terms = contract(problem, check_values(problem))
        rows = _Rows(found)
        for wanted in torch.arange(shape[0]).split(_block(shape[1])):
            rows.measure(wanted, add_up(terms, wanted))
        return rows.report(terms, notes)


def _excess(actual: Tensor, sums: Sums) -> tuple[Tensor, Tensor]:
    """How often the bound goes into the distance from the exact sum, inf if wrong; and the bound.

    Both are float64.
    """
    value, bound = actual.double(), sums.bound
    if actual.dtype == torch.bfloat16:
        bound = bound + (sums.exact.abs() + bound) * _BFLOAT16_UNIT + torch.finfo(actual.dtype).tiny
    distance = (value - sums.exact).abs()
    ratio = torch.where(distance == 0, 0.0, distance / bound)
    # Not finite: the same infinity, or both NaN.
    same = (value == sums.exact) | (value.isnan() & sums.exact.isnan())
    # A sum that leaves float32 is infinite there and not in float64.
    same |= value == sums.ordered.double()
    wrong = torch.where(same, 0.0, INF)
    finite = value.isfinite() & sums.exact.isfinite() & bound.isfinite()
    return torch.where(finite & ~ratio.isnan(), ratio, wrong), bound


class _Rows:
    """Figures of the output rows, gathered block by block."""

    def __init__(self, actual: Tensor) -> None:
        self.actual = actual
        rows = actual.shape[0]
        self.excess = torch.zeros(rows, dtype=torch.float64)
        self.column = torch.zeros(rows, dtype=torch.int64)
        self.distance = torch.zeros(rows, dtype=torch.float64)
        self.bound = torch.zeros(rows, dtype=torch.float64)
        self.error = torch.zeros(rows, dtype=torch.float64)
        self.added = torch.zeros(rows, dtype=torch.int64)
        self.shared = torch.zeros(rows, dtype=torch.bool)
        self.outside = torch.zeros(rows, dtype=torch.int64)
        self.relative = 0.0

    def measure(self, wanted: Tensor, sums: Sums) -> None:
        actual = self.actual[wanted]
        excess, bound = _excess(actual, sums)
        value, expected = actual.double(), sums.ordered.double()
        same = (value == expected) | (value.isnan() & expected.isnan())
        error = (value - expected).abs().masked_fill(same, 0.0).nan_to_num(nan=INF, posinf=INF)
        self.excess[wanted], column = excess.max(1)
        self.column[wanted] = column
        place = torch.arange(len(wanted)), column
        self.bound[wanted] = bound[place]
        distance = (value - sums.exact)[place].abs()
        self.distance[wanted] = distance.nan_to_num(nan=INF, posinf=INF)
        self.error[wanted] = error.max(1).values
        self.added[wanted], self.shared[wanted] = sums.added, sums.shared
        self.outside[wanted] = (excess > 1).sum(1)
        relative = torch.where(same | (expected == 0), 0.0, error / expected.abs())
        self.relative = max(self.relative, float(relative.nan_to_num(nan=INF, posinf=INF).max()))

    def report(self, terms: Terms, notes: list[str]) -> Comparison:
        """Choose the worst rows, and try the causes where the order does not explain all."""
        # By how far they are from being explained, and then by their error.
        by_error = self.error.argsort(descending=True, stable=True)
        order = by_error[self.excess[by_error].argsort(descending=True, stable=True)]
        explained = bool((self.excess <= 1).all())
        found = () if explained else tuple(self._causes(terms, order))
        worst = tuple(
            WorstRow(
                index=row,
                column=int(self.column[row]),
                error=float(self.distance[row]),
                order_bound=float(self.bound[row]),
                added=int(self.added[row]),
                shared=bool(self.shared[row]),
            )
            for row in order[:WORST].tolist()
        )
        return Comparison(
            shape=(self.actual.shape[0], self.actual.shape[1]),
            equal=not self.error.any(),
            max_abs_error=float(self.error.max()),
            max_rel_error=self.relative,
            order_ratio=float(self.excess.max()),
            explained_by_order=explained,
            outside=int(self.outside.sum()),
            outside_rows=int((self.outside > 0).sum()),
            worst_rows=worst,
            causes=tuple(CAUSES[index].name for index in found),
            likely=tuple(CAUSES[index].sentence for index in found),
            notes=tuple(notes),
        )

    def _causes(self, terms: Terms, order: Tensor) -> Iterator[int]:
        for index, cause in enumerate(CAUSES):
            for candidate in cause.hypothesis(terms):
                # All but the right one are out after the worst row, as a rule.
                if all(self._fits(candidate, part) for part in self._parts(order)):
                    yield index
                    break

    def _parts(self, order: Tensor) -> tuple[Tensor, ...]:
        """The worst row, the next worst, and all others in blocks."""
        blocks = order[FIRST:].split(_block(self.actual.shape[1]))
        parts = (order[:1], order[1:FIRST], *blocks)
        return tuple(part for part in parts if len(part))

    def _fits(self, candidate: Terms, wanted: Tensor) -> bool:
        sums = add_up(candidate, wanted)
        excess, _ = _excess(self.actual[wanted], sums)
        if candidate.unhit_rows_hold_anything:
            excess = excess[(sums.added > 0) | sums.shared]
        return bool((excess <= 1).all())


def _block(n: int) -> int:
    """Output rows that are summed at a time."""
    return max(1, BLOCK // n)
