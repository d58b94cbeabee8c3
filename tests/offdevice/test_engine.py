"""The engine: aten programs lowered by TorchAIR and run here, and models built by hand."""

import re
import weakref

import ge_models
import pytest
import torch
from aten_programs import CLOSE, EXACT, LATER, TENSORS
from kernel_cases import BY_HAND, CHAINED, INT, REFUSED, F
from versions import TORCH

from npu_lowering.offdevice.engine import kernels, module
from npu_lowering.offdevice.engine.graph import GraphError
from npu_lowering.operators import OPERATORS

pytestmark = pytest.mark.usefixtures("torchair")


NAMES = [(group, name) for group, programs in EXACT.items() for name in programs]


def _fresh():
    return {name: tensor.clone() for name, tensor in TENSORS.items()}


def _together(programs):
    ordered = tuple(programs.values())

    def model(t):
        return [program(t) for program in ordered]

    return model


def _is_lowered(torchair, program, dynamic):
    try:
        ge_models.lower(torchair, program, (_fresh(),), dynamic=dynamic)
    except Exception as error:
        # Of symbolic sizes, torch's fake tensors took int64 / int64 for int64, up to 2.9.
        lacking = r"ge_converter is not implemented|\(RealDiv\) must be int64.*, got float32"
        if TORCH < (2, 10) and re.search(lacking, str(error)):
            return False
        raise
    return True


@pytest.fixture(scope="module", params=[False, True], ids=["static", "dynamic"])
def swept(request, torchair):
    """Each group lowered as one model: its eager and its compiled results, and its graph."""
    found = {}
    for group, programs in EXACT.items():
        programs = {
            name: run
            for name, run in programs.items()
            if name not in LATER or _is_lowered(torchair, run, request.param)
        }
        model = _together(programs)
        compiled, lowered = ge_models.lower(torchair, model, (_fresh(),), dynamic=request.param)
        names = list(programs)
        found[group] = dict(zip(names, zip(model(_fresh()), compiled))), lowered
    return found


@pytest.mark.parametrize(("group", "name"), NAMES)
def test_what_torchair_lowers_equals_eager(swept, group, name):
    if name not in swept[group][0]:
        pytest.skip(f"TorchAIR for torch {torch.__version__} does not lower {name}")
    eager, compiled = swept[group][0][name]
    assert compiled.dtype == eager.dtype
    assert compiled.shape == eager.shape
    assert torch.equal(compiled, eager)


