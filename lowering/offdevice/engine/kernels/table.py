"""What a kernel of a GE operator is, and the tables that they are listed in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Callable

from npu_lowering.offdevice.engine.call import Call, Result

Function = Callable[[Call], Result]


@dataclass(frozen=True)
class Kernel:
    """How a GE operator is computed.

    Attributes:
        function: from the node and its tensors to its results.
        in_place: whether it writes memory of its caller's, where that is what it is given. Its
            result is that memory then, and not copied before a later node writes it again.
    """

    function: Function
    in_place: bool = False


class Table(Mapping[str, Kernel]):
    """Kernels by the type of the node."""

    def __init__(self) -> None:
        self._kernels: dict[str, Kernel] = {}

    def add(self, op_type: str, function: Function, *, in_place: bool = False) -> None:
        """List a kernel; there is one for each type."""
        assert op_type not in self._kernels, f"two kernels for {op_type}"
        self._kernels[op_type] = Kernel(function, in_place)

    def kernel(self, *op_types: str, in_place: bool = False) -> Callable[[Function], Function]:
        """The same, said where the kernel is: a decorator."""

        def listed(function: Function) -> Function:
            for op_type in op_types:
                self.add(op_type, function, in_place=in_place)
            return function

        return listed

    def include(self, other: Table) -> None:
        """Take over the kernels of another table."""
        for op_type, kernel in other.items():
            self.add(op_type, kernel.function, in_place=kernel.in_place)

    def __getitem__(self, op_type: str) -> Kernel:
        """The kernel of a type."""
        return self._kernels[op_type]

    def __iter__(self) -> Iterator[str]:
        """The types."""
        return iter(self._kernels)

    def __len__(self) -> int:
        """How many types there are."""
        return len(self._kernels)
