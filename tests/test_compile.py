"""Capture: opcheck, torch.compile, dynamic shapes, export, and the decomposition in a graph."""

import io

import pytest
import torch
from cases import CASES, FULL_SIZE, call, fractal_nz
from compare import assert_same
from torch._dynamo.backends.registry import lookup_backend
from versions import TORCH

import npu_lowering

needs_opcheck = pytest.mark.skipif(TORCH < (2, 4), reason="torch.library.opcheck came with 2.4")
needs_export = pytest.mark.skipif(
    TORCH < (2, 6), reason="torch.export with Dim, run_decompositions(dict) and save came with 2.6"
)
# torch's own copy of a pytree spec warns of what torch itself deprecated.
allow_treespec = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
TENSORS = ("x", "w", "group_list", "scale", "pertoken_scale", "shared_input", "logit", "row_index")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def function(case):
    return npu_lowering.npu_grouped_matmul_finalize_routing(**case)


def with_grad(case):
    return {
        k: v.detach().requires_grad_()
        if isinstance(v, torch.Tensor) and v.is_floating_point()
        else v
        for k, v in case.items()
    }


class Counting:
    """A Dynamo backend that counts the graphs it is given and keeps them."""

    def __init__(self, backend="eager"):
        self.graphs = []
        self._compile = lookup_backend(backend)

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return self._compile(graph, inputs)


@needs_opcheck
@pytest.mark.parametrize("name", [*CASES, *FULL_SIZE])
def test_opcheck(name, op):
    case = {**CASES, **FULL_SIZE}[name]()
    args = tuple(case.pop(name) for name in ("x", "w", "group_list"))
    torch.library.opcheck(op.default, args, case)


@needs_opcheck
@pytest.mark.parametrize(
    "name",
    [name for name in CASES if name.startswith(("both", "bias", "fractal", "totals", "neither"))]
    + ["logit_alone", "pertoken_scale_2d", "tail_of_garbage", "strided", "every_group_empty"],
)
def test_opcheck_of_training(name, op):
    """With each set of inputs that a gradient flows to, and each form of what it does not."""
    case = with_grad(CASES[name]())
    args = tuple(case.pop(name) for name in ("x", "w", "group_list"))
    torch.library.opcheck(op.default, args, case)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("name", ["both", "neither", "totals", "fractal_nz_padded", "strided"])
def test_compile(name, backend):
    case = CASES[name]()
    assert_same(torch.compile(function, backend=backend, fullgraph=True)(case), function(case))


def test_compile_keeps_one_node():
    counting = Counting()
    torch.compile(function, backend=counting, fullgraph=True)(call())
    (graph,) = counting.graphs
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    traced = torch.ops.npu_lowering.grouped_matmul_finalize_routing
    assert calls == [traced] or calls == [traced.default]


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("dynamic", [True, None])
def test_token_counts_share_compilations(backend, dynamic):
    counting = Counting(backend)
    compiled = torch.compile(function, backend=counting, fullgraph=True, dynamic=dynamic)
    for m in (24, 31, 40, 57, 100):
        case = call(m=m)
        assert_same(compiled(case), function(case))
    assert len(counting.graphs) <= 2


def test_experts_and_columns_may_be_dynamic():
    counting = Counting()
    compiled = torch.compile(function, backend=counting, fullgraph=True, dynamic=True)
    for m, n, e in ((24, 64, 4), (30, 96, 3), (40, 128, 5), (50, 160, 6)):
        case = call(m=m, n=n, counts=(4,) * e)
        assert_same(compiled(case), function(case))
    for m, n in ((24, 64), (30, 96), (40, 128)):
        case = fractal_nz(m=m, n=n)
        assert_same(compiled(case), function(case))
    assert len(counting.graphs) <= 4


