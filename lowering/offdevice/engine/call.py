"""What a kernel of a GE operator is called with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import torch

from npu_lowering.offdevice.engine.graph import GraphError, Node, ge_code_to_dtype

Result = Union[torch.Tensor, Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Call:
    """A node and the tensors that reach it.

    Attributes:
        node: The node.
        inputs: Tensors by the input names of the operator's definition.
        is_callers: Whether a tensor is in memory of the caller's.
    """

    node: Node
    inputs: Mapping[str, torch.Tensor]
    is_callers: Callable[[torch.Tensor], bool]

    def __getitem__(self, name: str) -> torch.Tensor:
        value = self.inputs.get(name)
        if value is None:
            raise GraphError(f"its input {name!r} is not given")
        return value

    def get(self, name: str) -> torch.Tensor | None:
        """An optional input."""
        return self.inputs.get(name)

    def dynamic(self, name: str) -> list[torch.Tensor]:
        """The members of a dynamic input: name0, name1, ..."""
        found: dict[int, torch.Tensor] = {}
        for key, value in self.inputs.items():
            match = re.fullmatch(rf"{name}(\d+)", key)
            if match:
                found[int(match.group(1))] = value
        if sorted(found) != list(range(len(found))) or not found:
            raise GraphError(f"its inputs {name}0, {name}1, ... are not given one after another")
        return [found[index] for index in range(len(found))]

    def optional(self, name: str) -> list[torch.Tensor]:
        """The members of a dynamic input that may have none."""
        return self.dynamic(name) if f"{name}0" in self.inputs else []

    def ints(self, name: str) -> list[int]:
        """The values of a small integer input (axes, sizes), flattened."""
        return [int(value) for value in self[name].reshape(-1).tolist()]

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default of the operator's definition where it is left out.

        Raises:
            GraphError: It is left out and the definition has no default.
        """
        value = self.node.attrs.get(name, default)
        if value is None:
            raise GraphError(f"its attribute {name!r} is required")
        return value

    def dtype(self, name: str, default: int | None = None) -> torch.dtype:
        """An attribute that holds the number of a GE dtype."""
        return ge_code_to_dtype(int(self.attr(name, default)))

    def output_dtype(self, index: int = 0) -> torch.dtype | None:
        """What the model promises of an output, None where it does not say."""
        return self.node.outputs[index].dtype

    def writable(self, name: str) -> torch.Tensor:
        """The tensor an in-place operator writes: the caller's own memory, else a copy.

        A value computed inside the graph may have other readers; a device copies it then.
        """
        value = self[name]
        return value if self.is_callers(value) else value.clone()
