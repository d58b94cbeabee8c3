"""lower() gives the graph and runs nothing; what has no kernel here says so in one sentence."""

import re

import pytest
import torch
from torch import nn

from npu_lowering import offdevice
from npu_lowering.offdevice.process import refusals


@pytest.fixture(autouse=True)
def _installed(torchair):
    del torchair
    torch._dynamo.reset()


def fused(x):
    # TorchAIR lowers it, and there is no kernel for it here.
    import torch_npu

    return torch_npu.npu_fast_gelu(x * 2)


def test_an_operator_without_a_kernel():
    x = torch.ones(2, 8)
    with pytest.raises(NotImplementedError) as raised:
        fused(x)
    assert str(raised.value).startswith("npu::npu_fast_gelu cannot be computed here: ")
    assert "npu_lowering.offdevice.lower(function, *args)" in str(raised.value)
    assert "npu::npu_format_cast" in str(raised.value)
    assert "\n" not in str(raised.value)
    graph = offdevice.lower(fused, x)
    (node,) = graph.nodes_of("FastGelu")
    assert node.outputs[0].shape == (2, 8)


def test_running_it_names_the_way(torchair):
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    with pytest.raises(RuntimeError, match=r"FastGelu .*; npu_lowering.offdevice.lower\(function"):
        torch.compile(fused, backend=backend)(torch.ones(2, 8))


def test_nothing_is_run_and_nothing_is_kept():
    weight = torch.zeros(2)

    def function(x):
        weight.add_(x)
        return weight * 2

    for rows in range(1, 20):  # more than Dynamo compiles of one function
        graph = offdevice.lower(function, torch.ones(2) * rows)
        assert graph.nodes
    assert weight.tolist() == [0, 0]
    assert function(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.parametrize(("dynamic", "rows"), [(None, 3), (False, 3), (True, None)])
def test_sizes_may_be_symbols(dynamic, rows):
    graph = offdevice.lower(lambda x: x + x, torch.ones(3, 4), dynamic=dynamic)
    shape = graph.nodes_of("Add")[0].outputs[0].shape
    assert len(shape) == 2
    assert (shape[0] == rows) == (rows is not None)


def test_a_module_and_keyword_arguments():
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        graph = offdevice.lower(layer, input=torch.ones(3, 4))
    assert [output.node for output in graph.outputs]
    assert len(graph.inputs) == 3
    assert graph is offdevice.last_graph()


def test_in_the_middle_of_another():
    """What is lowered only ends no other call, and the next one runs."""
    import torchair

    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    offdevice.lower(lambda x: x + 1, torch.ones(2))
    assert torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2)).tolist() == [2, 2]


def broken(x):
    print("a side effect that no graph has")
    torch._dynamo.graph_break()
    return x + 1


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (3, TypeError, "function must be callable, got int"),
        (lambda _: 3, offdevice.engine.graph.GraphError, "was lowered to no graph"),
        (broken, Exception, "graph_break|graph break|unsupported"),
    ],
)
def test_what_is_no_graph_is_refused(function, error, message):
    with pytest.raises(error, match=message):
        offdevice.lower(function, torch.ones(2))


def test_with_a_real_cann_it_is_refused(monkeypatch):
    from npu_lowering.offdevice import graph_only

    monkeypatch.setattr(graph_only, "install", lambda: False)
    with pytest.raises(offdevice.OffDeviceError, match="a real CANN is here"):
        offdevice.lower(lambda x: x, torch.ones(2))


def test_every_operator_has_a_kernel_or_the_sentence():
    """Of npu:: no one is left to torch's own message, and none that had a kernel lost it."""
    from npu_lowering import registration, torch_internals

    names = list(torch_internals.operator_names("npu"))
    assert len(names) > 100
    assert [name for name in names if not torch_internals.finds_kernel(name, "CPU")] == []
    here = refusals.computed_here()
    assert len(here) > 1
    assert {registration.owner(name, "CPU") for name in here} == {"ours"}


def test_a_kernel_of_the_users_takes_its_place(recwarn):
    library = torch.library.Library("npu", "IMPL")
    library.impl("npu_mish", lambda x: x + 1, "CPU")
    import torch_npu

    assert torch_npu.npu_mish(torch.ones(2)).tolist() == [2, 2]
    assert not [w for w in recwarn if re.search("[Oo]verrid", str(w.message))]
    library._destroy() if hasattr(library, "_destroy") else None
