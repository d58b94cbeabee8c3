"""The routing prologue through TorchAIR: no operator of it is left out, and the same numbers."""

import pytest
import torch
from ge_models import lower
from routing_cases import CASES, gate, loop
from versions import TORCH

import npu_lowering
from npu_lowering import offdevice

pytestmark = [
    pytest.mark.filterwarnings("ignore:npu_grouped_matmul_finalize_routing:UserWarning"),
    pytest.mark.skipif(
        (2, 1) < TORCH < (2, 6), reason="TorchAIR of this release does not lower searchsorted"
    ),
]


def routed(case):
    rest = {name: value for name, value in case.items() if not name.startswith("topk")}
    return lambda ids, weights: npu_lowering.routing(ids, weights, **rest)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["counts", "totals", "int32", "range_counts", "range_totals"])
def test_lowered(torchair, name, dynamic):
    case = CASES[name]
    args = case["topk_ids"], case["topk_weights"]
    result, graph = lower(torchair, routed(case), args, dynamic=dynamic)
    counted = {
        kind: len(graph.nodes_of(kind)) for kind in ("Sort", "SearchSorted", "IndexByTensor")
    }
    searches = 1 if case.get("group_list_type") == 0 else 2
    assert counted == {"Sort": 1, "SearchSorted": searches, "IndexByTensor": 2}
    assert not [node.type for node in graph.nodes if "Div" in node.type or "Mod" in node.type]
    for actual, expected in zip(result, loop(**case)):
        assert actual.dtype == expected.dtype
        assert torch.equal(actual, expected)


def test_with_the_operator_in_one_graph(torchair):
    case = gate()
    made = torch.Generator().manual_seed(1)
    hidden = torch.randint(-128, 128, (8, 32), generator=made, dtype=torch.int8)
    w = torch.randint(-128, 128, (4, 32, 64), generator=made, dtype=torch.int8)

    def layer(ids, weights, hidden, w):
        r = npu_lowering.routing(ids, weights, 8, expert_range=(2, 6))
        return npu_lowering.npu_grouped_matmul_finalize_routing(
            hidden[r.row_index],
            w,
            r.group_list,
            scale=torch.ones(4, 64),
            logit=r.logit,
            row_index=r.row_index,
            output_bs=8,
        )

    args = case["topk_ids"], case["topk_weights"], hidden, w
    result, graph = lower(torchair, layer, args)
    assert len(graph.nodes_of("GroupedMatmulFinalizeRouting")) == 1
    assert torch.equal(result, layer(*args))
    assert offdevice.is_installed()
