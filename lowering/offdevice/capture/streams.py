"""Streams and events of an NPU, played by a CPU.

Outside a capture whatever is called is done when the call returns, so that every order a program
can ask for is kept. In a capture the streams and events are taken down, and what they leave
unordered is found (``order``).
"""

# ruff: noqa: D102 -- meanings are those of what is replaced

from __future__ import annotations

import time
from typing import Any

import torch

from npu_lowering.offdevice.capture import graph, refusals, state
from npu_lowering.offdevice.capture.refusals import CaptureError

_NPU = 20  # PrivateUse1 among torch's device types


class StreamBase(torch.Stream):
    """What ``torch.npu.Stream`` is derived from."""

    _priority: int

    def __new__(
        cls,
        priority: int = 0,
        stream_id: int = 0,
        device_index: int = 0,
        device_type: int = 0,
        stream_ptr: int = 0,
        is_sync_launch: int = 0,  # noqa: ARG004 -- how it is launched changes no result
    ) -> Any:
        if stream_ptr:
            raise NotImplementedError(
                "torch.npu.ExternalStream wraps a stream that CANN made, and there is no CANN here"
            )
        if not (stream_id or device_index or device_type):
            stream_id = state.new_stream()
        made = super().__new__(
            cls, stream_id=stream_id, device_index=device_index, device_type=_NPU
        )
        made._priority = priority
        return made

    @property
    def npu_stream(self) -> int:
        return self.stream_id

    @property
    def priority(self) -> int:
        return int(self._priority)

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return (0, -1)

    def is_capturing(self) -> bool:
        current = state.recorder()
        return current is not None and self.stream_id in current.streams

    def query(self) -> bool:
        self._settle("Stream.query()")
        return True

    def synchronize(self) -> None:
        self._settle("Stream.synchronize()")

    def _settle(self, what: str) -> None:
        if self.is_capturing():
            raise refusals.synchronises(what)
        graph.settle_replays(what)

    def set_data_preprocess_stream(self, is_data_preprocess_stream: bool = False) -> None:
        del is_data_preprocess_stream

    def __enter__(self) -> Any:
        self._outer = [*getattr(self, "_outer", []), state.stream()]
        state.set_stream(self.stream_id)
        return self

    def __exit__(self, *_: object) -> None:
        state.set_stream(self._outer.pop())


class EventBase(torch.Event):
    """What ``torch.npu.Event`` and ``ExternalEvent`` are derived from."""

    _has_time: bool
    _is_external: bool
    _time: float | None
    _capture: Any  # that it was recorded in, and what was done there by then
    is_recorded: bool

    def __new__(
        cls,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        graph_external: bool = False,
    ) -> Any:
        del blocking, interprocess
        made = super().__new__(cls, device="npu")
        made._has_time = enable_timing
        made._is_external = graph_external
        made._time = None
        made._capture = None
        made.is_recorded = False
        return made

    @property
    def npu_event(self) -> int:
        return id(self) if self._time is not None else 0

    @property
    def event_id(self) -> int:  # type: ignore[override]
        return self.npu_event

    def record(self, stream: Any = None) -> None:
        stream_id = _id(stream)
        current: Any = state.recorder()
        self._capture = None
        if current is not None and stream_id in current.streams:
            if self._is_external:
                raise NotImplementedError(
                    "ExternalEvent.record() on a stream that is captured is not played: record it "
                    "on another stream, after replay()"
                )
            self._capture = (current, current.order.record(stream_id))
        self._time = time.perf_counter()
        self.is_recorded = True
        if self._is_external:
            graph.event_recorded()

    def wait(self, stream: Any = None) -> None:
        stream_id = _id(stream)
        current: Any = state.recorder()
        if current is None:
            return
        if self._is_external:
            if stream_id in current.streams:
                current.wait_for(self, stream_id)
            return
        if self._capture is not None and self._capture[0] is current:
            current.streams.add(stream_id)
            current.order.wait(stream_id, self._capture[1])
        elif stream_id in current.streams and self._time is not None:
            raise state.failed(
                CaptureError(
                    f"stream {stream_id}, which is captured, waits for an event that was recorded "
                    "outside the capture: no replay could wait for it. Record the event on a "
                    "stream that takes part, or use torch.npu.ExternalEvent"
                )
            )

    def reset(self, stream: Any = None) -> None:
        stream_id = _id(stream)
        current = state.recorder()
        if current is not None and stream_id in current.streams:
            current.reset_event(self, stream_id)
        else:
            self.is_recorded = False

    def query(self) -> bool:
        self._settle("Event.query()")
        return True

    def synchronize(self) -> None:
        self._settle("Event.synchronize()")

    def _settle(self, what: str) -> None:
        if self._capture is not None and self._capture[0] is state.recorder():
            raise refusals.synchronises(what)
        graph.settle_replays(what)

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to another."""
        if not (self._has_time and end_event._has_time):
            raise RuntimeError("elapsed_time() needs both events made with enable_timing=True")
        if self._time is None or end_event._time is None:
            raise RuntimeError("both events must be recorded before elapsed_time() is asked for")
        return float(end_event._time - self._time) * 1e3

    def recorded_time(self) -> int:
        """Nanoseconds, of a clock of its own."""
        if self._time is None:
            raise RuntimeError("the event must be recorded before recorded_time() is asked for")
        return int(self._time * 1e9)

    def ipc_handle(self) -> bytes:
        raise NotImplementedError("an event of the CPU has no handle for other processes")

    @classmethod
    def from_ipc_handle(cls, device: Any, handle: Any) -> Any:
        del device, handle
        raise NotImplementedError("an event of the CPU has no handle for other processes")


def _id(stream: Any) -> int:
    return state.stream() if stream is None else int(stream.stream_id)


def set_stream(stream_id: int, device_index: int = 0, device_type: int = _NPU) -> None:
    """``torch_npu._C._npu_setStream``."""
    del device_index, device_type
    state.set_stream(stream_id)


def current_stream(device_index: int | None = None) -> tuple[int, int, int]:
    """``torch_npu._C._npu_getCurrentStream``."""
    return state.stream(), max(device_index or 0, 0), _NPU


def default_stream(device_index: int | None = None) -> tuple[int, int, int]:
    """``torch_npu._C._npu_getDefaultStream``."""
    return state.DEFAULT, max(device_index or 0, 0), _NPU


def synchronize() -> None:
    """``torch_npu._C._npu_synchronize``."""
    if state.recorder() is not None:
        raise refusals.synchronises(
            "torch.npu.synchronize(), which entering torch.npu.graph calls as well,"
        )
    graph.settle_replays("torch.npu.synchronize()")


def record_stream(tensor: torch.Tensor, stream: Any) -> None:
    """``Tensor.record_stream``: memory that another stream uses is not given out again."""
    del stream
    current = state.recorder()
    if current is not None and refusals.is_plain(tensor):
        current.borrowed.append(tensor.untyped_storage())
