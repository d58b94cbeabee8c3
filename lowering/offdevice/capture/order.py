"""Which of two captured calls comes before the other, and which two nothing orders.

Calls of one stream run in order. Across streams only events order them: what was called before an
event was recorded comes before what is called after it was waited for. Two calls that touch the
same memory, one of which writes it, and that nothing orders, may run either way on a device: the
result is then wrong now and then, and nothing says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

_Clock = dict[int, int]  # of each stream, how many of its calls are done


class Area(NamedTuple):
    """Memory that a call reads or writes: the elements of a tensor, by address."""

    address: int
    itemsize: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @staticmethod
    def of(tensor: torch.Tensor) -> Area:
        """The elements of ``tensor``."""
        return Area(
            tensor.data_ptr(), tensor.element_size(), tuple(tensor.shape), tuple(tensor.stride())
        )

    @property
    def is_empty(self) -> bool:
        """Whether it has no element."""
        return 0 in self.size

    @property
    def end(self) -> int:
        """The address behind its last byte."""
        last = sum((size - 1) * stride for size, stride in zip(self.size, self.stride))
        return self.address + (last + 1) * self.itemsize

    def meets(self, other: Area) -> bool:
        """Whether a byte of one is a byte of the other."""
        if self.is_empty or other.is_empty:
            return False
        begin, end = max(self.address, other.address), min(self.end, other.end)
        if begin >= end:
            return False
        begin, end = min(self.address, other.address), max(self.end, other.end)
        return bool((self._bytes(begin, end) & other._bytes(begin, end)).any())

    def _bytes(self, begin: int, end: int) -> torch.Tensor:
        marks = torch.zeros(end - begin, dtype=torch.bool)
        size, stride = (*self.size, self.itemsize), [step * self.itemsize for step in self.stride]
        marks.as_strided(size, (*stride, 1), self.address - begin).fill_(True)
        return marks


class Access(NamedTuple):
    """One call's reading or writing of an area."""

    call: str
    stream: int
    at: int
    area: Area
    is_write: bool


class Conflict(NamedTuple):
    """Two accesses of the same memory that nothing orders."""

    earlier: Access
    later: Access


@dataclass
class Order:
    """The order of one capture's calls, kept as they come."""

    _clocks: dict[int, _Clock] = field(default_factory=dict)
    _accesses: dict[int, list[Access]] = field(default_factory=dict)  # of each stream

    def add(
        self, call: str, stream: int, reads: Sequence[Area], writes: Sequence[Area]
    ) -> Conflict | None:
        """Take down a call.

        Returns:
            The first earlier access that it is not ordered with and has to be, if there is one.
        """
        clock = self._clocks.setdefault(stream, {})
        at = clock[stream] = clock.get(stream, 0) + 1
        accesses = [
            *(Access(call, stream, at, area, True) for area in writes),
            *(Access(call, stream, at, area, False) for area in reads),
        ]
        found = next(filter(None, map(self._conflict, accesses)), None)
        self._accesses.setdefault(stream, []).extend(accesses)
        return found

    def record(self, stream: int) -> _Clock:
        """What is done once a stream comes to this point."""
        return dict(self._clocks.setdefault(stream, {}))

    def wait(self, stream: int, done: _Clock) -> None:
        """Let a stream go on only after what :meth:`record` gave is done."""
        clock = self._clocks.setdefault(stream, {})
        for other, count in done.items():
            clock[other] = max(clock.get(other, 0), count)

    def not_joined(self, stream: int) -> list[int]:
        """The streams with calls that ``stream`` has not waited for."""
        done = self._clocks.get(stream, {})
        return sorted(
            other
            for other in self._accesses
            if other != stream and self._clocks[other][other] > done.get(other, 0)
        )

    def _conflict(self, access: Access) -> Conflict | None:
        for other, accesses in self._accesses.items():
            if other == access.stream:
                continue
            done = self._clocks[access.stream].get(other, 0)
            for old in reversed(accesses):
                if old.at <= done:
                    break  # and all before it
                if (old.is_write or access.is_write) and old.area.meets(access.area):
                    return Conflict(old, access)
        return None
