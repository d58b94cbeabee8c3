"""A captured graph: what torch_npu's C++ class does for ``torch.npu.NPUGraph``."""

from __future__ import annotations

import contextlib
import json
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from npu_lowering.offdevice.capture import memory, recorder, refusals, report, state
from npu_lowering.offdevice.capture.calls import Call, Reset, Step, Wait
from npu_lowering.offdevice.capture.recorder import Recorder
from npu_lowering.offdevice.capture.refusals import CaptureError

_MODES = ("global", "thread_local", "relaxed")


class Graph:
    """What is captured, and replayed.

    ``torch.npu.NPUGraph``, whose Python is torch_npu's, is derived from it.
    """

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._steps: list[Step] | None = None  # None where nothing was captured
        self._pool: memory.Pool | None = None
        self._refusing = contextlib.ExitStack()
        self._poisoned: list[torch.Tensor] = []
        self._generators: list[torch.Generator] = []
        self._going: Iterator[None] | None = None
        self._release: Any = None

    def capture_begin(
        self,
        pool: tuple[int, int] | None = None,
        capture_error_mode: str = "global",
        report_shape: bool = False,  # noqa: ARG002 -- of what the device's profiler shows
    ) -> None:
        """Take down what is called from now on, and compute nothing."""
        if capture_error_mode not in _MODES:
            raise ValueError(
                f"capture_error_mode must be one of {', '.join(_MODES)}, got {capture_error_mode!r}"
            )
        if state.recorder() is not None:
            raise state.failed(
                CaptureError(
                    "capture_begin() during another capture: a process captures one NPU graph at a "
                    "time, and graphs do not nest. End the other with capture_end() first"
                )
            )
        if self._steps is not None:
            raise CaptureError(
                "this NPUGraph holds a captured graph already: capture into a new one, or call "
                "reset() first"
            )
        if state.stream() == state.DEFAULT:
            raise CaptureError(
                "an NPU graph cannot be captured on the default stream: capture inside `with "
                "torch.npu.stream(torch.npu.Stream()):`, or with torch.npu.graph, which does that"
            )
        self._pool = memory.pool(pool)
        self._pool.graphs += 1
        self._release = weakref.finalize(self, self._pool.release)
        self._recorder = Recorder(self._pool, state.stream())
        self._recorder.generators += self._generators
        state.set_recorder(self._recorder)
        recorder.push_below(self._recorder)
        self._refusing.enter_context(refusals.host_reads_refused(capture_error_mode))
        global _capturing
        _capturing = weakref.ref(self)

    def capture_end(self) -> None:
        """Compute again what is called, and keep what was captured."""
        done = self._recorder
        if done is None or state.recorder() is not done:
            raise CaptureError("capture_end() without capture_begin() of this NPUGraph before it")
        state.set_recorder(None)
        recorder.remove(done)
        self._refusing.close()
        done.borrowed.clear()
        if done.failure is not None:
            return  # it is on its way to the user
        if state.stream() != done.stream:
            raise CaptureError(
                f"capture_end() on stream {state.stream()}: the capture began on stream "
                f"{done.stream} and has to end there"
            )
        if done.group is not None:
            raise CaptureError("a graph_task_group_begin() has no graph_task_group_end()")
        loose = done.order.not_joined(done.stream)
        if loose:
            raise CaptureError(
                f"the capture ends on stream {done.stream}, which has not waited for what was "
                f"captured on stream {', '.join(map(str, loose))} (CANN's error 107025: a stream "
                "was not joined to the original stream). Let the first wait for the others before "
                "the capture ends (stream.wait_stream(...))"
            )
        self._steps = done.steps
        self._poisoned = done.poisoned()
        report.keep(done)

    def replay(self) -> None:
        """Compute every captured call, into the memory of the capture."""
        if state.recorder() is not None:
            raise state.failed(
                CaptureError("replay() during capture: a graph in a graph is not captured")
            )
        if self._steps is None:
            raise CaptureError(
                "replay() of an NPUGraph that holds no captured graph: nothing was captured, the "
                "capture failed, or reset() was called"
            )
        settle_replays("replay()")
        assert self._recorder is not None
        for tensor in self._recorder.moved():
            warnings.warn(
                f"a tensor {list(tensor.shape)} of {tensor.dtype} that the captured graph uses has "
                "other memory now (its .data was assigned, or it was set_()): the graph goes on "
                "with the old memory. copy_() new values into it, or capture again",
                RuntimeWarning,
                stacklevel=3,
            )
        for made in self._poisoned:
            memory.poison(made)
        self._going = self._run(self._steps)
        self._advance()

    def _run(self, steps: list[Step]) -> Iterator[None]:
        for index, step in enumerate(steps):
            if isinstance(step, Call):
                try:
                    recorder.compute(step)
                except Exception as error:
                    error.args = (f"{error} [in the replay of call {index}, {step}]",)
                    raise
            elif isinstance(step, Wait):
                while not step.event.is_recorded:
                    yield
            elif isinstance(step, Reset):
                step.event.is_recorded = False

    def _advance(self) -> None:
        """Go on until the end, or until an event that is still to be recorded."""
        if self._going is not None:
            going, self._going = self._going, None
            for _ in going:
                self._going = going
                _waiting[id(self)] = self
                return
        _waiting.pop(id(self), None)

    def reset(self) -> None:
        """Drop what was captured, and the graph's share of its pool."""
        if self._recorder is not None and state.recorder() is self._recorder:
            raise CaptureError("reset() of an NPUGraph that is being captured")
        self._steps = self._recorder = self._going = None
        self._poisoned = []
        _waiting.pop(id(self), None)
        if self._release is not None:
            self._release()

    def pool(self) -> tuple[int, int]:
        """The id of the pool that the graph's memory is of."""
        if self._pool is None:
            raise CaptureError("pool() of an NPUGraph before capture_begin(): it has no pool yet")
        return self._pool.handle

    def register_generator_state(self, generator: torch.Generator) -> None:
        """Let captured calls draw from a generator, which goes on with every replay."""
        self._generators.append(generator)

    def debug_dump(self, debug_path: str) -> None:
        """Write what was captured as JSON."""
        if self._steps is None:
            raise CaptureError("debug_dump() of an NPUGraph that holds no captured graph")
        calls = [
            {"name": step.name, "stream": step.stream, "text": str(step)}
            for step in self._steps
            if isinstance(step, Call)
        ]
        Path(debug_path).write_text(json.dumps(calls, indent=1), encoding="utf-8")

    def enable_debug_mode(self) -> None:
        """Nothing more is kept than always."""

    def super_kernel_optimize(self, *_: Any) -> None:
        """Changes how a device runs a graph, and no result of it."""
        if self._steps is None:
            raise CaptureError("super_kernel_optimize() of an NPUGraph without a captured graph")

    def begin_capture_to_if_node(self, scalar_npu_pred_tensor: torch.Tensor) -> None:
        """Not played."""
        del scalar_npu_pred_tensor
        raise NotImplementedError(
            "conditional nodes (torch.cond in a captured graph) are not played on the CPU"
        )

    end_capture_to_conditional_node = begin_capture_to_if_node

    @staticmethod
    def get_currently_capturing_graph() -> Any:
        """The graph that is being captured."""
        if state.recorder() is None:
            raise CaptureError("no NPU graph is being captured")
        return _capturing()


