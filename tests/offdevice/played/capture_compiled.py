"""npugraph_ex and TorchAIR's capturing modes: upstream's Python as it is, on captures of ours."""

import copy
import warnings

import pytest
import torch
import torchair
from torch._dynamo.backends.common import aot_autograd

import npu_lowering
from npu_lowering.offdevice import last_captured
from npu_lowering.offdevice.capture.refusals import CaptureError

OVERWRITTEN = "ignore:Because acl graph fixes memory addresses:UserWarning"
FROZEN = "ignore:When enable frozen_parameter:UserWarning"
# What upstream says of itself at import and when it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Decoder(torch.nn.Module):
    """A layer with a counter and a cache that are written in place."""

    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
        self.register_buffer("cache", torch.zeros(4, 8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.steps.add_(1)
        hidden = self.down(torch.relu(self.up(x)))
        self.cache[:1] += hidden[:1]
        return torch.softmax(hidden, -1), hidden + self.steps


@pytest.fixture(autouse=True)
def _afresh():
    torch._dynamo.reset()
    yield
    torch.npu.set_stream(torch.npu.default_stream())


def both(compile_it, sizes, dtype=torch.float32):
    """Whether a compiled layer stays equal to the same layer run eagerly."""
    module = Decoder().to(dtype).npu()
    plain = copy.deepcopy(module)
    compiled = compile_it(module)
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(size, 8, dtype=dtype)
            given = x.clone()
            for ours, theirs in zip(compiled(x), plain(given)):
                assert torch.equal(ours, theirs)
            assert torch.equal(module.cache, plain.cache)
            assert module.steps == plain.steps
            assert torch.equal(x, given)


def npugraph_ex(options=None, dynamic=None):
    return lambda module: torch.compile(
        module, backend="npugraph_ex", options=options or {}, dynamic=dynamic, fullgraph=True
    )


OPTIONS = [
    {},
    {"clone_input": False},
    {"clone_output": True},
    {"force_eager": True},
    {"frozen_parameter": True},
    {"reuse_graph_pool_in_same_fx": False},
    {"inplace_pass": False, "input_inplace_pass": False},
    {"force_recapture": True},
    {"remove_cat_ops": True},
]


@pytest.mark.filterwarnings(OVERWRITTEN, FROZEN)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_equal_under_every_option(options, dynamic):
    both(npugraph_ex(options, dynamic), [4, 4, 7, 2, 7, 4, 2] * 2)


@pytest.mark.filterwarnings(OVERWRITTEN)
@pytest.mark.parametrize("mode", ["reduce-overhead", "npugraph_ex"])
def test_equal_under_torchairs_modes(mode):
    config = torchair.CompilerConfig()
    config.mode = mode
    backend = torchair.get_npu_backend(compiler_config=config)
    both(lambda module: torch.compile(module, backend=backend, fullgraph=True), [4, 4, 7, 2, 7])


def test_one_hundred_replays():
    both(npugraph_ex(), [4] * 100, torch.bfloat16)


@pytest.mark.filterwarnings(OVERWRITTEN)
def test_one_graph_of_dynamo_and_a_capture_for_each_size():
    counters = torch._dynamo.utils.counters
    counters.clear()
    both(npugraph_ex(dynamic=True), [4, 7, 3, 7, 4, 3, 9])
    assert counters["stats"]["unique_graphs"] == 1
    captured = [
        count for name, count in counters["npugraph_ex"].items() if name.startswith("captured")
    ]
    assert captured == [4]


def test_compile_fx_inside_aot_autograd():
    """As vllm-ascend calls it."""
    for options in ({}, {"clone_input": False}, {"force_eager": True}):
        torch._dynamo.reset()
        backend = aot_autograd(
            fw_compiler=lambda graph, inputs, options=options: torch.npu.npugraph_ex.compile_fx(
                graph, inputs, options
            )
        )
        layer = torch.nn.Linear(8, 8)

        def function(x, layer=layer):
            return torch.softmax(layer(x), -1)

        compiled = torch.compile(function, backend=backend, dynamic=False)
        with torch.no_grad():
            for _ in range(3):
                x = torch.randn(4, 8)
                assert torch.equal(compiled(x), function(x))


def test_results_are_overwritten_unless_they_are_cloned():
    def function(x):
        return x * 2

    kept = {}
    for clone in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(function, backend="npugraph_ex", options={"clone_output": clone})
        first = compiled(torch.ones(3))
        compiled(torch.full((3,), 5.0))
        kept[clone] = first.tolist()
    assert kept == {False: [10.0] * 3, True: [2.0] * 3}


def test_upstream_warns_where_several_sizes_share_memory():
    compiled = torch.compile(lambda x: x * 2, backend="npugraph_ex", dynamic=True)
    compiled(torch.ones(3))
    with pytest.warns(UserWarning, match="graph fixes memory addresses"):
        compiled(torch.ones(4))


@pytest.mark.filterwarnings(FROZEN)
def test_a_frozen_weight_that_is_replaced_is_found():
    """With frozen_parameter nothing looks whether weights are where they were."""
    layer = torch.nn.Linear(3, 2, bias=False)
    compiled = torch.compile(layer, backend="npugraph_ex", options={"frozen_parameter": True})
    x = torch.ones(1, 3)
    with torch.no_grad():
        compiled(x)
        old = layer.weight.data
        layer.weight.data = torch.zeros(2, 3)
        with pytest.warns(RuntimeWarning, match="other memory now"):
            assert torch.equal(compiled(x), x @ old.t())


def test_torchair_and_npugraph_ex_in_one_process():
    def function(x):
        return torch.softmax(x, -1) + 1

    x = torch.randn(4, 8)
    for backends in (["npu", "npugraph_ex"], ["npugraph_ex", "npu"]):
        torch._dynamo.reset()
        for backend in backends:
            if backend == "npu":
                backend = torchair.get_npu_backend()
            assert torch.equal(torch.compile(function, backend=backend)(x), function(x))


def test_routing_under_default_options():
    def function(ids, weights):
        return tuple(npu_lowering.routing(ids, weights, 8))

    compiled = torch.compile(function, backend="npugraph_ex", fullgraph=True)
    for _ in range(4):
        ids = torch.stack([torch.randperm(8)[:2] for _ in range(6)])
        weights = torch.rand(6, 2)
        for ours, theirs in zip(compiled(ids, weights), function(ids, weights)):
            assert torch.equal(ours, theirs)


SIDE = torch.npu.Stream()


def two_streams(x):
    y = x * 2
    forked = torch.npu.Event()
    forked.record()
    with torch.npu.stream(SIDE):
        forked.wait()
        z = y + 1
        joined = torch.npu.Event()
        joined.record()
    joined.wait()
    return y * z


def without_a_wait(x):
    y = x * 2
    with torch.npu.stream(SIDE):
        z = y + 1
    return y * z


def with_a_wait_too_few(x):
    y = x * 2
    forked = torch.npu.Event()
    forked.record()
    with torch.npu.stream(SIDE):
        forked.wait()
        z = y + 1
        joined = torch.npu.Event()
        joined.record()
    w = z * 3
    joined.wait()
    return y * z + w


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "npugraph_ex"])
def test_streams_inside_a_compiled_function(backend):
    compiled = torch.compile(two_streams, backend=backend, fullgraph=True)
    for _ in range(3):
        x = torch.randn(4, 8)
        assert torch.equal(compiled(x), two_streams(x))
    if backend == "npugraph_ex":
        assert len(last_captured().streams) == 2


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (without_a_wait, r"takes no part in the capture|no event orders the two"),
        (with_a_wait_too_few, r"reads memory that call 1, .*no event orders the two"),
    ],
)
def test_a_missing_wait_inside_a_compiled_function_is_named(function, sentence):
    compiled = torch.compile(function, backend="npugraph_ex", fullgraph=True)
    with pytest.raises(CaptureError, match=sentence):
        compiled(torch.randn(4, 8))