@pytest.mark.parametrize("name", CLOSE)
def test_what_ge_computes_otherwise_is_close_to_eager(torchair, name):
    program, tolerance = CLOSE[name]
    compiled, _ = ge_models.lower(torchair, program, (_fresh(),))
    torch.testing.assert_close(compiled, program(_fresh()), rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", BY_HAND, ids=[f"{i}-{c[0]}" for i, c in enumerate(BY_HAND)])
def test_a_kernel_computes_what_its_definition_says(case):
    op_type, inputs, attrs, expected = case
    before = {name: value.clone() for name, value in inputs.items()}
    got = kernels.KERNELS[op_type].function(ge_models.call(op_type, inputs, attrs))
    expected = (expected,) if isinstance(expected, torch.Tensor) else expected
    got = (got,) if isinstance(got, torch.Tensor) else got
    assert len(got) == len(expected)
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    for name, value in inputs.items():
        assert torch.equal(value, before[name]) or value.isnan().any(), f"{name} was written"


@pytest.mark.parametrize("case", REFUSED, ids=[f"{i}-{c[0]}" for i, c in enumerate(REFUSED)])
def test_a_kernel_says_what_it_does_not_compute(case):
    op_type, inputs, attrs, message = case
    # An operator's own kernel says it in its own words; a graph puts the node's name before them.
    with pytest.raises((GraphError, NotImplementedError), match=message):
        kernels.KERNELS[op_type].function(
            ge_models.call(op_type, inputs, attrs, callers=inputs.values())
        )


def test_every_kernel_is_exercised(swept):
    used = {node.type for _, lowered in swept.values() for node in lowered.nodes}
    used |= {case[0] for case in BY_HAND}
    used |= {"GroupedMatmulFinalizeRouting", "Gelu", "InplaceIndexAdd", "MatMulV2"}
    lacking = {"SearchSorted"} if TORCH < (2, 6) else set()  # no converter to it
    # Those of records are exercised in test_operators_lowered.
    used |= {node.type for operator in OPERATORS for node in operator.nodes}
    assert set(kernels.KERNELS) - used <= lacking


def test_every_in_place_kernel_is_chained():
    records = {node.type for operator in OPERATORS for node in operator.nodes}
    in_place = {name for name, kernel in kernels.KERNELS.items() if kernel.in_place}
    assert in_place - records <= set(CHAINED) <= in_place


@pytest.mark.usefixtures("torchair")
@pytest.mark.parametrize("op_type", CHAINED)
def test_two_writes_in_a_row_reach_the_caller(op_type):
    """The second node reads what the first gave: that has to be the caller's memory still."""
    target, writes, attrs, expected = CHAINED[op_type]
    model = ge_models.Model()
    model.data(0, F)
    before = "in0:0"
    for place, inputs in enumerate(writes):
        sources = [(target, before)]
        for name, value in inputs.items():
            model.const(value, f"{name}{place}")
            sources.append((name, f"{name}{place}:0"))
        op = model.op(op_type, f"write{place}", sources)
        for name, value in attrs.items():
            if isinstance(value, str):
                op.attr[name].s = value.encode()
            else:
                op.attr[name].i = value
        before = f"write{place}:0"
    model.end(before)
    loaded = _loaded(model)
    loaded.compile()
    fed = torch.arange(6.0).reshape(2, 3)
    (out,) = loaded.run(([fed], [], None))
    assert torch.equal(fed, expected)
    assert torch.equal(out, expected)


def _moe(w, scale):
    """Routing, dynamic quantisation, the operator, a residual, and a counter updated in place."""

    def layer(hidden, gate, seen):
        rows, experts = hidden.shape[0], w.shape[0]
        weight, chosen = (hidden.float() @ gate).softmax(-1).topk(2, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        flat = chosen.reshape(-1)
        # Keys that differ, since TorchAIR does not lower a stable sort.
        order = (flat * (rows * 2) + torch.arange(rows * 2)).argsort()
        counts = torch.zeros(experts, dtype=torch.int64).scatter_add(0, flat, torch.ones_like(flat))
        seen.add_(counts)
        row_index = order // 2
        rows_in = hidden.float()[row_index]
        pertoken = rows_in.abs().max(-1).values / 127
        x = torch.round(rows_in / pertoken.unsqueeze(-1)).to(torch.int8)
        out = torch.ops.npu.npu_grouped_matmul_finalize_routing(
            x,
            w,
            counts,
            scale=scale,
            pertoken_scale=pertoken,
            shared_input=hidden @ torch.ones(hidden.shape[1], w.shape[2], dtype=torch.bfloat16),
            logit=weight.reshape(-1)[order],
            row_index=row_index,
            output_bs=12,
        )
        return out.to(torch.bfloat16) + hidden[:, :1]

    return layer


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_layer_equals_eager(torchair, dynamic):
    made = torch.Generator().manual_seed(3)
    w = torch.randint(-128, 128, (4, 16, 32), dtype=torch.int8, generator=made)
    layer = _moe(w, torch.rand(4, 32, generator=made))
    hidden = torch.randn(12, 16, generator=made).bfloat16()
    gate = torch.randn(16, 4, generator=made)
    seen, seen_eager = torch.ones(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    out, lowered = ge_models.lower(torchair, layer, (hidden, gate, seen), dynamic=dynamic)
    assert torch.equal(out, layer(hidden, gate, seen_eager))
    assert torch.equal(seen, seen_eager)
    assert int(seen.sum()) == 4 + 24
    assert len(lowered.nodes_of("GroupedMatmulFinalizeRouting")) == 1


IN_PLACE = {
    "add_": lambda a, c: (a.add_(c), a * 2)[1],
    "a slice": lambda a, c: (a[1:3].copy_(c[1:3]), a.sum())[1],
    "read before": lambda a, c: (a.sum(), a.copy_(c))[0],
    "exchange": lambda a, c: (t := a.clone(), a.copy_(c), c.copy_(t), a - c)[3],
    "index_add_": lambda a, c: (a.index_add_(0, torch.tensor([1, 1]), c[:2]), a + 1)[1],
    "scatter_": lambda a, c: a.scatter_(0, torch.tensor([[1, 0, 1]]), c).clone(),
    "transposed": lambda a, c: (a.t().mul_(2), a + c)[1],
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_inputs_are_written_as_eager_writes_them(torchair, name):
    eager, compiled = (torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)), None
    compiled = tuple(tensor.clone() for tensor in eager)
    result, _ = ge_models.lower(torchair, IN_PLACE[name], compiled)
    assert torch.equal(result, IN_PLACE[name](*eager))
    for one, other in zip(compiled, eager):
        assert torch.equal(one, other)


def test_outputs_share_no_memory(torchair):
    x = torch.randn(4)
    (first, second, third), _ = ge_models.lower(
        torchair, lambda x: (x + 1, (x + 1).view(2, 2), torch.ones(4)), (x,)
    )
    first.zero_()
    third.zero_()
    assert torch.equal(second, (x + 1).view(2, 2))
    again, _ = ge_models.lower(torchair, lambda x: (x + 0, torch.ones(4))[1], (x,))
    assert torch.equal(again, torch.ones(4))


def _loaded(model, outputs=1):
    made = module.TorchNpuGraphBase("hand")
    made.load(model.blob(), {}, [], [0] * outputs, 1)
    return made


def test_a_model_built_by_hand_runs():
    model = ge_models.Model()
    model.data(0, F)
    model.op("Add", "twice", [("x1", "in0:0"), ("x2", "in0:0")])
    model.end("twice:0")
    made = _loaded(model)
    made.compile()
    (out,) = made.run(([F], [], None))
    assert torch.equal(out, F * 2)
    target = torch.zeros(2, 3)
    (out,) = made.run(([F], [target], None))
    assert out is target
    assert torch.equal(target, F * 2)
    assert "twice = Add" in made.summary()


def test_the_default_device_is_not_asked():
    model = ge_models.Model()
    model.data(0, F)
    model.op("Shape", "sizes", [("x", "in0:0")])
    model.end("sizes:0")
    made = module.TorchNpuGraphBase("hand")
    made.load(model.blob(), {}, [], [3], 1)
    made.compile()
    with torch.device("meta"):
        (out,) = made.run(([F], [], None))
    assert out.tolist() == [2, 3]


def test_an_in_place_operator_writes_the_callers_memory_and_not_what_was_read_before():
    model = ge_models.Model()
    model.data(0, F)
    model.op("Reshape", "view", [("x", "in0:0"), ("shape", "shape:0")])
    model.const(torch.tensor([6]), "shape")
    model.op("Assign", "write", [("ref", "in0:0"), ("value", "half:0")], control=["view"])
    model.op("Muls", "half", [("x", "in0:0")]).attr["value"].f = 0.5
    model.op("Add", "sum", [("x1", "view:0"), ("x2", "view:0")], control=["write"])
    model.end("sum:0", control=["write"])
    made = _loaded(model)
    made.compile()
    fed = F.clone()
    (out,) = made.run(([fed], [], None))
    assert torch.equal(fed, F * 0.5)
    assert torch.equal(out, F.reshape(6) * 2)


def test_values_are_let_go_after_their_last_use(monkeypatch):
    made, alive = [], []

    def probe(call):
        alive.append(sum(ref() is not None for ref in made))
        result = call["x"] + 1
        made.append(weakref.ref(result))
        return result

    replaced = {**kernels.KERNELS, "Abs": kernels.Kernel(probe)}
    monkeypatch.setattr(kernels, "KERNELS", replaced)
    model = ge_models.Model()
    model.data(0, F)
    before = "in0:0"
    for name in "abcde":
        model.op("Abs", name, [("x", before)])
        before = f"{name}:0"
    model.end(before)
    loaded = _loaded(model)
    loaded.compile()
    loaded.run(([F], [], None))
    assert alive == [0, 1, 1, 1, 1]


def test_all_unknown_operators_are_named_at_compile():
    model = ge_models.Model()
    model.data(0, F)
    model.op("Conv2D", "one", [("x", "in0:0")])
    model.op("Conv2D", "two", [("x", "one:0")])
    model.op("NonMaxSuppression", "three", [("x", "two:0")])
    model.end("three:0")
    made = _loaded(model)
    with pytest.raises(GraphError, match="2 GE operators") as raised:
        made.compile()
    assert "Conv2D (nodes one, two); NonMaxSuppression (nodes three)" in str(raised.value)


def test_a_cycle_is_named():
    model = ge_models.Model()
    model.op("Abs", "one", [("x", "two:0")])
    model.op("Abs", "two", [("x", "one:0")])
    model.end("two:0")
    with pytest.raises(GraphError, match="a cycle through one, two"):
        _loaded(model).compile()


def test_what_a_model_lacks_is_said():
    model = ge_models.Model()
    model.data(0, F)
    model.op("Const", "empty").attr["value"].i = 1
    model.op("Add", "sum", [("x1", "in0:0"), ("x2", "empty:0")])
    model.end("sum:0")
    with pytest.raises(GraphError, match=r"'empty' \(Const\) has no tensor in its attribute"):
        _loaded(model).compile()
    model = ge_models.Model()
    model.data(0, F)
    model.op("Abs", "two", [("x", "in0:0")], outputs=("y", "z"))
    model.end("two:0")
    made = _loaded(model)
    made.compile()
    with pytest.raises(GraphError, match="has 2 outputs, and its kernel here gives 1"):
        made.run(([F], [], None))
    model = ge_models.Model()
    model.data(0, F)
    model.end("in0:0")
    made = _loaded(model)
    made.compile()
    with pytest.raises(GraphError, match="'hand' has 1 outputs, 2 were assigned"):
        made.run(([F], [F, F], None))


def _failing(message, *, op_type="Add", second=F, given=(F,), dtypes=(0,), promise=None):
    model = ge_models.Model()
    model.data(0, F)
    model.const(second, "const")
    op = model.op(op_type, "sum", [("x1", "in0:0"), ("x2", "const:0")])
    if promise:
        op.output_desc[0].dtype = 1
        op.output_desc[0].attr["_meta"].s = promise.encode()
    model.end("sum:0")

    def drive():
        made = module.TorchNpuGraphBase("hand")
        made.load(model.blob(), {}, [], dtypes, 1)
        made.compile()
        made.run((given, [], None))

    with pytest.raises(GraphError, match=message):
        drive()


def test_what_cannot_be_computed_is_said_with_the_nodes_name():
    _failing(r"'sum' \(Add\): x1 and x2 must have one dtype", second=INT)
    _failing(r"'sum' \(Add\) cannot be computed from x1: float32\[2, 3\]", second=F[:, :2])
    _failing(r"'sum' \(Abs\): its input 'x' is not given", op_type="Abs")
    _failing("has 1 inputs, 2 were given", given=(F, F))
    _failing("input 'in0' must be a tensor, got float", given=(1.0,))
    _failing(r"output 0 of node 'in0' \(Data\) must be float32\[2, 3\], got int64", given=(INT,))
    _failing(r"must be float32\[2, 3\], got float32\[3, 2\]", given=(F.t(),))
    _failing("has 1 outputs and 2 output dtypes", dtypes=(0, 0))
    _failing("output 0 of graph 'hand' must be torch.int64", dtypes=(9,))
    _failing("-5 is not the number of a GE dtype", dtypes=(-5,))
    meta = "Tensor(dtype=torch.float32, shape=torch.Size([2, 4])"
    _failing(r"output 0 of node 'sum' \(Add\) must be float32\[2, 4\], got", promise=meta)


def test_the_engine_is_driven_in_order():
    made = module.TorchNpuGraphBase("hand")
    with pytest.raises(GraphError, match="'hand' was not loaded"):
        made.compile()
    model = ge_models.Model()
    model.data(0, F)
    model.end("in0:0")
    made.load(model.blob(), {}, [], [0], 1)
    with pytest.raises(GraphError, match="'hand' was not compiled"):
        made.run(([F], [], None))
    made.set_hint_shape([[2, 3]], [[2, 2]])
    made.compile()
    with pytest.raises(GraphError, match=r"output 0 .* must be torch.float32 of shape \[2, 2\]"):
        made.run(([F], [], None))


def test_the_module_has_what_torchair_asks_for(tmp_path):
    made = module.module()
    assert made.__name__ == "torchair.core._torchair"
    assert made.check_cann_compat("Add", (), ()) == ""
    assert made.get_registered_ir_def("Add")[0] != "SUCCESS"
    assert made.TorchDataType.BF16.value == 27
    made.InitializeGraphEngine({})
    made.SetDebugLogPath("somewhere")
    made.FinalizeGraphEngine()
    model = ge_models.Model()
    model.data(0, F)
    model.end("in0:0")
    made.export(model.blob(), {"export_path_dir": str(tmp_path), "export_name": "a.air"})
    assert (tmp_path / "a.air").read_bytes() == model.blob()
