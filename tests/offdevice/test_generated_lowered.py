"""Generated calls, lowered by the real TorchAIR to a GE graph and run off the device.

A lowering costs about fifty eager calls, so each test takes a stated share of the profile.
"""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch
from compare import assert_same
from hypothesis import given
from spoils import dtype, illegal, later, missing, scalar, shape, wrong_values
from strategies import expected, for_symbols, is_tensor, legal, share

from npu_lowering import offdevice
from npu_lowering.offdevice.engine import graph
from npu_lowering.operators import BY_NAME

BIAS = (None, torch.bfloat16)  # a GE node takes no other


@pytest.fixture(scope="module", autouse=True)
def _torchair(torchair):
    """In this process, for every test here."""
    import npu_lowering.converters  # noqa: F401

    del torchair


def known(case):
    """The call without what the schema of this torch_npu has not."""
    operator = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    names = {argument.name for argument in operator._schema.arguments}
    return {name: value for name, value in case.items() if name in names}


def lower(case, dynamic=False):
    import torchair

    def function(case):
        return torch.ops.npu.npu_grouped_matmul_finalize_routing(**case)

    torch._dynamo.reset()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    compiled = torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sizes here are small, which the converter warns of
        return compiled(known(case))


@share(10)
@given(legal(bias=BIAS))
def test_legal_calls_lowered(case):
    assert_same(lower(case), expected(case))
    (node,) = offdevice.last_graph().nodes_of("GroupedMatmulFinalizeRouting")
    assert node.attrs.get("group_list_type", 1) == 1


@share(10)
@given(legal(bias=BIAS, rows_given=True))  # m as a symbol is refused there
def test_legal_calls_lowered_with_symbolic_sizes(case):
    case = for_symbols(case)
    assert_same(lower(case, dynamic=True), expected(case))


@share(12)
@given(wrong_values(bias=BIAS))
def test_wrong_values_lowered(bad):
    """Under an error of the engine's, which names the node and has our sentence."""
    sentence = bad.message
    if bad.case.get("group_list_type") == 0:
        # Totals are counts in the graph, and the sentence is about those.
        sentence = sentence.split(" must ")[0] + " must "
    with pytest.raises(graph.GraphError, match=re.escape(sentence)):
        lower(bad.case)


# What ours does not cover goes on to upstream's Meta and converter, whose errors are its own.
COVERED = (missing, shape, scalar)


@share(12)
@given(illegal(kinds=COVERED, bias=BIAS))
def test_illegal_calls_lowered(bad):
    with pytest.raises(Exception, match=re.escape(bad.message)):
        lower(bad.case)


@given(illegal(kinds=(missing, dtype, shape, shape, scalar, later)))
def test_illegal_calls_are_refused_by_the_converter(bad):
    """Even where no fake came before it, and before it adds a node to the graph."""
    from npu_lowering import converters
    from npu_lowering.converters.grouped_matmul_finalize_routing import convert

    record = BY_NAME["npu_grouped_matmul_finalize_routing"]
    case = {
        name: SimpleNamespace(meta=value.to("meta"), node=None) if is_tensor(value) else value
        for name, value in bad.case.items()
    }
    with pytest.raises(bad.error, match=bad.pattern):
        converters._converter(record, convert, None)(**case)
