"""The order that routing brings slots into: by expert, those of one expert in their own order.

A slot is one choice of one token, ``token * k + i``. Records whose rows are in this order share it,
and the int8 of rows that go to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """Sorted slots.

    Attributes:
        experts: ``(slots,)``, the expert of each sorted slot; end or more for the inactive.
        slots: ``(slots,)`` int64, which slot lies at each place.
        first: the first active expert.
        end: the one past the last.
    """

    experts: Tensor
    slots: Tensor
    first: int
    end: int

    def totals(self) -> Tensor:
        """int64 ``(active experts,)``: the slots up to the end of each."""
        each = torch.arange(
            self.first, self.end, dtype=self.experts.dtype, device=self.experts.device
        )
        return torch.searchsorted(self.experts, each, right=True)

    def counts(self) -> Tensor:
        """int64 ``(active experts,)``: the slots of each."""
        totals = self.totals()
        return torch.diff(totals, prepend=totals.new_zeros(1))

    def rows_of_slots(self, capacity: int | None = None) -> Tensor:
        """int32 ``(slots,)``: the row that each slot goes to, -1 for a slot that has none.

        Args:
            capacity: rows of each expert, where there are so many and no more.
        """
        place = torch.arange(len(self.slots), dtype=torch.int64, device=self.slots.device)
        active = self.experts < self.end
        if capacity is not None:
            totals = self.totals()
            expert = (self.experts - self.first).clamp(max=len(totals) - 1).to(torch.int64)
            within = place - (totals - self.counts())[expert]
            active = active & (within < capacity)
            place = expert * capacity + within
        row = torch.where(active, place, -1).to(torch.int32)
        return torch.empty_like(row).index_copy(0, self.slots, row)

    def with_capacity(self, capacity: int) -> tuple[Tensor, Tensor]:
        """The slot of each of ``experts * capacity`` rows, and whether there is one."""
        counts, totals = self.counts(), self.totals()
        within = torch.arange(capacity, device=counts.device)
        there = (within < counts.unsqueeze(1)).reshape(-1)
        place = ((totals - counts).unsqueeze(1) + within).reshape(-1)
        return self.slots[place.clamp(max=max(len(self.slots) - 1, 0))], there


def sorted_slots(expert_idx: Tensor, first: int, end: int) -> Order:
    """The slots of ``(tokens, k)`` experts, those of experts outside ``[first, end)`` last."""
    flat = expert_idx.reshape(-1)
    # Those before the first go behind all others, those past the end are there already.
    key = torch.where(flat < first, torch.iinfo(flat.dtype).max, flat)
    experts, slots = torch.sort(key, stable=True)
    return Order(experts, slots, first, end)


def static_quantised(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """int8 of ``x * scale + offset``, in float16, each step rounded to even."""
    half = torch.float16
    wide = x.to(half) * scale.to(half) + offset.to(half)
    return torch.round(wide).clamp(-128, 127).to(torch.int8)
