"""Streams, events and task groups: order kept, what is missing named, updates as vllm-ascend's."""

import pytest
import torch
import torch_npu

from npu_lowering.offdevice import last_captured
from npu_lowering.offdevice.capture import cores
from npu_lowering.offdevice.capture.order import Area, Order
from npu_lowering.offdevice.capture.refusals import CaptureError


def capture(function, **options):
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, **options):
        result = function()
    return graph, result


def test_a_stream_is_current_inside_its_context():
    first, second = torch.npu.Stream(), torch.npu.Stream(priority=-1)
    assert first != second
    assert second.priority == -1
    assert torch.npu.current_stream() == torch.npu.default_stream()
    with torch.npu.stream(first):
        assert torch.npu.current_stream() == first
        with torch.npu.stream(second):
            assert torch.npu.current_stream() == second
        with second:
            assert torch.npu.current_stream() == second
        assert torch.npu.current_stream() == first
    assert torch.npu.current_stream() == torch.npu.default_stream()
    torch.npu.set_stream(first)
    assert torch.npu.current_stream() == first
    torch.npu.set_stream(torch.npu.default_stream())
    same = torch.npu.Stream(stream_id=first.stream_id, device_index=0, device_type=20)
    assert same == first
    assert len({first, second, same}) == 2


def test_eager_work_keeps_the_order_of_the_program():
    side, event = torch.npu.Stream(), torch.npu.Event(enable_timing=True)
    x = torch.ones(3)
    event.record()
    with torch.npu.stream(side):
        event.wait()
        y = x * 2
        y.record_stream(torch.npu.default_stream())
    end = torch.npu.Event(enable_timing=True)
    end.record(side)
    torch.npu.current_stream().wait_stream(side)
    end.synchronize()
    side.synchronize()
    assert side.query()
    assert end.query()
    assert event.elapsed_time(end) >= 0
    assert torch.equal(y + 1, torch.full((3,), 3.0))


def test_events_that_have_no_time():
    event = torch.npu.Event()
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        event.elapsed_time(event)
    timed = torch.npu.Event(enable_timing=True)
    with pytest.raises(RuntimeError, match="must be recorded before"):
        timed.elapsed_time(timed)
    with pytest.raises(RuntimeError, match="must be recorded before"):
        timed.recorded_time()
    timed.record()
    assert timed.recorded_time() > 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.npu.ExternalStream(4096),
        lambda: torch.npu.Event().ipc_handle(),
        lambda: torch.npu.Event.from_ipc_handle(0, b""),
    ],
)
def test_what_other_processes_and_cann_would_give(call):
    with pytest.raises(NotImplementedError, match=r"CANN|other processes"):
        call()


def forked(side, work, joins=True):
    """Calls on a second stream between two of the capture's own."""
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        result = work()
    if joins:
        torch.npu.current_stream().wait_stream(side)
    return result


def test_a_capture_of_two_streams():
    side, x = torch.npu.Stream(), torch.ones(4)

    def function():
        y = x * 2
        z = forked(side, lambda: y + 1)
        return y * z

    graph, result = capture(function)
    graph.replay()
    assert torch.equal(result, torch.full((4,), 6.0))
    seen = last_captured()
    assert len(seen.streams) == 2
    assert [call.stream == side.stream_id for call in seen.calls] == [False, True, False]


# Each leaves out a wait that a device needs. What has to be said names both calls and streams.
def read_too_early(side, x):
    y = x * 2
    z = forked(side, lambda: y + 1, joins=False)
    z * 2
    torch.npu.current_stream().wait_stream(side)


def write_too_early(side, x):
    forked(side, lambda: x + 1, joins=False)
    x.add_(1)
    torch.npu.current_stream().wait_stream(side)


def two_writes(side, x):
    forked(side, lambda: x.mul_(2), joins=False)
    x.add_(1)
    torch.npu.current_stream().wait_stream(side)


