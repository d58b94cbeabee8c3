"""One GE graph for every number of tokens: the fused node, a Slice, and Pads where needed."""

from pathlib import Path

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


# A program that compiles its model into a cache, or takes it from there, and runs four sizes.
CACHED = f"""
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch, torch_npu, torchair
from token_counts import tokens
import npu_lowering

NAMES = ("x", "w", "group_list", "scale", "pertoken_scale", "logit", "shared_input", "row_index")

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        config = torchair.CompilerConfig()
        self.cached = torchair.inference.cache_compile(
            self.prompt, config=config, dynamic=True, cache_dir=sys.argv[1])
    def prompt(self, hidden, x, w, group_list, scale, pertoken_scale, logit, shared_input,
               row_index):
        return npu_lowering.npu_grouped_matmul_finalize_routing(
            x, w, group_list, scale=scale, pertoken_scale=pertoken_scale, logit=logit,
            shared_input=shared_input, row_index=row_index, output_bs=hidden.shape[0],
            max_output_bs=64)
    def forward(self, *arguments):
        return self.cached(*arguments)

model = Model()
for count in (7, 9, 12, 20):
    hidden, case = tokens(count)
    out = model(hidden, *(case[name] for name in NAMES))
    case.pop("shared_input_offset")
    expected = torch.ops.npu.npu_grouped_matmul_finalize_routing(**case, output_bs=count)
    print(tuple(out.shape), torch.equal(out, expected))
"""


@pytest.mark.usefixtures("found")
def test_a_cached_graph_is_right_at_other_sizes_in_a_second_process(python, tmp_path):
    script = tmp_path / "cached.py"
    script.write_text(CACHED)
    for _ in range(2):
        output, _ = python("-m", "npu_lowering", "run", script, tmp_path / "cache")
        assert output.splitlines()[-4:] == [f"({count}, 64) True" for count in (7, 9, 12, 20)]
        assert [*(tmp_path / "cache").rglob("compiled_module")]


def test_an_exported_model_says_what_bound_it_lacks(torchair, tmp_path):
    """It would otherwise hold the one size that it was exported at."""

    class Model(torch.nn.Module):
        def forward(self, hidden, *rest):
            return as_users_write_it(hidden, dict(zip(case, rest)))

    hidden, case = tokens(7)
    with pytest.raises(Exception, match="output_bs must have an upper bound in a GE graph"):
        torchair.dynamo_export(
            hidden, *case.values(), model=Model(), dynamic=True, export_path=str(tmp_path)
        )