def test_scopes_of_npugraph_ex():
    scope = torch.npu.npugraph_ex.scope

    def function(x):
        with scope.limit_core_num(4, 8):
            return x * 2 + 1

    x = torch.randn(4)
    assert torch.equal(function(x), x * 2 + 1)
    compiled = torch.compile(function, backend="npugraph_ex", fullgraph=True)
    for _ in range(2):
        assert torch.equal(compiled(x), x * 2 + 1)


def of_two_streams(events):
    """A function whose second stream waits, and is waited for, by tagged events or not at all."""

    def function(x):
        y = x * 2
        if events:
            torchair.ops.npu_tagged_event_record(events[0])
        with torchair.scope.npu_stream_switch("side", 3):
            if events:
                torchair.ops.npu_tagged_event_wait(events[0])
            z = y + 1
            if events:
                torchair.ops.npu_tagged_event_record(events[1])
        if events:
            torchair.ops.npu_tagged_event_wait(events[1])
        with torchair.scope.super_kernel("fused", "stream-fusion=1"):
            return y * z

    return function


def reduced_overhead(function):
    config = torchair.CompilerConfig()
    config.mode = "reduce-overhead"
    backend = torchair.get_npu_backend(compiler_config=config)
    return torch.compile(function, backend=backend, fullgraph=True)


def test_scopes_of_torchair():
    events = [torchair.ops.npu_create_tagged_event(tag) for tag in ("forked", "joined")]
    compiled = reduced_overhead(of_two_streams(events))
    x = torch.randn(4)
    for _ in range(2):
        assert torch.equal(compiled(x), x * 2 * (x * 2 + 1))


def test_a_stream_of_torchairs_that_waits_for_nothing_is_named():
    with pytest.raises(CaptureError, match=r"aten.add.Tensor .* reads .*no event orders the two"):
        reduced_overhead(of_two_streams(()))(torch.randn(4))


def test_nothing_warns_by_itself():
    """The first compilation of a process included: upstream's warnings are upstream's to give."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        both(npugraph_ex(), [4, 4])