_capturing: Any = lambda: None  # noqa: E731
_waiting: dict[int, Graph] = {}  # replays that wait for an external event


def event_recorded() -> None:
    """Let replays that wait for an event look again."""
    for graph in list(_waiting.values()):
        graph._advance()


def settle_replays(what: str) -> None:
    """Refuse to go on while a replay waits: on a device the host would wait for ever."""
    if _waiting:
        graph = next(iter(_waiting.values()))
        graph._going = None
        _waiting.clear()
        raise CaptureError(
            f"{what}, while a replay waits for an ExternalEvent that nothing has recorded: on a "
            "device this waits for ever. After replay() update the graph's tasks and record the "
            "event of each (graph_task_update_begin(), graph_task_update_end(), event.record())"
        )


class Group:
    """A task group: the captured calls between its begin and its end, which may be updated."""

    def __init__(self, steps: list[Step], begin: int) -> None:
        self.steps = steps
        self.begin = begin
        self.end = len(steps)


def group_begin(stream: Any) -> None:
    """``graph_task_group_begin``."""
    taking = _taking_part(stream, "graph_task_group_begin()")
    if taking.group is not None:
        raise state.failed(
            CaptureError("graph_task_group_begin() inside a task group: groups do not nest")
        )
    taking.group = len(taking.steps)


def group_end(stream: Any) -> Group:
    """``graph_task_group_end``."""
    taking = _taking_part(stream, "graph_task_group_end()")
    if taking.group is None:
        raise state.failed(
            CaptureError("graph_task_group_end() without graph_task_group_begin() before it")
        )
    begin, taking.group = taking.group, None
    return Group(taking.steps, begin)


def _taking_part(stream: Any, what: str) -> Recorder:
    current: Recorder | None = state.recorder()
    if current is None or stream.stream_id not in current.streams:
        raise CaptureError(f"{what} on stream {stream.stream_id}, which is not being captured")
    return current


class _Updating(Recorder):
    """Takes down the calls that are to take the place of a group's."""

    def __init__(self, pool: memory.Pool, stream: int, group: Group) -> None:
        super().__init__(pool, stream)
        self.replaced = group

    def allocate(self, like: torch.Tensor, stream: int) -> torch.Tensor:
        del like, stream
        raise CaptureError(
            "a task update makes a new result: the graph's calls go on with the address that was "
            "captured, so nothing reads it. Use the operator's out= form, in the capture as well"
        )


_updating: list[_Updating] = []


def update_begin(stream: Any, handle: Group) -> None:
    """``graph_task_update_begin``."""
    if not isinstance(handle, Group):
        raise TypeError(
            f"handle must be what graph_task_group_end() returned, got {type(handle).__name__}"
        )
    if state.recorder() is not None:
        raise CaptureError("graph_task_update_begin() during capture")
    if _updating:
        raise CaptureError("graph_task_update_begin() inside a task update")
    mode = _Updating(memory.Pool((0, 0)), stream.stream_id, handle)
    mode.streams.add(state.stream())
    _updating.append(mode)
    recorder.push_below(mode)


def update_end(stream: Any) -> None:
    """``graph_task_update_end``."""
    del stream
    if not _updating:
        raise CaptureError("graph_task_update_end() without graph_task_update_begin() before it")
    mode = _updating.pop()
    recorder.remove(mode)
    if mode.failure is not None:
        return
    group = mode.replaced
    old = group.steps[group.begin : group.end]
    names = [[step.name for step in steps if isinstance(step, Call)] for steps in (old, mode.steps)]
    if names[0] != names[1]:
        raise CaptureError(
            f"a task update calls {', '.join(names[1]) or 'nothing'}, and the task group that it "
            f"updates holds {', '.join(names[0]) or 'nothing'}: only arguments can change"
        )
    for step in mode.steps:
        step.stream = old[0].stream
    group.steps[group.begin : group.end] = mode.steps
