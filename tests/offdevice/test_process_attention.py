"""scaled_dot_product_attention is traced in the form that lowers; eager is as ever."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend
from versions import TORCH

CASES = {
    "plain": lambda q: attend(q, q, q),
    "causal": lambda q: attend(q, q, q, is_causal=True),
    "masked": lambda q: attend(q, q, q, torch.ones(4, 4, dtype=torch.bool).tril()),
    "biased": lambda q: attend(q, q, q, torch.ones(4, 4).tril().log()),
    "scaled": lambda q: attend(q, q * 2, q + 1, scale=0.5),
}


@pytest.fixture
def backend(torchair):
    torch._dynamo.reset()
    return torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())


@pytest.fixture
def q():
    torch.manual_seed(0)
    return torch.randn(1, 2, 4, 8)


def enabled():
    settings = torch.backends.cuda
    return settings.flash_sdp_enabled(), settings.math_sdp_enabled()


@pytest.mark.parametrize("function", CASES.values(), ids=CASES)
def test_it_lowers_and_is_equal(function, backend, q):
    from npu_lowering import offdevice

    before = enabled()
    out = torch.compile(function, backend=backend)(q)
    types = {node.type for node in offdevice.last_graph().nodes}
    assert types & {"BatchMatMul", "BatchMatMulV2", "MatMul", "MatMulV2"}
    torch.testing.assert_close(out, function(q))
    assert enabled() == before


@pytest.mark.usefixtures("torchair")
def test_it_lowers_for_training(q):
    from npu_lowering import offdevice

    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), q[0].requires_grad_()
    graph = offdevice.lower(layer, x, x, x, need_weights=False)
    assert {node.type for node in graph.nodes} & {"SoftmaxV2", "Softmax"}
    assert len(graph.outputs) > 1  # what backward needs


def test_the_settings_come_back_after_an_error(backend, q):
    before = enabled()
    with pytest.raises(Exception, match=r"converter|not implemented|[Uu]nsupported"):
        torch.compile(lambda q: torch.linalg.qr(attend(q, q, q)), backend=backend)(q)
    assert enabled() == before


def test_other_backends_and_eager_take_what_torch_chooses(backend, q):
    from torch._dynamo.backends.common import aot_autograd

    seen = []

    def compiler(graph, inputs):
        del inputs
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch.compile(lambda q: attend(q, q, q), backend=backend)(q)
    torch._dynamo.reset()
    torch.compile(lambda q: attend(q, q, q), backend=aot_autograd(fw_compiler=compiler))(q)
    assert any("flash_attention_for_cpu" in name for name in seen) or TORCH < (2, 2)


NPUGRAPH_EX = """
import sys
from npu_lowering import offdevice
offdevice.install()
from npu_lowering.offdevice.process import attention
assert "npugraph_ex.npu_fx_compiler" not in sys.modules
try:
    import npugraph_ex
except ImportError:
    print("a release without it")
else:
    npugraph_ex.get_npu_backend
    compiler = sys.modules["npugraph_ex.npu_fx_compiler"]
    assert compiler.aot_module_simplified.__globals__ is vars(attention)
    assert compiler.aot_module_simplified.__wrapped__.__globals__ is not vars(attention)
"""


@pytest.mark.usefixtures("found")
def test_npugraph_ex_traces_it_so_too(python):
    python("-c", NPUGRAPH_EX)
