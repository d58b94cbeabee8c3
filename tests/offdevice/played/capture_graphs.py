"""torch.npu.NPUGraph: what is captured, what is refused, what goes wrong as on a device."""

import copy
import gc
import json
import threading

import numpy
import pytest
import torch
import torch_npu

from npu_lowering.offdevice import last_captured
from npu_lowering.offdevice.capture import memory
from npu_lowering.offdevice.capture.calls import FreedMemoryError
from npu_lowering.offdevice.capture.refusals import CaptureError

NOTHING_CAPTURED = "holds no captured graph"


def capture(function, pool=None, **options):
    """A graph of what a function calls, and what it returned."""
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, pool=pool, **options):
        result = function()
    return graph, result


def test_nothing_is_computed_before_the_replay_and_everything_by_it():
    x, w = torch.randn(4, 8).npu(), torch.randn(8, 8).npu()
    calls = []

    def function():
        calls.append(1)
        return torch.softmax(x @ w, -1) + 1

    graph, y = capture(function)
    assert y.isnan().all()
    for _ in range(100):
        x.copy_(torch.randn(4, 8))
        graph.replay()
        assert torch.equal(y, torch.softmax(x @ w, -1) + 1)
    assert len(calls) == 1


def test_what_is_written_in_place_is_changed_by_replays_alone():
    cache, count = torch.zeros(3, 4), torch.zeros((), dtype=torch.int64)
    rows = torch.tensor([0, 2])

    def step():
        count.add_(1)
        cache[1] = 5
        cache.index_add_(0, rows, torch.ones(2, 4))
        return cache.sum()

    graph, total = capture(step)
    assert not cache.any()
    assert not count
    for number in (1, 2, 3):
        graph.replay()
        assert count == number
        assert total == 4 * (5 + 2 * number)


def test_views_share_the_memory_of_the_capture():
    x = torch.randn(4, 6)
    graph, (whole, part) = capture(lambda: (lambda y: (y, y[1:, ::2].t()))(x * 2))
    assert part.data_ptr() == whole[1:].data_ptr()
    graph.replay()
    assert torch.equal(part, (x * 2)[1:, ::2].t())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.to(torch.complex64).conj() * 2,
        lambda x: torch.cat([x, x[:1]], out=torch.empty(5, 6)),
        lambda x: torch.topk(x, 2)[1],
        lambda x: torch._foreach_mul([x, x + 1], 3.0)[1],
        lambda x: torch.zeros_like(x).scatter_(1, torch.argsort(x, 1)[:, :1], 2.5),
        lambda x: x.bfloat16() @ x.bfloat16().t(),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: torch.tensor(3.0) * x + torch.tensor([1.0] * 6),
        lambda x: x.to(torch.int8).sum(dtype=torch.int32),
        lambda x: torch.nn.functional.layer_norm(x, (6,)),
        lambda x: torch.empty(0, 6) + x[:0],
        lambda x: torch.split(x, 3, 1)[1].contiguous(),
        lambda x: torch_npu.npu_swiglu(x),
    ],
)
def test_operators_of_every_form(function):
    x = torch.randn(4, 6)
    graph, y = capture(lambda: function(x))
    for _ in range(2):
        x.copy_(torch.randn(4, 6))
        graph.replay()
        assert torch.equal(y, function(x))
        assert y.stride() == function(x).stride()