def no_second_wait(side, x):
    y = torch.zeros(4)
    forked(side, lambda: y + 1)
    y.add_(x)
    with torch.npu.stream(side):
        y * 2
    torch.npu.current_stream().wait_stream(side)


def event_too_early(side, x):
    event = torch.npu.current_stream().record_event()
    y = x * 2
    side.wait_event(event)
    with torch.npu.stream(side):
        y + 1
    torch.npu.current_stream().wait_stream(side)


def memory_given_out_again(side, x):
    y = [x * 2]
    forked(side, lambda: y[0] + 1, joins=False)
    y.clear()  # without record_stream(side)
    x * 3
    torch.npu.current_stream().wait_stream(side)


HAZARDS = {
    read_too_early: "aten.mul.Tensor on stream .* reads .* call 1, aten.add.Tensor .* writes",
    write_too_early: "aten.add_.Tensor on stream .* writes .* call 0, aten.add.Tensor .* reads",
    two_writes: "aten.add_.Tensor on stream .* writes .* call 0, aten.mul_.Tensor .* writes",
    no_second_wait: "aten.mul.Tensor on stream .* reads .* aten.add_.Tensor .* writes",
    event_too_early: "aten.add.Tensor on stream .* reads .* call 0, aten.mul.Tensor .* writes",
    memory_given_out_again: "call 2, aten.mul.Tensor on stream .* writes .* aten.add.Tensor",
}


@pytest.mark.parametrize("hazard", HAZARDS)
def test_a_missing_wait_is_named(hazard):
    x = torch.ones(4)
    with pytest.raises(CaptureError, match=HAZARDS[hazard]) as caught:
        capture(lambda: hazard(torch.npu.Stream(), x))
    assert "no event orders the two" in str(caught.value)


def record_stream(side, x):
    y = [x * 2]
    forked(side, lambda: y[0] + 1, joins=False)
    y.pop().record_stream(side)
    x * 3
    torch.npu.current_stream().wait_stream(side)


def record_stream_by_the_operator(side, x):
    y = [x * 2]
    forked(side, lambda: y[0] + 1, joins=False)
    torch.ops.aten.record_stream(y.pop(), side)
    x * 3
    torch.npu.current_stream().wait_stream(side)


def two_reads(side, x):
    forked(side, lambda: x + 1, joins=False)
    x * 2
    torch.npu.current_stream().wait_stream(side)


def columns(side, x):
    y = torch.zeros(x.shape[0], 8)
    forked(side, lambda: y[:, :4].fill_(1), joins=False)
    y[:, 4:].fill_(2)
    torch.npu.current_stream().wait_stream(side)


def by_way_of_a_third(side, x):
    y, third = x * 2, torch.npu.Stream()
    forked(side, lambda: y.add_(1), joins=False)
    third.wait_stream(side)
    with torch.npu.stream(third):
        z = y + 1
    torch.npu.current_stream().wait_stream(third)
    y.add_(z)


@pytest.mark.parametrize(
    "ordered", [record_stream, record_stream_by_the_operator, two_reads, columns, by_way_of_a_third]
)
def test_what_is_ordered_or_apart_is_let_be(ordered):
    graph, _ = capture(lambda: ordered(torch.npu.Stream(), torch.ones(4)))
    graph.replay()


def test_a_stream_that_is_not_joined_is_refused():
    x = torch.ones(4)
    with pytest.raises(CaptureError, match=r"not waited for .* 107025"):
        capture(lambda: forked(torch.npu.Stream(), lambda: x + 1, joins=False))


def test_a_stream_that_takes_no_part_is_named():
    x, side = torch.ones(4), torch.npu.Stream()

    def function():
        with torch.npu.stream(side):
            x + 1

    with pytest.raises(CaptureError, match=f"stream {side.stream_id}, which takes no part"):
        capture(function)


def test_an_event_from_outside_cannot_be_waited_for():
    event = torch.npu.current_stream().record_event()
    with pytest.raises(CaptureError, match="recorded outside the capture"):
        capture(lambda: torch.npu.current_stream().wait_event(event))


