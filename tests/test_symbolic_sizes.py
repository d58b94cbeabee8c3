"""One graph for every number of tokens: output_bs and shared_input_offset stay symbols."""

import io

import pytest
import torch
from cases import call, fractal_nz
from compare import assert_same
from test_compile import Counting, needs_export
from token_counts import COUNTS, tokens

import npu_lowering

FUNCTION = npu_lowering.npu_grouped_matmul_finalize_routing


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def model(hidden, case):
    return FUNCTION(**case, output_bs=hidden.shape[0])


def shifted(hidden, case):
    """shared_input at the end, wherever that is."""
    return FUNCTION(**case, output_bs=hidden.shape[0], shared_input_offset=hidden.shape[0] - 1)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("made", [call, fractal_nz])
def test_one_graph_for_seventeen_sizes(made, backend, op):
    counting = Counting(backend)
    compiled = torch.compile(model, backend=counting, dynamic=True, fullgraph=True)
    for count in COUNTS:
        hidden, case = tokens(count, made)
        assert_same(compiled(hidden, case), op(**case, output_bs=count))
    assert len(counting.graphs) == 1
    calls = [str(n.target) for n in counting.graphs[0].graph.nodes if "matmul" in str(n.target)]
    assert len(calls) == 1


def test_one_graph_for_every_offset(op):
    counting = Counting()
    compiled = torch.compile(shifted, backend=counting, dynamic=True, fullgraph=True)
    for count in COUNTS:
        hidden, case = tokens(count)
        del case["shared_input_offset"]
        expected = op(**case, output_bs=count, shared_input_offset=count - 1)
        assert_same(compiled(hidden, case), expected)
    assert len(counting.graphs) == 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_gradients_of_every_size(backend, op):
    def loss(hidden, case, scale):
        return model(hidden, {**case, "scale": scale}).square().sum()

    counting = Counting(backend)
    compiled = torch.compile(loss, backend=counting, dynamic=True, fullgraph=True)
    for count in (7, 9, 20):
        hidden, case = tokens(count)
        eager, traced = (case["scale"].clone().requires_grad_() for _ in range(2))
        compiled(hidden, case, traced).backward()
        op(**{**case, "scale": eager}, output_bs=count).square().sum().backward()
        torch.testing.assert_close(traced.grad, eager.grad)
    assert len(counting.graphs) == 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_number_that_only_data_knows(backend, op):

    def function(count, case):
        return FUNCTION(**case, output_bs=count.item())

    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        _hold_to_eager(torch.compile(function, backend=backend, dynamic=True, fullgraph=True), op)


def _hold_to_eager(compiled, op):
    for count in (7, 9, 20):
        _, case = tokens(count)
        assert_same(compiled(torch.tensor(count), case), op(**case, output_bs=count))
    _, case = tokens(7)
    with pytest.raises(Exception, match=r"u\d+ (>=|<=|>)|output_bs must be"):
        compiled(torch.tensor(29), case)


class Model(torch.nn.Module):
    def forward(self, hidden, case):
        return model(hidden, case)


@needs_export
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True])
def test_an_exported_program_runs_at_other_sizes(decomposed, op):
    hidden, case = tokens(7)
    count = torch.export.Dim("count", min=2, max=512)
    rows = ("x", "pertoken_scale", "logit", "row_index")
    shapes = {name: {0: 4 * count} if name in rows else None for name in case}
    program = torch.export.export(Model(), (hidden, case), dynamic_shapes=({0: count}, shapes))
    if decomposed:
        table = {**torch.export.default_decompositions(), **npu_lowering.decompositions()}
        program = program.run_decompositions(table)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for count in (7, 9, 33):
        hidden, case = tokens(count)
        assert_same(loaded.module()(hidden, case), op(**case, output_bs=count))


def test_eagerly_both_operators_are_one():
    _, case = tokens(7)
    for bound in (0, 7, 40):
        assert_same(
            FUNCTION(**case, output_bs=7, max_output_bs=bound), FUNCTION(**case, output_bs=7)
        )
    with pytest.raises(ValueError, match=r"^output_bs must be at most max_output_bs = 6, got 7"):
        FUNCTION(**case, output_bs=7, max_output_bs=6)
    with pytest.raises(ValueError, match=r"^max_output_bs must be >= 0, got -1"):
        FUNCTION(**case, output_bs=7, max_output_bs=-1)


@pytest.mark.parametrize("output_bs", [0, None])
def test_no_output_bs_means_m_while_it_is_traced_too(output_bs, op):
    """Dynamo makes a symbol even of a 0 that a caller passes."""

    def function(case, rows):
        return FUNCTION(**case, output_bs=rows)

    compiled = torch.compile(function, backend="aot_eager", dynamic=True, fullgraph=True)
    _, case = tokens(7)
    assert_same(compiled(case, output_bs), op(**case))