@pytest.mark.parametrize("w", ["nd", "nz"])
def test_the_fake_keeps_symbols(w, op):
    """No rule pins m, e or n: each comes out of the fake as the symbol that went in."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    case = call(m=24, n=96, output_bs=0) if w == "nd" else fractal_nz(m=24, n=96, output_bs=0)
    environment = ShapeEnv()
    mode = torch._subclasses.FakeTensorMode(shape_env=environment)
    fakes = {k: mode.from_tensor(v) if k in TENSORS else v for k, v in case.items()}
    with mode:
        out = op(**fakes)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    for size in (*out.shape, *fakes["x"].shape, *fakes["w"].shape[:3]):
        assert isinstance(size, torch.SymInt)
        assert size.node.maybe_as_int() is None, "specialised"
    assert str(out.shape[0]) == str(fakes["x"].shape[0])


class Model(torch.nn.Module):
    def forward(
        self, x, w, group_list, scale, pertoken_scale, shared_input, logit, row_index
    ):  # the names of TENSORS
        return npu_lowering.npu_grouped_matmul_finalize_routing(
            x,
            w,
            group_list,
            scale=scale,
            pertoken_scale=pertoken_scale,
            shared_input=shared_input,
            logit=logit,
            row_index=row_index,
            output_bs=6,
        )


def tensors(case):
    return tuple(case[name] for name in TENSORS)


def calls(program):
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def export():
    rows = torch.export.Dim("m", min=6, max=4096)
    shapes = {
        name: {0: rows} if name in ("x", "pertoken_scale", "logit", "row_index") else None
        for name in TENSORS
    }
    return torch.export.export(Model(), tensors(call()), dynamic_shapes=shapes)


@needs_export
def test_export_with_dynamic_m_keeps_one_node():
    program = export()
    traced = torch.ops.npu_lowering.grouped_matmul_finalize_routing.default
    assert [target for target in calls(program) if target is traced] == [traced]
    for m in (6, 24, 50):
        inputs = tensors(call(m=m, counts=(3, 0, 2, 1)))
        assert_same(program.module()(*inputs), Model()(*inputs))


@needs_export
@allow_treespec
@pytest.mark.parametrize("table", ["ours", "core_aten"])
def test_decomposed_export_holds_only_aten(table):
    merged = npu_lowering.decompositions()
    if table == "core_aten":
        merged = {**torch.export.default_decompositions(), **merged}
    program = export().run_decompositions(merged)
    for target in calls(program):
        namespace = getattr(target, "namespace", None)
        assert namespace == "aten" or target.__module__ in ("_operator", "math"), target
        assert "item" not in str(target)
        assert "_local_scalar_dense" not in str(target)
    inputs = tensors(call(m=50))
    assert_same(program.module()(*inputs), Model()(*inputs))


@needs_export
@allow_treespec
@pytest.mark.parametrize("decomposed", [False, True])
def test_exported_programs_survive_save_and_load(decomposed):
    program = export()
    if decomposed:
        program = program.run_decompositions(npu_lowering.decompositions())
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    inputs = tensors(call(m=50))
    assert_same(torch.export.load(file).module()(*inputs), Model()(*inputs))


@pytest.mark.parametrize("name", ["both", "tail_of_garbage", "totals_with_tail", "experts_256"])
def test_decomposition_traces_with_symbolic_sizes(name, op):
    from torch.fx.experimental.proxy_tensor import make_fx

    case = CASES[name]()
    graph = make_fx(function, npu_lowering.decompositions(), tracing_mode="symbolic")(case)
    assert op.default not in calls(graph)
    assert_same(graph(case), function(case))


@pytest.mark.parametrize("threads", [1, 2])
def test_decomposition_through_inductor(threads):
    """Whose threads add in any order, and which may fuse a multiplication and an addition."""
    from torch.fx.experimental.proxy_tensor import make_fx

    case = CASES["both"]()
    graph = make_fx(function, npu_lowering.decompositions())(case)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out = torch.compile(graph)(case)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(out, function(case), rtol=1e-5, atol=1e-4)


def test_no_decomposition_is_global(op):
    from torch._decomp import core_aten_decompositions, decomposition_table

    assert op.default not in decomposition_table
    assert op.default not in core_aten_decompositions()
    assert npu_lowering.decompositions() is not npu_lowering.decompositions()


@pytest.mark.parametrize("made", [call, fractal_nz])
def test_the_decomposition_compiles_to_one_graph_for_all_sizes(made, op):
    """The natural way on a GPU: Dynamo traces the decomposition itself, its checks included."""
    counting = Counting()
    decomposed = npu_lowering.decompositions()[op.default]
    compiled = torch.compile(decomposed, backend=counting, dynamic=True, fullgraph=True)
    for m in (24, 31, 40, 57, 100):
        case = made(m=m)
        assert_same(compiled(**case), op(**case))
    assert len(counting.graphs) == 1
    with pytest.raises(Exception, match="output_bs must be 0 or None, for m, or in"):
        compiled(**call(m=24, output_bs=25))


def test_dynamo_compiles_none_of_our_frames(op):
    """Where it skips a frame of the user's, it is still on while the operator runs."""
    from torch._dynamo.utils import counters

    case = call()

    def breaks():
        try:
            torch._dynamo.graph_break()
            return op(**case)
        finally:
            pass

    expected = op(**case)
    counters.clear()
    assert_same(torch.compile(breaks, backend="eager")(), expected)
    assert counters["frames"]["total"] <= 2, dict(counters["frames"])  # the user's, and its rest


@needs_export
@allow_treespec
def test_decomposing_narrows_no_program(op):
    """shared_input of one to all rows of the result, which is the most, were declared."""

    class Shared(torch.nn.Module):
        def forward(self, shared_input, rest):
            return npu_lowering.npu_grouped_matmul_finalize_routing(
                **rest, shared_input=shared_input, output_bs=4
            )

    case = call(output_bs=4, shared_rows=3, shared_input_offset=0, shared_input_weight=0.5)
    shared = case.pop("shared_input")
    del case["output_bs"]
    shapes = {0: torch.export.Dim("rows", min=1, max=4)}, dict.fromkeys(case)
    program = torch.export.export(Shared(), (shared, case), dynamic_shapes=shapes)
    table = {**torch.export.default_decompositions(), **npu_lowering.decompositions()}
    decomposed = program.run_decompositions(table)
    for rows in (1, 2, 3, 4):
        shared = torch.rand(rows, 64).bfloat16()
        expected = op(**case, shared_input=shared, output_bs=4)
        assert_same(decomposed.module()(shared, case), expected)
