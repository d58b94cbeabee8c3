"""The lowering of the operator: through the real TorchAIR to one GE node, and to the same bits."""

import contextlib
import importlib
import inspect
import itertools
import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from cases import CASES, call, fractal_nz
from compare import assert_same
from errors import ERRORS
from versions import TORCH

import npu_lowering
from npu_lowering import offdevice
from npu_lowering.offdevice.engine.graph import parse
from npu_lowering.operators import BY_NAME

# The sizes here are small, which the converter warns of; one test is about that.
pytestmark = pytest.mark.filterwarnings("ignore:npu_grouped_matmul_finalize_routing:UserWarning")

TYPE = "GroupedMatmulFinalizeRouting"
INPUTS = ("x", "w", "scale", "bias", "pertoken_scale", "group_list", "shared_input", "logit")
INPUTS = (*INPUTS, "row_index")
# A GE node takes bfloat16 bias only; the same numbers in bfloat16 it can express.
EXPRESSIBLE = {name: (lambda make=make: bfloat16_bias(make())) for name, make in CASES.items()}


def bfloat16_bias(case):
    if case.get("bias") is not None:
        case["bias"] = case["bias"].bfloat16()
    return case


@pytest.fixture(autouse=True)
def _fresh_dynamo(torchair):
    del torchair
    torch._dynamo.reset()


@contextlib.contextmanager
def configured():
    """A configuration of TorchAIR's, which lets every warning through while it is made."""
    import torchair

    with warnings.catch_warnings():
        yield torchair.CompilerConfig()


def backend(**config):
    import torchair

    with configured() as configuration:
        for name, value in config.items():
            setattr(getattr(configuration, name), *value)
        return torchair.get_npu_backend(compiler_config=configuration)


def function(case):
    return torch.ops.npu.npu_grouped_matmul_finalize_routing(**case)


def parameters():
    """The argument names of the operator's schema, whoever defined it."""
    operator = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    return {argument.name for argument in operator._schema.arguments}


def compile_and_run(case, model=function, dynamic=False):
    lacking = set(case) - parameters() if model is function else set()
    if lacking:
        pytest.skip(f"the schema of this torch_npu lacks {', '.join(sorted(lacking))}")
    return torch.compile(model, backend=backend(), dynamic=dynamic, fullgraph=True)(case)


def fused_node():
    (node,) = offdevice.last_graph().nodes_of(TYPE)
    return node


def types():
    return [node.type for node in offdevice.last_graph().nodes]


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_lowered_result_equals_eager(name):
    case = EXPRESSIBLE[name]()
    assert_same(compile_and_run(case), function(case))
    node = fused_node()
    assert {"scale", "group_list", "shared_input", "logit", "row_index"} <= set(node.inputs)
    assert node.attrs.get("group_list_type", 1) == 1


@pytest.mark.parametrize(
    "name",
    [name for name in EXPRESSIBLE if name.startswith(("both", "bias", "fractal", "totals"))]
    + ["neither", "logit_alone", "pertoken_scale_2d", "tail_of_garbage", "strided", "odd_sizes"],
)
def test_every_size_symbolic(name):
    case = EXPRESSIBLE[name]()
    if not case["output_bs"]:
        case["output_bs"] = 6
        case["row_index"] = case["row_index"].clamp(max=5)
        case["shared_input_offset"] = 1
    assert_same(compile_and_run(case, dynamic=True), function(case))
    fused_node()


@pytest.fixture
def counting():
    """TorchAIR's backend, and the graphs that it was given."""
    graphs = []

    def compiled_by_torchair(graph, inputs):
        graphs.append(graph)
        return backend()(graph, inputs)

    return compiled_by_torchair, graphs


def test_tokens_symbolic_in_one_compilation(counting):
    compiled = torch.compile(function, backend=counting[0], fullgraph=True)
    for m in (24, 31, 40, 57):
        case = call(m=m)
        assert_same(compiled(dynamic_rows(case)), function(case))
    assert len(counting[1]) == 1


def test_tiles_symbolic_in_one_compilation(counting):
    compiled = torch.compile(function, backend=counting[0], fullgraph=True, dynamic=True)
    # No two sizes of the first call are equal: a tracer would take equal ones for one symbol.
    for k, n in ((41, 160), (64, 96), (83, 192)):
        case = fractal_nz(k=k, n=n, shared_rows=0)
        assert_same(compiled(case), function(case))
    assert len(counting[1]) == 1