# What a device refuses, and what the sentence has to say.
REFUSED = {
    "item": (lambda x: x.sum().item(), "item"),
    "int": (lambda x: int(x.sum()), "int"),
    "if": (lambda x: 1 if x.sum() else 2, "bool"),
    "equal": (lambda x: torch.equal(x, x + 1), "torch.equal"),
    "allclose": (lambda x: torch.allclose(x, x + 1), "bool|allclose"),
    "cpu": (lambda x: x.cpu(), r"Tensor.cpu\(\)"),
    "to cpu": (lambda x: x.to("cpu"), 'to."cpu"'),
    "to cpu by keyword": (lambda x: x.to(device=torch.device("cpu")), 'to."cpu"'),
    "tolist": (lambda x: x.tolist(), "tolist"),
    "numpy": (lambda x: x.numpy(), "numpy"),
    "numpy.asarray": (lambda x: numpy.asarray(x), "numpy"),
    "print": (lambda x: str(x), "tolist|item"),
    "nonzero": (lambda x: x.nonzero(), "nonzero.*shape of its result depends on values"),
    "mask": (lambda x: x[x > 0], "shape of its result depends on values"),
    "masked_select": (lambda x: x.masked_select(x > 0), "masked_select"),
    "unique": (lambda x: torch.unique(x), "shape of its result depends"),
    "bincount": (lambda x: torch.bincount(x[0].long().abs()), "bincount"),
    "repeat_interleave": (
        lambda x: torch.repeat_interleave(x, torch.ones(4, dtype=torch.int64), 0),
        "repeat_interleave",
    ),
    "synchronize": (
        lambda x: torch.npu.synchronize(),
        r"torch.npu.synchronize\(\).* during capture",
    ),
    "stream": (lambda x: torch.npu.current_stream().synchronize(), "Stream.synchronize"),
    "query": (lambda x: torch.npu.current_stream().query(), "Stream.query"),
    "event": (lambda x: torch.npu.current_stream().record_event().synchronize(), "Event.sync"),
    "from the host": (lambda x: torch.tensor([1, 2], device="npu"), r"torch.tensor\(.*aclrtMem"),
    "generator": (lambda x: torch.rand(3, generator=torch.Generator()), "register_generator"),
    "more memory": (lambda x: torch.empty(2).resize_(100), "resize_"),
    "nested": (lambda x: capture(lambda: x + 1), "entering torch.npu.graph"),
    "a constant that is written": (lambda x: torch.tensor(0.0).add_(x.sum()).item(), "item"),
    "a second begin": (lambda x: torch.npu.NPUGraph().capture_begin(), "do not nest"),
    "replay": (lambda x: REPLAYED.replay(), "graph in a graph"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_device_refuses(name):
    global REPLAYED
    x = torch.randn(4, 6)
    REPLAYED, _ = capture(lambda: x + 1)
    function, sentence = REFUSED[name]
    graph = torch.npu.NPUGraph()
    with pytest.raises((CaptureError, NotImplementedError), match=sentence), torch.npu.graph(graph):
        function(x)
    with pytest.raises(CaptureError, match=NOTHING_CAPTURED):
        graph.replay()
    # And the process goes on as before.
    assert x.tolist() == x.numpy().tolist() == x.cpu().tolist()
    again, y = capture(lambda: x * 2)
    again.replay()
    assert torch.equal(y, x * 2)


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_other_threads_are_refused_in_global_mode(mode):
    x = torch.ones(3)
    seen = []

    def read():
        try:
            seen.append(x.tolist())
        except CaptureError:
            seen.append("refused")
        seen.append(x + 1)  # is computed: only one thread captures

    def function():
        thread = threading.Thread(target=read)
        thread.start()
        thread.join()

    capture(function, capture_error_mode=mode)
    assert seen[0] == ("refused" if mode == "global" else [1.0, 1.0, 1.0])
    assert torch.equal(seen[1], torch.full((3,), 2.0))


def test_copies_to_the_host_that_are_not_waited_for_are_captured():
    x, host = torch.ones(3), torch.zeros(3)
    graph, _ = capture(lambda: (host.copy_(x, non_blocking=True), x.to("cpu", non_blocking=True)))
    assert not host.any()
    graph.replay()
    assert host.all()


def test_random_numbers_go_on_with_every_replay():
    graph, y = capture(lambda: torch.rand(4))
    torch.manual_seed(3)
    graph.replay()
    first = y.clone()
    graph.replay()
    assert not torch.equal(first, y)
    torch.manual_seed(3)
    assert torch.equal(first, torch.rand(4))


def test_random_numbers_of_a_generator_that_the_graph_knows():
    generator = torch.Generator()
    graph = torch.npu.NPUGraph()
    graph.register_generator_state(generator)
    with torch.npu.graph(graph):
        y = torch.rand(4, generator=generator)
    generator.manual_seed(5)
    graph.replay()
    assert torch.equal(y, torch.rand(4, generator=generator.manual_seed(5)))


def test_results_are_overwritten_by_the_next_replay():
    x = torch.ones(3)
    graph, y = capture(lambda: x * 2)
    graph.replay()
    kept, copied = y, y.clone()
    x.fill_(5)
    graph.replay()
    assert torch.equal(kept, torch.full((3,), 10.0))
    assert torch.equal(copied, torch.full((3,), 2.0))


def test_an_input_that_is_freed_is_named():
    inputs = [torch.ones(3, 5)]
    graph, _ = capture(lambda: inputs[0] * 2)
    inputs.clear()
    gc.collect()
    with pytest.raises(FreedMemoryError, match=r"float32\[3, 5\] at 0x.* was freed.*aten.mul"):
        graph.replay()


def test_a_parameter_that_is_replaced_is_named():
    layer = torch.nn.Linear(3, 2, bias=False)
    x = torch.ones(1, 3)
    with torch.no_grad():
        graph, _ = capture(lambda: layer(x))
    layer.weight = torch.nn.Parameter(torch.zeros(2, 3))
    gc.collect()
    with pytest.raises(FreedMemoryError, match="was freed since the capture"):
        graph.replay()


def test_weights_that_are_bound_anew_stay_the_old_ones_and_are_named():
    layer = torch.nn.Linear(3, 2, bias=False)
    x = torch.ones(1, 3)
    with torch.no_grad():
        graph, y = capture(lambda: layer(x))
    old = layer.weight.data
    layer.weight.data = torch.zeros(2, 3)
    with pytest.warns(RuntimeWarning, match=r"\[2, 3\] of torch.float32 .* other memory now"):
        graph.replay()
    assert torch.equal(y, x @ old.t())


def test_weights_that_are_copied_into_are_seen():
    layer = torch.nn.Linear(3, 2, bias=False)
    x = torch.ones(1, 3)
    with torch.no_grad():
        graph, y = capture(lambda: layer(x))
        layer.weight.data.copy_(torch.full((2, 3), 2.0))
    graph.replay()
    assert torch.equal(y, torch.full((1, 2), 6.0))


def test_graphs_of_one_pool_use_freed_memory_again():
    x = torch.ones(1000)
    pool = torch.npu.graph_pool_handle()
    first, y = capture(lambda: x * 2, pool)
    address = y.data_ptr()
    del y
    second, z = capture(lambda: x * 3, pool)
    assert z.data_ptr() == address
    second.replay()
    first.replay()
    assert torch.equal(z, x * 2)  # overwritten, as on a device
    assert first.pool() == second.pool() == pool


def test_a_weak_reference_keeps_no_memory():
    x, pool = torch.ones(1000), torch.npu.graph_pool_handle()
    first, y = capture(lambda: x * 2, pool)
    weak = torch_npu._C._weak_ref_tensor(y)
    del y
    first.replay()
    assert torch.equal(weak, x * 2)
    second, z = capture(lambda: x * 3, pool)
    assert z.data_ptr() == weak.data_ptr()
    second.replay()
    assert torch.equal(weak, x * 3)


def test_numbers_of_the_host_are_part_of_the_graph():
    x, scale = torch.zeros(3), torch.tensor(2.0)

    def function():
        x[1] = 5.0
        x[torch.tensor(2)] = 7.0
        return x * scale * torch.from_numpy(numpy.array(10, dtype=numpy.float32))

    graph, y = capture(function)
    for number in (2.0, 3.0):
        scale.fill_(number)
        graph.replay()
        assert y.tolist() == [0.0, 50 * number, 70 * number]


def test_graphs_of_one_pool_leave_what_is_in_use_alone():
    x = torch.ones(1000)
    pool = torch.npu.graph_pool_handle()
    first, y = capture(lambda: x * 2, pool)
    second, z = capture(lambda: x * 3, pool)
    second.replay()
    first.replay()
    assert torch.equal(y, x * 2)
    assert torch.equal(z, x * 3)


def test_memory_that_a_replay_writes_first_holds_nothing_from_before():
    """A value that only an earlier replay can have left is poison."""
    x = torch.ones(4)
    graph, (y, w) = capture(lambda: (x * 2, x * 3))
    graph.replay()
    graph._steps.pop()  # as if the second were not captured
    graph.replay()
    assert torch.equal(y, x * 2)
    assert w.isnan().all()


def test_static_inputs_from_within_a_capture_are_kept():
    """Compilers make their inputs there, and fill them before each replay."""
    graph, (buffer, y) = capture(lambda: (lambda b: (b, b * 2))(torch.empty(4)))
    buffer.copy_(torch.arange(4.0))
    graph.replay()
    assert torch.equal(y, torch.arange(4.0) * 2)
    accumulate, buffer = capture(lambda: torch.empty(4).add_(1))
    buffer.fill_(5)
    accumulate.replay()
    accumulate.replay()
    assert torch.equal(buffer, torch.full((4,), 7.0))


def test_memory_of_a_pool_that_is_gone_is_named():
    x = torch.ones(4)
    first, y = capture(lambda: x * 2)
    second, _ = capture(lambda: y + 1)
    first.replay()
    second.replay()
    first.reset()
    with pytest.raises(FreedMemoryError, match="pool that is gone"):
        second.replay()


@pytest.mark.parametrize(
    ("dtype", "is_poison"),
    [
        *((dtype, torch.isnan) for dtype in (torch.float16, torch.bfloat16, torch.float64)),
        (torch.float8_e4m3fn, lambda t: t.float().isnan()),
        (torch.complex64, torch.isnan),
        (torch.int8, lambda t: t == -128),
        (torch.int64, lambda t: t == torch.iinfo(torch.int64).min),
        (torch.uint8, lambda t: t == 255),
        (torch.bool, lambda t: t),
    ],
)
def test_memory_is_poisoned(dtype, is_poison):
    _, y = capture(lambda: torch.zeros(5, dtype=dtype))
    assert is_poison(y).all()


def test_a_graph_captures_once_and_is_reset():
    x = torch.ones(2)
    graph, y = capture(lambda: x + 1)
    # torch.npu.graph leaves its own stream behind here.
    with torch.npu.stream(torch.npu.Stream()), pytest.raises(CaptureError, match="graph already"):
        torch.npu.graph(graph).__enter__()
    assert not torch.npu.is_current_stream_capturing()
    graph.reset()
    with pytest.raises(CaptureError, match=NOTHING_CAPTURED):
        graph.replay()
    with torch.npu.graph(graph):
        y = x + 2
    graph.replay()
    assert torch.equal(y, x + 2)


def test_calls_out_of_order():
    graph = torch.npu.NPUGraph()
    for call, sentence in [
        (graph.replay, NOTHING_CAPTURED),
        (graph.capture_end, "without capture_begin"),
        (graph.pool, "no pool yet"),
        (lambda: graph.debug_dump("x"), NOTHING_CAPTURED),
        (graph.super_kernel_optimize, "without a captured graph"),
        (graph.get_currently_capturing_graph, "no NPU graph is being captured"),
        (graph.capture_begin, "default stream"),
    ]:
        with pytest.raises(CaptureError, match=sentence):
            call()
    with pytest.raises(NotImplementedError, match="conditional nodes"):
        graph.begin_capture_to_if_node(torch.ones(()))
    with torch.npu.stream(torch.npu.Stream()):
        with pytest.raises(ValueError, match="capture_error_mode must be one of"):
            graph.capture_begin(capture_error_mode="strict")
        with pytest.raises(TypeError, match="pool must be what"):
            graph.capture_begin(pool=3)
        graph.capture_begin()
        assert torch.npu.NPUGraph.get_currently_capturing_graph() is graph
        assert torch.npu.is_current_stream_capturing()
        with pytest.raises(CaptureError, match="being captured"):
            graph.reset()
        with torch.npu.stream(torch.npu.Stream()), pytest.raises(CaptureError, match="began on"):
            graph.capture_end()


def test_an_error_of_the_users_ends_the_capture():
    x = torch.ones(2)
    graph = torch.npu.NPUGraph()
    with pytest.raises(KeyError), torch.npu.graph(graph):
        raise KeyError("the user's")
    assert torch.equal(x + 1, torch.full((2,), 2.0))
    assert torch.npu.current_stream() == torch.npu.default_stream()


def test_an_error_of_a_replay_names_the_call():
    x, rows = torch.ones(3), torch.zeros(1, dtype=torch.int64)
    graph, _ = capture(lambda: x.index_select(0, rows))
    rows.fill_(7)
    with pytest.raises(IndexError, match=r"in the replay of call 0, aten.index_select"):
        graph.replay()


@pytest.mark.parametrize("pool", [None, (0, 12345)])
def test_callables_with_backward(pool):
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    plain = copy.deepcopy(module)
    sample = torch.randn(4, 8, requires_grad=True)
    graphed = torch.npu.make_graphed_callables(module, (sample,), pool=pool)
    for _ in range(3):
        x = torch.randn(4, 8, requires_grad=True)
        other = x.detach().clone().requires_grad_()
        module.zero_grad()
        plain.zero_grad()
        graphed(x).pow(2).sum().backward()
        plain(other).pow(2).sum().backward()
        assert torch.equal(x.grad, other.grad)
        for ours, theirs in zip(module.parameters(), plain.parameters()):
            assert torch.equal(ours.grad, theirs.grad)


def test_a_pattern_of_runners():
    """One graph a batch size, from the largest down, in one pool, with padded inputs."""
    layers = [torch.nn.Linear(8, 8) for _ in range(3)]
    static = torch.zeros(16, 8)
    pool = torch.npu.graph_pool_handle()

    def forward(x):
        for layer in layers:
            x = torch.relu(layer(x)) + x
        return x

    graphs, reserved = {}, []
    with torch.no_grad():
        for size in (16, 8, 4, 2, 1):
            forward(static[:size])
            graph, y = capture(lambda size=size: forward(static[:size]), pool)
            graphs[size] = graph, torch_npu._C._weak_ref_tensor(y)
            del y
            reserved.append(memory.pool(pool).reserved)
        for tokens in [3, 16, 1, 7, 2, 11] * 5:
            size = min(size for size in graphs if size >= tokens)
            x = torch.randn(tokens, 8)
            static[:tokens].copy_(x)
            graph, y = graphs[size]
            graph.replay()
            # Rows of another batch size may be summed in another order.
            assert torch.equal(y[:tokens], forward(static[:size])[:tokens])
    assert len(set(reserved)) == 1  # every size lives where the largest did


def test_what_was_captured_can_be_looked_at(tmp_path):
    x = torch.ones(2, 3)
    graph, y = capture(lambda: (x * 2).add_(x))
    seen = last_captured()
    assert [call.operator for call in seen.calls] == ["aten.mul.Tensor", "aten.add_.Tensor"]
    assert seen.calls[1].outputs == (f"float32[2, 3] at {y.data_ptr():#x}",)
    assert seen.calls[0].inputs == (f"float32[2, 3] at {x.data_ptr():#x}",)
    assert seen.pool == graph.pool()
    assert seen.made == y.nbytes
    assert f"aten.mul.Tensor(float32[2, 3] at {x.data_ptr():#x}, 2)" in str(seen)
    graph.debug_dump(str(tmp_path / "graph.json"))
    dumped = json.loads((tmp_path / "graph.json").read_text())
    assert [call["name"] for call in dumped] == [call.operator for call in seen.calls]


def test_memory_goes_when_graph_and_tensors_are_gone():
    x = torch.ones(2)
    graph, y = capture(lambda: x * 2)
    address = y.data_ptr()
    del graph
    gc.collect()
    assert torch.equal(y.isnan(), torch.ones(2, dtype=torch.bool))  # still there
    del y
    gc.collect()
    assert memory.find(address) is None


def test_the_order_of_modes_is_the_users():
    """A mode of the user's sees calls before the capture does, and graph's own come first."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Doubling(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {})) * (2 if "add" in str(func) else 1)

    x = torch.ones(2)
    with Doubling():
        graph, y = capture(lambda: x + 1)
    graph.replay()
    assert torch.equal(y, torch.full((2,), 4.0))