@pytest.mark.parametrize("call", ["synchronize", "query"])
def test_an_event_of_the_capture_is_not_waited_for_by_the_host(call):
    with pytest.raises(CaptureError, match=f"Event.{call}"):
        capture(lambda: getattr(torch.npu.current_stream().record_event(), call)())


def test_areas_meet_where_bytes_do():
    whole = torch.zeros(6, 8)

    def meet(one, other):
        assert Area.of(one).meets(Area.of(other)) == Area.of(other).meets(Area.of(one))
        return Area.of(one).meets(Area.of(other))

    assert meet(whole[1], whole[1, 3:5])
    assert not meet(whole[1], whole[2])
    assert not meet(whole[:, ::2], whole[:, 1::2])
    assert meet(whole[:, ::2], whole.t()[4:5])
    assert meet(whole.view(torch.int8)[0, 3:4], whole[0, 0])
    assert not meet(whole.view(torch.int8)[0, 3:4], whole[0, 1])
    assert not meet(whole[:0], whole)
    assert meet(whole[:1].expand(4, 8), whole[0])


def test_order_of_calls():
    order, area = Order(), Area(0, 4, (2,), (1,))
    assert order.add("a", 1, [], [area]) is None
    done = order.record(1)
    assert order.not_joined(2) == [1]
    order.wait(2, done)
    assert order.not_joined(2) == []
    assert order.add("b", 2, [area], []) is None
    assert order.add("c", 1, [area], []) is None
    conflict = order.add("d", 1, [], [area])
    assert (conflict.earlier.call, conflict.later.call) == ("b", "d")


# Task groups. An operator with an out= form whose scale the host gives stands for attention, whose
# lengths it gives.
library = torch.library.Library("capture_tests", "DEF")
library.define("scale(Tensor x, SymInt[] lengths) -> Tensor")
library.define("scale.out(Tensor x, SymInt[] lengths, *, Tensor(a!) out) -> Tensor(a!)")
library.impl("scale", lambda x, lengths: x * lengths[0], "CompositeExplicitAutograd")
library.impl("scale", lambda x, lengths: torch.empty_like(x), "Meta")


@torch.library.impl(library, "scale.out", "CompositeExplicitAutograd")
def _scale(x, lengths, *, out):
    return out.copy_(x * lengths[0])


scale = torch.ops.capture_tests.scale


def attention(x, out, tasks, lengths):
    """What vllm-ascend does around attention while it captures."""
    stream, event = torch.npu.current_stream(), torch.npu.ExternalEvent()
    event.wait(stream)
    event.reset(stream)
    torch.npu.graph_task_group_begin(stream)
    scale.out(x, lengths, out=out)
    tasks.append((torch.npu.graph_task_group_end(stream), event, x, out))


def update(stream, tasks, lengths):
    """What it does after each replay."""
    with torch.npu.stream(stream):
        for handle, event, x, out in tasks:
            torch.npu.graph_task_update_begin(stream, handle)
            scale.out(x, lengths, out=out)
            torch.npu.graph_task_update_end(stream)
            event.record(stream)


def test_tasks_are_updated_before_each_replay_goes_on():
    x, tasks, stream = torch.ones(3), [], torch.npu.Stream()

    def function():
        y = x
        for _ in range(2):
            out = torch.empty(3)
            attention(y + 1, out, tasks, [2])
            y = out
        return y * 10

    graph, y = capture(function)
    for length in (3, 5, 2):
        graph.replay()
        update(stream, tasks, [length])
        torch.npu.synchronize()
        assert torch.equal(y, torch.full((3,), 10.0 * ((2 * length) + 1) * length))


def test_a_replay_that_is_never_let_go_on_is_named():
    x, tasks = torch.ones(3), []
    graph, _ = capture(lambda: attention(x, torch.empty(3), tasks, [2]))
    graph.replay()
    with pytest.raises(CaptureError, match="ExternalEvent that nothing has recorded"):
        torch.npu.synchronize()
    graph.replay()
    with pytest.raises(CaptureError, match="ExternalEvent that nothing has recorded"):
        graph.replay()