def test_the_plain_call_is_one_node_and_nothing_else():
    compile_and_run(call())
    assert set(types()) == {"Data", TYPE, "NetOutput"}


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("both", set()),
        ("pertoken_scale_2d", {"Squeeze"}),
        ("totals", {"StridedSlice", "Sub", "ConcatD", "Const"}),
        ("totals_of_one_group", set()),
        ("logit_alone", {"Shape", "Slice", "Fill", "Cast", "Const"}),
        ("neither", {"Shape", "Slice", "Fill", "Cast", "Const"}),
        ("fractal_nz", {"Transpose", "Reshape", "Const"}),
        ("fractal_nz_padded", {"Transpose", "Reshape", "Slice", "Const"}),
    ],
)
def test_what_normalises_a_call(name, added):
    compile_and_run(EXPRESSIBLE[name]())
    assert set(types()) - {"Data", TYPE, "NetOutput"} == added


@pytest.mark.parametrize(("name", "dynamic"), [("totals", False), ("fractal_nz", True)])
def test_concat_says_how_much_it_joins(name, dynamic):
    """Which the device needs, and no computation here."""
    compile_and_run(CASES[name](), dynamic=dynamic)
    (node,) = offdevice.last_graph().nodes_of("ConcatD")
    assert node.attrs["N"] == len(node.inputs)


# What the node of the plain call says; all else is left out or at the default of GE.
EXPECTED = {
    "output_bs": 6,
    "shared_input_offset": 1,
    "shared_input_weight": torch.tensor(0.3).item(),
    "group_list_type": 1,
    "transpose_x": False,
    "transpose_w": False,
    "dtype": 0,
    "tuning_config": (),
}
DEFAULTS = {**EXPECTED, "output_bs": 0, "shared_input_offset": 0, "shared_input_weight": 1.0}
# One other legal-looking value for each.
MUTANTS = {
    "output_bs": 7,
    "shared_input_offset": 2,
    "shared_input_weight": 0.25,
    "group_list_type": 0,
    "transpose_x": True,
    "transpose_w": True,
    "dtype": 1,
    "tuning_config": [1],
}


def symmetric_case():
    """Sizes chosen so that as many inputs as possible could be taken for another: m = n = e * 8."""
    return call(m=32, k=32, n=32, counts=(8,) * 32, output_bs=6, bias=torch.bfloat16) | {
        "group_list": torch.tensor([1] * 32),
        "scale": call(k=32, n=32, counts=(1,) * 32)["scale"].bfloat16(),
    }


def verify(case):
    """What a lowering has to pass: the node's attributes, and the numbers."""
    assert_same(compile_and_run(case), function(case))
    said = {name: value for name, value in fused_node().attrs.items() if name in EXPECTED}
    assert {**DEFAULTS, **said} == EXPECTED


DEFAULTS = dict(
    {
        "output_bs": 0,
        "shared_input_offset": 0,
        "shared_input_weight": 1.0,
        "group_list_type": 1,
        "transpose_x": False,
        "transpose_w": False,
        "dtype": 0,
        "tuning_config": (),
    }.items()
)


@pytest.fixture
def mutate(monkeypatch):
    """Puts a change between our converter and TorchAIR's builder of the node."""
    from torchair._ge_concrete_graph import ge_apis

    build = ge_apis.GroupedMatmulFinalizeRouting

    def install(change):
        def changed(x, w, **rest):
            return build(**change({"x": x, "w": w, **rest}))

        changed.__signature__ = inspect.signature(build)
        monkeypatch.setattr(ge_apis, "GroupedMatmulFinalizeRouting", changed)

    return install


def test_the_unchanged_node_passes(mutate):
    mutate(lambda arguments: arguments)
    verify(symmetric_case())


@pytest.mark.parametrize("attribute", MUTANTS)
def test_a_changed_attribute_is_noticed(mutate, attribute):
    mutate(lambda arguments: {**arguments, attribute: MUTANTS[attribute]})
    with pytest.raises((AssertionError, RuntimeError)):
        verify(symmetric_case())


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(INPUTS, 2)])
def test_two_swapped_inputs_are_noticed(mutate, one, other):
    mutate(lambda arguments: {**arguments, one: arguments[other], other: arguments[one]})
    with pytest.raises((AssertionError, RuntimeError)):
        verify(symmetric_case())


