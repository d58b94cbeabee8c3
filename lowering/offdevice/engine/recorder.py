"""What was lowered in this process, in the order in which it was."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from npu_lowering.offdevice.engine.graph import Graph, GraphError

_last: list[Graph] = []
_recordings: list[Recording] = []


class LoweredError(BaseException):
    """Ends a call that was to lower only; no one who handles errors of a run is to take it."""


class Recording:
    """The graphs that were lowered while it was open.

    Attributes:
        graphs: In the order in which they were compiled.
        lowering_only: Whether the call in its thread ends where its first graph is lowered.
    """

    def __init__(self, *, lowering_only: bool = False) -> None:
        self.graphs: list[Graph] = []
        self.lowering_only = lowering_only
        self.thread = threading.get_ident()

    def __call__(self) -> Graph:
        """The graph that was lowered last.

        Raises:
            GraphError: None was.
        """
        __tracebackhide__ = True  # pytest then shows the line of the test
        if not self.graphs:
            raise GraphError(
                "no graph was lowered here yet: call a model once that is compiled with the "
                "backend of TorchAIR, torchair.get_npu_backend(); what was compiled before is not "
                "lowered again"
            )
        return self.graphs[-1]


@contextlib.contextmanager
def recording(*, lowering_only: bool = False) -> Iterator[Recording]:
    """Keep the graphs that are lowered from here on, until the context is left.

    Args:
        lowering_only: End the call that lowers the first one in this thread.
    """
    made = Recording(lowering_only=lowering_only)
    _recordings.append(made)
    try:
        yield made
    finally:
        _recordings.remove(made)


def remember(graph: Graph) -> None:
    """Make a graph the one ``last_graph`` gives, and part of every open recording.

    Raises:
        LoweredError: It was only to be lowered.
    """
    _last[:] = [graph]
    for each in _recordings:
        each.graphs.append(graph)
    here = threading.get_ident()
    if any(each.lowering_only and each.thread == here for each in _recordings):
        raise LoweredError


def last_graph() -> Graph:
    """The graph compiled last in this process.

    Raises:
        GraphError: None was yet.
    """
    if not _last:
        raise GraphError(
            "no graph was compiled in this process yet: call a model compiled with "
            "torchair.get_npu_backend() once, after npu_lowering.offdevice.install()"
        )
    return _last[0]
