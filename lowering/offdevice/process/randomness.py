"""The generator that TorchAIR draws from while it lowers random operators."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch


class Generator:
    """A device's default generator, as a graph asks it: a seed, and how far it has been drawn.

    The seed is torch's own, so that ``torch.manual_seed`` is what it is on a device.
    """

    def __init__(self) -> None:
        self._seed = torch.initial_seed()
        self._offset = 0

    def initial_seed(self) -> int:
        """The seed, as the int64 that a graph has of torch's unsigned one."""
        seed = torch.initial_seed()
        return seed - (1 << 64) if seed >= 1 << 63 else seed

    def get_offset(self) -> int:
        """How many numbers have been drawn since it was seeded."""
        if self._seed != torch.initial_seed():
            self._seed, self._offset = torch.initial_seed(), 0
        return self._offset

    def set_offset(self, offset: int) -> None:
        """Go to another place in the sequence."""
        self._seed, self._offset = torch.initial_seed(), int(offset)


def play() -> None:
    """Let graphs draw from it, where torch_npu would ask a device for its own."""
    graph: Any = importlib.import_module("torchair.ge._ge_graph")
    state = getattr(graph, "_GraphRngState", None)
    if state is not None:  # pragma: no branch -- of another release
        state.__init__ = _drawing(state.__init__, Generator())


def _drawing(initialise: Callable[..., None], generator: Generator) -> Callable[..., None]:
    @functools.wraps(initialise)
    def drawing(self: Any, gen: Any = None) -> None:
        initialise(self, generator if gen is None else gen)

    return drawing