@pytest.mark.parametrize("missing", INPUTS)
def test_a_missing_input_is_noticed(mutate, missing):
    mutate(lambda arguments: {**arguments, missing: None})
    with pytest.raises((AssertionError, RuntimeError, AttributeError)):
        verify(symmetric_case())


# Models around the operator.


def quantise(x):
    """Per-row symmetric int8, as the layer before the operator does."""
    scale = x.abs().max(1).values / 127
    return (x / scale.unsqueeze(1)).round().to(torch.int8), scale


def quantised_before(case):
    x, pertoken_scale = quantise(case["activations"])
    rest = {k: v for k, v in case.items() if k not in ("activations", "residual", "x")}
    return function({**rest, "x": x, "pertoken_scale": pertoken_scale})


def residual_after(case):
    out = function({k: v for k, v in case.items() if k not in ("activations", "residual")})
    return case["residual"] + out.to(torch.bfloat16)


def routing_in_the_graph(case):
    """row_index, logit and counts from the gate's scores, all in the graph."""
    weights, experts = torch.topk(torch.softmax(case["scores"], 1), 4)
    # TorchAIR lowers no stable sort, so the position is part of the key.
    key = torch.sort(experts.reshape(-1) * 24 + torch.arange(24)).values
    sorted_experts, order = key // 24, key % 24
    numbers = torch.arange(4).unsqueeze(0)
    counts = (sorted_experts.unsqueeze(1) == numbers).to(torch.int64).sum(0)
    rest = {k: v for k, v in case.items() if k not in ("scores", "activations", "residual")}
    return function(
        {
            **rest,
            "row_index": order // 4,
            "logit": weights.reshape(-1)[order],
            "group_list": counts,
        }
    )


def buffer_in_place(case):
    total = case["residual"]
    out = function({k: v for k, v in case.items() if k not in ("activations", "residual")})
    total.add_(out.to(torch.bfloat16))
    return total * 2


@pytest.mark.parametrize(
    "model", [quantised_before, residual_after, routing_in_the_graph, buffer_in_place]
)
def test_inside_a_model(model):
    generator = torch.Generator().manual_seed(3)
    case = call()
    if model is routing_in_the_graph:
        case["scores"] = torch.randn(6, 8, generator=generator)[:, :4]
    if model is quantised_before:
        case["activations"] = torch.randn(24, 64, generator=generator)
    if model in (residual_after, buffer_in_place):
        case["residual"] = torch.randn(6, 64, generator=generator).bfloat16()
    copies = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in case.items()}
    expected = model(copies)
    actual = compile_and_run(case, model)
    assert torch.equal(actual, expected)
    for name, value in case.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, copies[name]), f"{name} differs after the call"
    fused_node()


def test_run_eagerly_lowers_and_runs_the_fx_graph():
    with configured() as configuration:
        if not hasattr(configuration.debug, "run_eagerly"):
            pytest.skip("this TorchAIR has no debug.run_eagerly")
    case = call()
    compiled = torch.compile(function, backend=backend(debug=("run_eagerly", True)), fullgraph=True)
    assert_same(compiled(case), function(case))


def test_backend_by_name():
    case = call()
    assert_same(torch.compile(function, backend="npu", fullgraph=True)(case), function(case))


def test_export_writes_a_graph_that_parses_back(tmp_path, monkeypatch):
    import torchair

    monkeypatch.chdir(tmp_path)
    case = call()

    class Model(torch.nn.Module):
        def forward(self, x, w):
            return function({**case, "x": x, "w": w})

    torchair.dynamo_export(
        case["x"], case["w"], model=Model(), export_path="exported", dynamic=False
    )
    (file,) = [path for path in (tmp_path / "exported").iterdir() if path.suffix == ".air"]
    graph = parse(file.read_bytes())
    assert len(graph.nodes_of(TYPE)) == 1


def test_graph_dump(tmp_path, monkeypatch):
    import torchair

    monkeypatch.chdir(tmp_path)
    with configured() as configuration:
        configuration.debug.graph_dump.type = "pbtxt"
        made = torchair.get_npu_backend(compiler_config=configuration)
    torch.compile(function, backend=made, fullgraph=True)(call())
    (file, *_) = sorted(tmp_path.rglob("*.pbtxt"))
    assert TYPE in file.read_text(encoding="utf-8")


