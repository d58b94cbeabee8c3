"""One GE graph for every number of tokens: the fused node, a Slice, and Pads where needed."""

import pytest
import torch
from cases import call, fractal_nz
from compare import assert_same
from test_compile import Counting
from token_counts import COUNTS, tokens

import npu_lowering
from npu_lowering import offdevice

pytestmark = pytest.mark.filterwarnings(
    "ignore::npu_lowering.DeviceLimitWarning", "ignore::UserWarning"
)
FUSED = "GroupedMatmulFinalizeRouting"
FUNCTION = npu_lowering.npu_grouped_matmul_finalize_routing


@pytest.fixture
def compiled(torchair):
    """Compiles with TorchAIR's backend, and counts the graphs that Dynamo made."""

    def compiled(function):
        torch._dynamo.reset()
        counting = Counting("eager")
        counting._compile = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
        return torch.compile(function, backend=counting, dynamic=True, fullgraph=True), counting

    return compiled


def bounded(hidden, case):
    return FUNCTION(**case, output_bs=hidden.shape[0], max_output_bs=40)


def as_users_write_it(hidden, case):
    import torch_npu

    return torch_npu.npu_grouped_matmul_finalize_routing(**case, output_bs=hidden.shape[0])


@pytest.mark.parametrize("made", [call, fractal_nz])
@pytest.mark.parametrize("by", ["max_output_bs", "mark_dynamic"])
def test_one_graph_for_seventeen_sizes(compiled, op, made, by):
    function, counting = compiled(bounded if by == "max_output_bs" else as_users_write_it)
    for count in COUNTS:
        hidden, case = tokens(count, made)
        if by == "mark_dynamic":
            torch._dynamo.mark_dynamic(hidden, 0, min=2, max=40)
        assert_same(function(hidden, case), op(**case, output_bs=count))
    assert len(counting.graphs) == 1
    graph = offdevice.last_graph()
    (node,) = graph.nodes_of(FUSED)
    assert node.attrs["output_bs"] == 40
    assert [source.node for source in graph.outputs] == [graph.nodes_of("Slice")[-1].name]
    assert len(graph.nodes_of("Pad")) == 4


def test_no_padding_where_there_are_rows_enough(compiled, op):
    """m is never less than the bound: 4 * tokens with at least 10 of them."""
    function, _ = compiled(bounded)
    for count in (12, 20):
        hidden, case = tokens(count)
        for name in ("x", "pertoken_scale", "logit", "row_index"):
            torch._dynamo.mark_dynamic(case[name], 0, min=40, max=160)
        assert_same(function(hidden, case), op(**case, output_bs=count))
    assert offdevice.last_graph().nodes_of("Pad") == ()


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_one_graph_for_every_offset(compiled, op, weight):
    """Down to the sign of zero, which a negative weight would change."""

    def shifted(hidden, case):
        return bounded(hidden, {**case, "shared_input_offset": hidden.shape[0] - 1})

    function, _ = compiled(shifted)
    for count in COUNTS:
        hidden, case = tokens(count, shared_input_weight=weight)
        del case["shared_input_offset"]
        expected = op(**case, output_bs=count, shared_input_offset=count - 1)
        assert_same(function(hidden, case), expected)


def test_dim_gears_are_a_bound(compiled, torchair):
    case = call(counts=(3, 0, 2, 3), shared_rows=0)

    def layer(hidden, w, group_list, scale):
        count = hidden.shape[0]
        x = hidden.unsqueeze(1).expand(-1, 4, -1).reshape(-1, 64)
        return as_users_write_it(
            hidden,
            {
                "x": x,
                "w": w,
                "group_list": group_list,
                "scale": scale,
                "row_index": torch.arange(4 * count) // 4,
            },
        )

    function, _ = compiled(layer)
    for count in (8, 16, 24, 8, 16):
        hidden = torch.randint(-9, 9, (count, 64), dtype=torch.int8)
        torchair.inference.set_dim_gears(hidden, {0: [8, 16, 24]})
        rest = case["w"], case["group_list"], case["scale"]
        assert_same(function(hidden, *rest), layer(hidden, *rest))
    assert offdevice.last_graph().nodes_of(FUSED)[0].attrs["output_bs"] == 24


def test_without_a_bound_the_three_ways_are_named(compiled):
    function, _ = compiled(as_users_write_it)
    sentence = (
        r"output_bs must have an upper bound in a GE graph, got the symbolic s\d+: give one of "
        r"max_output_bs=BOUND .*mark_dynamic.*set_dim_gears"
    )
    with pytest.raises(Exception, match=sentence):
        function(*tokens(7))
