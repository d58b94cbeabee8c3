"""What was lowered in this process, in the order in which it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from npu_lowering.offdevice.engine.graph import Graph, GraphError

_last: list[Graph] = []
_recordings: list[Recording] = []


class Recording:
    """The graphs that were lowered while it was open.

    Attributes:
        graphs: In the order in which they were compiled.
    """

    def __init__(self) -> None:
        self.graphs: list[Graph] = []

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
def recording() -> Iterator[Recording]:
    """Keep the graphs that are lowered from here on, until the context is left."""
    made = Recording()
    _recordings.append(made)
    try:
        yield made
    finally:
        _recordings.remove(made)


def remember(graph: Graph) -> None:
    """Make a graph the one ``last_graph`` gives, and part of every open recording."""
    _last[:] = [graph]
    for each in _recordings:
        each.graphs.append(graph)


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
