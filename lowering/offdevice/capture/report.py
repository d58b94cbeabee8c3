"""What the last capture recorded, to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from npu_lowering.offdevice.capture.calls import Call, Reset, Wait

_last: Captured | None = None


@dataclass(frozen=True)
class CapturedCall:
    """One captured call.

    Attributes:
        operator: Its name, ``aten.mm`` say.
        stream: The id of the stream it was called on.
        inputs: Its tensors, each as dtype, shape and address.
        outputs: What it writes, of new results and of arguments.
        text: All of it in one line.
    """

    operator: str
    stream: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Captured:
    """What a capture recorded. ``str()`` gives it line by line.

    Attributes:
        calls: Every call, in order.
        streams: The ids of the streams that took part.
        pool: The id of the memory pool.
        pool_bytes: What the pool holds.
        made: The bytes that this capture's results take, had nothing been used again.
    """

    calls: tuple[CapturedCall, ...]
    streams: tuple[int, ...]
    pool: tuple[int, int]
    pool_bytes: int
    made: int

    def __str__(self) -> str:
        streams = ", ".join(map(str, self.streams))
        head = (
            f"{len(self.calls)} calls on stream {streams}; pool {self.pool} of "
            f"{self.pool_bytes} bytes, {self.made} bytes of results"
        )
        lines = [f"{index:4} [{call.stream}] {call.text}" for index, call in enumerate(self.calls)]
        return "\n".join([head, *lines])


def last_captured() -> Captured:
    """What the last capture in this process recorded.

    Raises:
        RuntimeError: None has come to its end yet.
    """
    if _last is None:
        raise RuntimeError(
            "no NPU graph has been captured in this process yet: capture one with torch.npu.graph, "
            'or compile with backend="npugraph_ex" and call the result'
        )
    return _last


def keep(recorder: Any) -> None:
    """Keep what a capture recorded, without its memory."""
    global _last
    calls = []
    for step in recorder.steps:
        if isinstance(step, Call):
            calls.append(
                CapturedCall(
                    step.name,
                    step.stream,
                    tuple(map(str, step.read)),
                    tuple(map(str, [*step.written, *step.fresh])),
                    str(step),
                )
            )
        elif isinstance(step, (Wait, Reset)):
            name = f"{type(step).__name__.lower()} of an external event"
            calls.append(CapturedCall(name, step.stream, (), (), name))
    _last = Captured(
        tuple(calls),
        tuple(sorted(recorder.streams)),
        recorder.pool.handle,
        recorder.pool.reserved,
        recorder.made,
    )
