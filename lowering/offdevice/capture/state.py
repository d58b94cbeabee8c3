"""Which stream is current, in each thread, and whether a capture is under way."""

from __future__ import annotations

import itertools
import threading
from typing import Any

DEFAULT = 0  # the id of the default stream

_local = threading.local()
_ids = itertools.count(1)
_recorder: Any = None


def stream() -> int:
    """The id of this thread's current stream."""
    return int(getattr(_local, "stream", DEFAULT))


def set_stream(stream_id: int) -> None:
    """Make a stream this thread's current one."""
    _local.stream = stream_id


def new_stream() -> int:
    """The id of a stream that is not in use."""
    return next(_ids)


def recorder() -> Any:
    """What takes down the capture that is under way in this process; None if there is none."""
    return _recorder


def set_recorder(value: Any) -> None:
    """Begin a capture, or end it with None."""
    global _recorder
    _recorder = value


def failed(error: Exception) -> Exception:
    """An error that ends the capture that is under way, if one is: nothing can be replayed."""
    if _recorder is not None:
        _recorder.failure = error
    return error


def is_capturing() -> bool:
    """Whether the current stream takes part in a capture."""
    return _recorder is not None and stream() in _recorder.streams