# Registration.


def looked_up():
    from torchair._ge_concrete_graph import fx2ge_converter

    return fx2ge_converter._get_converter(torch.ops.npu.npu_grouped_matmul_finalize_routing.default)


def test_torchair_looks_up_ours_after_its_lazy_imports():
    from torchair._ge_concrete_graph.ge_converter import custom  # noqa: F401

    from npu_lowering import converters
    from npu_lowering.converters.grouped_matmul_finalize_routing import convert

    for _ in range(2):
        assert inspect.unwrap(looked_up()) is convert
        before = looked_up()
        converters.register()
        assert looked_up() is before
    assert npu_lowering.status().converter == "ours"


# The builders of GroupedMatmulFinalizeRouting as the wheels of torch_npu carry them, and the one
# of the interface document's time.
BUILDERS = {
    "7.0.0": {"offset", "tuning_config"},
    "2.5.1.post1": {"tuning_config"},
    "2.1.0.post17, 2.7.1.post11": set(),
}


@pytest.mark.parametrize("tuning_config", [None, [4]])
@pytest.mark.parametrize("release", BUILDERS)
def test_builders_of_other_releases(release, tuning_config, monkeypatch):
    from torchair._ge_concrete_graph import ge_apis

    build = ge_apis.GroupedMatmulFinalizeRouting
    lacking = BUILDERS[release]
    parameters = inspect.signature(build).parameters
    if not lacking <= set(parameters):
        pytest.skip(f"this TorchAIR lacks {lacking - set(parameters)} itself")

    def builder(*args, **kwargs):
        assert not lacking & set(kwargs), "named what the release lacks"
        if "offset" in lacking:
            kwargs["offset"] = None
        return build(*args, **kwargs)

    builder.__signature__ = inspect.Signature(
        [p for name, p in parameters.items() if name not in lacking]
    )
    monkeypatch.setattr(ge_apis, "GroupedMatmulFinalizeRouting", builder)
    case = call(tuning_config=tuning_config)
    assert_same(compile_and_run(case), function(case))
    expected = tuning_config if tuning_config and "tuning_config" not in lacking else []
    assert list(fused_node().attrs.get("tuning_config", [])) == expected


# Against upstream's converter.


@pytest.fixture
def by_upstream(monkeypatch, tmp_path):
    """Compiles a call by torch_npu's own converter; gives the node."""
    # In 2.6 it asks CANN's operators for their version, whatever the weight.
    (tmp_path / "version.info").write_text("Version=8.5.0\n")
    monkeypatch.setenv("ASCEND_OPP_PATH", str(tmp_path))
    from torchair._ge_concrete_graph.ge_converter.custom import grouped_matmul_finalize_routing

    operator = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    monkeypatch.setattr(operator, "_ge_converter", operator._ge_converter)
    importlib.reload(grouped_matmul_finalize_routing)  # which registers it, over ours
    assert npu_lowering.status().converter == "upstream's"

    def node(case, **options):
        torch._dynamo.reset()
        compile_and_run(case, **options)
        return fused_node()

    return node


def said(node):
    """A node: its inputs by name, attributes, outputs."""
    inputs = {name: str(source) for name, source in node.inputs.items()}
    return inputs, dict(node.attrs), [str(output) for output in node.outputs]


def upstream_is_right(case):
    return (
        case["w"].dim() == 3
        and case.get("logit") is not None
        and case.get("shared_input") is not None
        and case.get("group_list_type", 1) == 1
        and (case["pertoken_scale"] is None or case["pertoken_scale"].dim() == 1)
        and None not in [case.get(name, 1) for name in SCALARS]
    )


SCALARS = ("output_bs", "shared_input_weight", "shared_input_offset", "group_list_type")


@pytest.mark.parametrize(
    "name", [name for name in EXPRESSIBLE if upstream_is_right(EXPRESSIBLE[name]())]
)
def test_the_node_is_upstreams_where_upstream_is_right(name, by_upstream, monkeypatch):
    case = EXPRESSIBLE[name]()
    inputs, attributes, outputs = said(by_upstream(case))
    monkeypatch.undo()
    torch._dynamo.reset()
    compile_and_run(case)
    if not case.get("tuning_config") and "tuning_config" in parameters():
        # The one attribute that upstream always sends, and that an older CANN does not know.
        assert attributes.pop("tuning_config") == (0,)
    assert said(fused_node()) == (inputs, attributes, outputs)


