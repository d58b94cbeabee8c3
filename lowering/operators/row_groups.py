"""Groups of consecutive rows, as a list of counts or of running totals says them."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_lowering.operators.checking import Size


def ends_of(name: str, values: list[int], rows: int, *, totals: bool) -> list[int]:
    """Where each group ends.

    Args:
        name: of the argument.
        values: the list.
        rows: how many there are.
        totals: whether it holds running totals, not counts.

    Raises:
        ValueError: a count is negative, a total decreases, or there are more rows than rows; the
            message has the first such place.
    """
    end = 0
    ends: list[int] = []
    for g, value in enumerate(values):
        before, end = end, value if totals else end + value
        if end < before or end > rows:
            form = "totals that do not decrease" if totals else "counts >= 0"
            raise ValueError(
                f"{name} must hold {form}, of at most m = {rows} rows in all, "
                f"got {name}[{g}] = {value} after {before} rows"
            )
        ends.append(end)
    return ends


def group_of_rows(group_list: Tensor, rows: Size, *, totals: bool) -> Tensor:
    """The group of each row, as many as there are groups for a row past the last one.

    A graph of torch ops without a branch on data: int64 ``(rows,)``.
    """
    groups = group_list.to(torch.int64)
    ends = groups if totals else groups.cumsum(0)
    row = torch.arange(rows, device=group_list.device)
    return (ends.unsqueeze(0) <= row.unsqueeze(1)).sum(1)