def test_updates_that_do_not_fit():
    x, out, tasks, stream = torch.ones(3), torch.empty(3), [], torch.npu.Stream()
    capture(lambda: attention(x, out, tasks, [2]))
    handle = tasks[0][0]

    def updating(function):
        torch.npu.graph_task_update_begin(stream, handle)
        try:
            function()
        finally:
            torch.npu.graph_task_update_end(stream)

    with pytest.raises(CaptureError, match=r"makes a new result.*out= form"):
        updating(lambda: scale(x, [2]))
    with pytest.raises(CaptureError, match=r"calls aten.mul.out, and .* holds .*scale.out"):
        updating(lambda: torch.mul(x, 2, out=out))
    with pytest.raises(CaptureError, match=r"calls nothing"):
        updating(lambda: None)
    torch.npu.graph_task_update_begin(stream, handle)
    with pytest.raises(CaptureError, match="inside a task update"):
        torch.npu.graph_task_update_begin(stream, handle)
    scale.out(x, [3], out=out)
    torch.npu.graph_task_update_end(stream)
    with pytest.raises(TypeError, match=r"handle must be what graph_task_group_end\(\) returned"):
        torch.npu.graph_task_update_begin(stream, None)
    for call in (
        lambda: torch.npu.graph_task_group_begin(stream),
        lambda: torch.npu.graph_task_group_end(stream),
        lambda: torch.npu.graph_task_update_end(stream),
    ):
        with pytest.raises(CaptureError, match=r"not being captured|without graph_task_update_beg"):
            call()


def test_groups_that_are_not_closed_or_nest():
    def begin():
        torch.npu.graph_task_group_begin(torch.npu.current_stream())

    with pytest.raises(CaptureError, match=r"no graph_task_group_end\(\)"):
        capture(begin)
    with pytest.raises(CaptureError, match="groups do not nest"):
        capture(lambda: (begin(), begin()))
    with pytest.raises(CaptureError, match="without graph_task_group_begin"):
        capture(lambda: torch.npu.graph_task_group_end(torch.npu.current_stream()))


@torch_npu.npu.register_npu_graph_handler("scale.out")
class _Scaling(torch_npu.npu.NpuGraphOpHandler):
    UPDATE_SPECS = {"scale.out": [("arg", 1, "lengths")]}  # noqa: RUF012 -- upstream's


def test_upstreams_own_dispatch_of_updates():
    x, out = torch.ones(3), torch.empty(3)
    graph, y = capture(
        lambda: scale.out(x, [2], out=out) + 1,
        auto_dispatch_capture=True,
    )
    for length in (4, 7):
        graph.replay()
        graph.update(cpu_update_input=[{"lengths": [length]}])
        torch.npu.synchronize()
        assert torch.equal(y, torch.full((3,), length + 1.0))


def test_cores_of_streams_and_device():
    stream = torch.npu.Stream()
    assert torch.npu.get_stream_limit(stream) == torch.npu.get_device_limit(0)
    torch.npu.set_stream_limit(stream, 8, 16)
    assert torch.npu.get_stream_limit(stream) == {"cube_core_num": 8, "vector_core_num": 16}
    with pytest.raises(ValueError, match="cube_num must be from 1 to"):
        torch.npu.set_stream_limit(stream, 800)
    torch.npu.reset_stream_limit(stream)
    assert torch.npu.get_stream_limit(stream) == torch.npu.get_device_limit(0)
    with pytest.raises(ValueError, match="vector_num must be from 1 to 40"):
        cores.set_device_limit(0, 1, 100)
    cores.set_device_limit(0, 0, 10)
    assert torch.npu.get_stream_limit(torch.npu.Stream())["cube_core_num"] == 10
    cores.reset_device_limit(0)
    assert torch.npu.get_device_limit(0)["cube_core_num"] == 20