# Where upstream's converter is not right: the call, and what comes of it there.
UPSTREAM_IS_WRONG = {
    "totals": ("totals", "breaks the device's rule"),
    "logit_alone": ("logit_alone", "breaks the device's rule"),
    "neither": ("neither", "breaks the device's rule"),
    "bias_float32": (lambda: call(bias=torch.float32), "breaks the device's rule"),
    "pertoken_scale_2d": ("pertoken_scale_2d", "breaks the device's rule"),
    "fractal_nz": ("fractal_nz", "breaks the device's rule"),
    **{
        f"{name}_none": (lambda name=name: call(**{name: None}), "Value cannot be None")
        for name in SCALARS
        if name != "output_bs"
    },
    "output_bs_none": (lambda: call(output_bs=None), "breaks the device's rule|cannot be None"),
}


@pytest.mark.parametrize("name", UPSTREAM_IS_WRONG)
def test_where_upstream_is_wrong_ours_is_right(name, by_upstream, monkeypatch):
    make, message = UPSTREAM_IS_WRONG[name]
    case = CASES[make]() if isinstance(make, str) else make()
    with pytest.raises(Exception, match=message):
        by_upstream(case)
    monkeypatch.undo()
    torch._dynamo.reset()
    if name == "bias_float32":
        with pytest.raises(Exception, match="bias must be bfloat16 in a GE graph"):
            compile_and_run(case)
    else:
        assert_same(compile_and_run(case), function(case))


def test_upstream_specialises_a_symbolic_output_bs(by_upstream, monkeypatch):
    """output_bs=0 with symbolic rows: upstream bakes one m into the node, ours refuses."""
    case = dynamic_rows(call(output_bs=0))
    with pytest.raises(Exception, match=r"(?s)Constraints violated|specialized"):
        by_upstream(case, dynamic=None)
    monkeypatch.undo()
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"output_bs must have an upper bound in a GE graph"):
        compile_and_run(dynamic_rows(call(output_bs=0)), dynamic=None)


def dynamic_rows(case):
    for name in ("x", "pertoken_scale", "logit", "row_index"):
        torch._dynamo.mark_dynamic(case[name], 0)
    return case


def test_descriptors_of_inputs_are_left_as_they_were(monkeypatch):
    """Upstream's rewrites the descriptor of a producer; ours only adds nodes."""
    from npu_lowering import converters

    seen = []

    def spying(x, w, group_list, **kwargs):
        tensors = [x, w, group_list, *kwargs.values()]
        tensors = [tensor for tensor in tensors if hasattr(tensor, "desc")]
        before = [tensor.desc.SerializeToString(deterministic=True) for tensor in tensors]
        result = inner(x, w, group_list, **kwargs)
        after = [tensor.desc.SerializeToString(deterministic=True) for tensor in tensors]
        assert before == after
        seen.append(len(tensors))
        return result

    operator = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    inner = operator._ge_converter
    spying.require_meta = inner.require_meta
    monkeypatch.setattr(operator, "_ge_converter", spying)
    for name in ("both", "fractal_nz_padded", "totals", "neither", "pertoken_scale_2d"):
        torch._dynamo.reset()
        compile_and_run(CASES[name]() if "nz" not in name else EXPRESSIBLE[name]())
    assert len(seen) == 5
    assert converters.__all__ == ["register"]


@pytest.mark.parametrize("argument", ["w_dtype", "x_dtype", "offset", "made_up"])
def test_what_ours_does_not_cover_goes_to_upstream(argument):
    """Untouched, with TorchAIR's arguments; without an upstream it is refused by name."""

    def fake(*shape, dtype=torch.int8):
        return ge_tensor(torch.empty(shape, dtype=dtype, device="meta"))

    calls = []

    def upstream(*args, meta_outputs, **kwargs):
        calls.append((args, {**kwargs, "meta_outputs": meta_outputs}))
        return "upstream's"

    x, w, group_list = fake(4, 8), fake(1, 8, 4), fake(1, dtype=torch.int64)
    value = fake(1, 1, 4) if argument == "offset" else 290
    given = {argument: value, "meta_outputs": "meta"}
    assert alone(upstream)(x, w, group_list, **given) == "upstream's"
    assert calls == [((x, w, group_list), given)]
    int4 = fake(1, 8, 4, dtype=torch.int32)
    assert alone(upstream)(x, int4, group_list, meta_outputs="meta") == "upstream's"
    with pytest.raises(NotImplementedError, match=f"^{argument} is not supported yet"):
        alone()(x, w, group_list, **given)
    with pytest.raises(NotImplementedError, match=r"^w of int32"):
        alone()(x, int4, group_list)


