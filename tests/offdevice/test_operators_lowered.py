"""Every operator that TorchAIR lowers: to the node that its record says, with eager's numbers."""

import re

import ge_models
import pytest
import torch
from operators import TESTED, outcome, results, samples, split
from test_operators import assert_equal, call

from npu_lowering.offdevice.engine import kernels
from npu_lowering.operators import OPERATORS

LIMITS = "ignore::npu_lowering.DeviceLimitWarning"


def lowered(record, sample):
    if record.lowered is not None and sample not in record.lowered:
        return False
    return record.node_of(record.samples[sample]()) is not None


def differs(said, expected):
    """Attributes are float32 and may be left out where they have GE's own default."""
    if isinstance(expected, float):
        return said != pytest.approx(expected, rel=1e-6)
    return said != expected


@pytest.mark.filterwarnings(LIMITS)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("name", "sample"), samples(lowered))
def test_lowered_equals_eager_and_is_the_declared_node(torchair, name, sample, dynamic):
    record = TESTED[name]
    case = record.samples[sample]()
    if dynamic and any(0 in t.shape or 1 in t.shape for t in case.values() if hasattr(t, "shape")):
        pytest.skip("torch makes no symbol of a size of 0 or 1")
    graphs = []

    def compiled(case):
        out, graph = ge_models.lower(torchair, lambda c: call(name, c), (case,), dynamic=dynamic)
        graphs.append(graph)
        return out

    out = outcome(name, case, compiled, lowered=True)
    (graph,) = graphs
    expected = outcome(name, case, lambda case: call(name, case), lowered=True)
    assert_equal(record, case, out, expected)
    if not any(value.numel() for value in results(expected)):
        return  # TorchAIR makes constants of what has no elements
    nodes = graph.nodes_of(record.node_of(case))
    assert len(nodes) == 1, f"{name} became {[node.type for node in graph.nodes]}"
    for attribute, value in record.attributes(case).items():
        said = nodes[0].attrs.get(attribute, DEFAULTS.get((nodes[0].type, attribute)))
        assert not differs(said, value), f"{attribute} of {nodes[0].type} is {said}, not {value}"


# What GE's definitions say of attributes that a node may leave out.
DEFAULTS = {
    ("GroupedMatmulFinalizeRouting", "shared_input_weight"): 1.0,
    ("GroupedMatmulFinalizeRouting", "shared_input_offset"): 0,
    ("GroupedMatmul", "group_list_type"): 0,
    ("GroupedMatmul", "split_item"): 0,
    ("GroupedMatmulSwigluQuantV2", "group_list_type"): 0,
    ("GroupedMatmul", "group_type"): -1,
    ("GroupedMatmul", "act_type"): 0,
    ("SwiGlu", "dim"): -1,
    ("SwiGluGrad", "dim"): -1,
    ("DequantSwigluQuant", "activate_left"): False,
    ("DequantSwigluQuant", "quant_mode"): "static",
    ("DequantSwigluQuant", "swiglu_mode"): 0,
    ("DequantSwigluQuant", "clamp_limit"): 7.0,
    ("DequantSwigluQuant", "glu_alpha"): 1.702,
    ("DequantSwigluQuant", "glu_bias"): 1.0,
    ("DynamicQuantV2", "is_symmetrical"): False,
    ("DynamicQuantV2", "quant_mode"): "pertoken",
    ("AddRmsNormCast", "epsilon"): 1e-6,
    ("AddRmsNormDynamicQuant", "epsilon"): 1e-6,
    ("ApplyRotaryPosEmb", "layout"): 1,
    ("ApplyRotaryPosEmb", "rotary_mode"): "half",
    ("MoeFinalizeRoutingV2", "drop_pad_mode"): 0,
    ("MoeGatingTopKSoftmaxV2", "renorm"): 0,
    ("MoeGatingTopKSoftmaxV2", "output_softmax_result_flag"): False,
}


def test_every_node_of_a_record_is_exercised():
    """By a sample that is lowered to it."""
    made = {
        TESTED[name].node_of(TESTED[name].samples[sample]()) for name, sample in samples(lowered)
    }
    declared = {node.type for operator in OPERATORS for node in operator.nodes}
    assert declared <= made
    assert declared <= set(kernels.KERNELS)


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.usefixtures("torchair")
def test_the_schema_is_the_one_that_torch_npu_has(name):
    """Of the release that the records follow; older ones have fewer arguments."""
    import torch_npu

    operator = TESTED[name].operator
    if operator.namespace != "npu":
        return  # ours alone
    if not torch_npu.__version__.startswith("2.13."):
        pytest.skip(f"schemas are those of torch_npu 2.13, here is {torch_npu.__version__}")
    assert str(operator.overload._schema) == str(torch._C.parse_schema(f"npu::{operator.schema}"))


REFUSED = [
    (name, error)
    for name, record in TESTED.items()
    for error in [*record.errors][:3]
    if record.node
]


@pytest.mark.filterwarnings(LIMITS)
@pytest.mark.parametrize(("name", "error"), REFUSED)
def test_errors_while_lowering(torchair, name, error):
    wrong = TESTED[name].errors[error]
    with pytest.raises(Exception, match=re.escape(wrong.message)):
        ge_models.lower(torchair, lambda c: call(name, c), ({**wrong.base(), **wrong.change},))


@pytest.mark.filterwarnings(LIMITS)
@pytest.mark.parametrize("name", TESTED)
def test_value_errors_in_a_lowered_graph(torchair, name):
    record = TESTED[name]
    for wrong in list(record.value_errors.values())[:2]:
        case = {**wrong.base(), **wrong.change}
        if record.node_of(case) is None:
            continue
        with pytest.raises(Exception, match=re.escape(wrong.message)):
            ge_models.lower(torchair, lambda c: call(name, c), (case,))


def test_results_and_split_agree_with_the_dispatcher():
    """What these tests are written with: a call split and put together is the call."""
    for name, sample in samples():
        case = TESTED[name].samples[sample]()
        args, kwargs = split(TESTED[name].operator, case)
        assert TESTED[name].operator.by_name(args, kwargs) == case or len(args) + len(
            kwargs
        ) == len(case)
    assert results(torch.ones(1)) == (torch.ones(1),)
