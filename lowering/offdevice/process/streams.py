"""Streams and events of an NPU, played by a CPU, on which whatever was queued is done."""

# ruff: noqa: ARG002, D102 -- signatures and meanings are those of what is replaced

from __future__ import annotations

import time
from typing import Any


class Context:
    """Enters nothing and leaves nothing: a device or a stream where there is only one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class Stream(Context):
    """The one queue of a CPU: whatever was put into it is done."""

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass


class Event:
    """A moment in the one queue of a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._time: float | None = None

    def record(self, stream: Any = None) -> None:
        self._time = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this event to ``end``."""
        if self._time is None or end._time is None:
            raise RuntimeError("both events must be recorded before elapsed_time() is asked for")
        return float(end._time - self._time) * 1e3


def played() -> dict[str, Any]:
    """What plays the names of ``torch.npu`` that have to do with streams.

    Each has an object of its own: Dynamo refuses one that it finds under two names.
    """
    stream = Stream()
    return {
        "current_stream": lambda device=None: stream,  # noqa: ARG005
        "default_stream": lambda device=None: stream,  # noqa: ARG005
        "set_stream": lambda stream: None,  # noqa: ARG005
        "is_current_stream_capturing": lambda: False,
        **{name: type(name, (Context,), {}) for name in ("device", "stream", "StreamContext")},
        "Stream": Stream,
        "Event": Event,
    }
