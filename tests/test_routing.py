"""The routing prologue against a plain loop: eager, compiled, exported, and its messages."""

import re

import pytest
import torch
from oracle import oracle
from routing_cases import CASES, gate, loop
from torch.fx.experimental.proxy_tensor import make_fx
from versions import TORCH

import npu_lowering

FIELDS = ("order", "row_index", "logit", "group_list")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def assert_routed(actual, expected):
    for name, one, other in zip(FIELDS, actual, expected):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name


@pytest.mark.parametrize("name", CASES)
def test_against_a_loop(name):
    case = CASES[name]
    result = npu_lowering.routing(**case)
    assert result._fields == FIELDS
    assert_routed(result, loop(**case))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("name", ["counts", "range_totals"])
def test_compiled(name, backend):
    case = CASES[name]
    compiled = torch.compile(npu_lowering.routing, backend=backend, fullgraph=True)
    assert_routed(compiled(**case), loop(**case))


def test_compiled_once_for_any_number_of_tokens():
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(npu_lowering.routing, backend=counting, fullgraph=True, dynamic=True)
    for tokens in (4, 5, 17):
        case = gate(tokens=tokens)
        assert_routed(compiled(**case), loop(**case))
    assert len(graphs) == 1


@pytest.mark.skipif(TORCH < (2, 6), reason="torch.export with run_decompositions needs torch 2.6")
def test_exported_with_dynamic_tokens():
    class Model(torch.nn.Module):
        def forward(self, topk_ids, topk_weights):
            return npu_lowering.routing(topk_ids, topk_weights, 8, expert_range=(2, 6))

    def pair(tokens):
        case = gate(tokens=tokens)
        return case["topk_ids"], case["topk_weights"]

    tokens = torch.export.Dim("tokens", min=2, max=4096)
    shapes = {"topk_ids": {0: tokens}, "topk_weights": {0: tokens}}
    exported = torch.export.export(Model(), pair(6), dynamic_shapes=shapes).module()
    for size in (2, 9):
        assert_routed(exported(*pair(size)), loop(*pair(size), 8, expert_range=(2, 6)))


@pytest.mark.parametrize("name", ["counts", "totals", "range_counts"])
def test_no_arithmetic_on_two_views_of_one_tensor(name):
    """A compiler that writes a result over an operand would write over the other one."""
    case = CASES[name]
    rest = {key: value for key, value in case.items() if not key.startswith("topk")}
    graph = make_fx(lambda *pair: npu_lowering.routing(*pair, **rest))(
        case["topk_ids"], case["topk_weights"]
    )
    subtractions = [node for node in graph.graph.nodes if node.target is torch.ops.aten.sub.Tensor]
    assert subtractions
    for node in subtractions:
        views = [each for each in node.args if isinstance(each, torch.fx.Node)]
        views = [each.args[0] for each in views if each.target is torch.ops.aten.slice.Tensor]
        assert len(views) == len(set(views))
    assert "div" not in graph.code


def test_the_default_device_changes_nothing():
    case = gate()
    with torch.device("meta"):
        result = npu_lowering.routing(**case)
    assert_routed(result, loop(**case))


def test_no_value_is_read_on_the_host():
    """Fake tensors have none to read."""
    case = gate()
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = {
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in case.items()
        }
        result = npu_lowering.routing(**fakes, expert_range=(2, 5))
    assert [tuple(tensor.shape) for tensor in result] == [(24,), (24,), (24,), (3,)]


@pytest.mark.parametrize("group_list_type", [0, 1])
def test_ranges_make_the_whole_operator(group_list_type):
    """What the local experts of four devices add up to is what all experts give."""
    case, k, n = gate(), 16, 32
    made = torch.Generator().manual_seed(3)

    def small(*shape):
        # Small integers: their sums are exact, in any order.
        return torch.randint(-4, 5, shape, generator=made, dtype=torch.int8)

    hidden, w = small(8, k), small(8, k, n)
    topk_weights = torch.randint(1, 4, (8, 3), generator=made).float()

    def result(function, expert_range, weight):
        r = npu_lowering.routing(
            case["topk_ids"],
            topk_weights,
            8,
            group_list_type=group_list_type,
            expert_range=expert_range,
        )
        return function(
            x=hidden[r.row_index],
            w=weight,
            group_list=r.group_list,
            scale=torch.ones(weight.shape[0], n),
            logit=r.logit,
            row_index=r.row_index,
            output_bs=8,
            group_list_type=group_list_type,
        )

    operator = npu_lowering.npu_grouped_matmul_finalize_routing
    parts = [result(operator, (a, a + 2), w[a : a + 2]) for a in range(0, 8, 2)]
    assert torch.equal(sum(parts), result(oracle, None, w))


def test_the_gradient_reaches_the_weights():
    case = gate()
    case["topk_weights"].requires_grad_()
    result = npu_lowering.routing(**case)
    result.logit.backward(torch.arange(24.0))
    expected = torch.empty(24).index_copy(0, result.order, torch.arange(24.0))
    assert torch.equal(case["topk_weights"].grad, expected.reshape(8, 3))


MESSAGES = {
    "topk_ids must be int64 or int32, got float32": {"topk_ids": torch.zeros(8, 3)},
    "topk_ids must be 2-D (tokens, top_k), got shape (24,)": {
        "topk_ids": torch.zeros(24, dtype=torch.int64)
    },
    "topk_ids must hold at least one token and one slot, got shape (0, 3)": {
        "topk_ids": torch.zeros(0, 3, dtype=torch.int64),
        "topk_weights": torch.zeros(0, 3),
    },
    "topk_ids must hold at least one token and one slot, got shape (8, 0)": {
        "topk_ids": torch.zeros(8, 0, dtype=torch.int64),
        "topk_weights": torch.zeros(8, 0),
    },
    "topk_weights must be float32, bfloat16 or float16, got int64": {
        "topk_weights": torch.zeros(8, 3, dtype=torch.int64)
    },
    "topk_weights must be of the shape of topk_ids, (8, 3), got (3, 8)": {
        "topk_weights": torch.zeros(3, 8)
    },
    "topk_weights must be on the device of topk_ids, cpu, got meta": {
        "topk_weights": torch.zeros(8, 3, device="meta")
    },
    "num_experts must be at least 1, got 0": {"num_experts": 0},
    "group_list_type must be 0 (totals) or 1 (counts), got 2": {"group_list_type": 2},
    "expert_range must be two ints, (first, last), got 3 of them": {"expert_range": (0, 1, 2)},
    "expert_range must be (first, last) with 0 <= first < last <= num_experts = 8, got (4, 4)": {
        "expert_range": (4, 4)
    },
    "expert_range must be (first, last) with 0 <= first < last <= num_experts = 8, got (-1, 4)": {
        "expert_range": (-1, 4)
    },
    "expert_range must be (first, last) with 0 <= first < last <= num_experts = 8, got (4, 9)": {
        "expert_range": (4, 9)
    },
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages(message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}$"):
        npu_lowering.routing(**{**gate(), **MESSAGES[message]})