def alone(upstream=None):
    """Our converter with another one behind it, or none."""
    from npu_lowering import converters
    from npu_lowering.converters.grouped_matmul_finalize_routing import convert

    return converters._converter(BY_NAME["npu_grouped_matmul_finalize_routing"], convert, upstream)


def ge_tensor(meta):
    """A GE tensor as far as a converter's checks look at it."""
    return SimpleNamespace(meta=meta, node=None)


def converted(case):
    """What the converter makes of a call, or says of it, without TorchAIR around it."""
    given = {k: ge_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in case.items()}
    return alone()(**given)


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_those_of_the_operator(name):
    bad = ERRORS[name]
    case = {**bad.base(), **bad.change}
    if name == "dtype_code":
        case["dtype"] = torch.uint8  # what the dispatcher makes of the code
    with pytest.raises(bad.error, match="^" + re.escape(bad.message)):
        converted(case)


# What the operator takes and the node does not, and the whole message.
REFUSED = {
    "bias_float32": (
        lambda: call(bias=torch.float32),
        TypeError,
        r"bias must be bfloat16 in a GE graph with int8 w, got float32: the device's kernel reads "
        r"it as bfloat16; pass bias\.bfloat16\(\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_node_cannot_say_is_refused(name):
    make, error, message = REFUSED[name]
    with pytest.raises(error, match=f"^{message}$"):
        converted(make())


@pytest.mark.parametrize("upstream", [True, False])
def test_none_of_a_newer_schema_is_lowered_by_ours(monkeypatch, upstream):
    """A TorchAIR newer than this package may name arguments that are not known here."""
    if (2, 1) < TORCH < (2, 6):
        pytest.skip("this TorchAIR marks converters in another way")

    def never(*args, **kwargs):
        raise AssertionError(f"left to upstream: {args}, {kwargs}")

    inner = alone(never if upstream else None)

    def newer(*args, **kwargs):
        return inner(*args, made_up=None, **kwargs)

    newer.require_meta = True
    operator = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    monkeypatch.setattr(operator, "_ge_converter", newer)
    case = call()
    assert_same(compile_and_run(case), function(case))
    fused_node()


def test_float32_bias_is_refused():
    with pytest.raises(Exception, match=r"bias must be bfloat16 in a GE graph with int8 w, got f"):
        compile_and_run(call(bias=torch.float32))


@pytest.mark.parametrize("output_bs", [0, None])
def test_a_symbolic_number_of_rows_without_a_bound_is_refused(output_bs):
    with pytest.raises(Exception, match=r"output_bs must have an upper bound in a GE graph, got"):
        compile_and_run(dynamic_rows(call(output_bs=output_bs)), dynamic=None)


@pytest.mark.parametrize("name", ["x_3d", "scale_none", "output_bs_large"])
def test_errors_of_the_operator_are_its_own(name):
    bad = ERRORS[name]
    with pytest.raises(Exception, match=re.escape(bad.message)):
        compile_and_run({**bad.base(), **bad.change})


def test_one_warning_for_each_device_limit():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        case = call(n=40)
        compile_and_run(case)
    said = [str(w.message) for w in caught if "npu_grouped_matmul" in str(w.message)]
    expected = npu_lowering.device_limits(**case)
    assert len(expected) == 4
    assert sorted(said) == [
        f"npu_grouped_matmul_finalize_routing: {sentence}" for sentence in sorted(expected)
    ]


def test_opcheck_on_the_op_of_cpp():
    if not hasattr(torch.library, "opcheck"):
        pytest.skip("torch.library.opcheck came with 2.4")
    operator = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    assert npu_lowering.status().schema == "upstream's"
    for name in ("both", "neither", "totals", "fractal_nz_padded", "tail_of_garbage"):
        case = CASES[name]()
        args = tuple(case.pop(name) for name in ("x", "w", "group_list"))
        torch.library.opcheck(operator, args, case)
