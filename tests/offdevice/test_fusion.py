"""What TorchAIR makes of pairs by its own patterns: the same numbers, with and without."""

import logging

import pytest
import torch
from compare import assert_same

import npu_lowering  # noqa: F401 -- the operators
from npu_lowering import offdevice

NPU = torch.ops.npu


def numbers(*shape, dtype=torch.bfloat16, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(*shape, dtype=torch.bfloat16):
    gamma = numbers(shape[-1], dtype=dtype, seed=2) + 2
    return numbers(*shape, dtype=dtype), numbers(*shape, dtype=dtype, seed=1), gamma


def cast(x1, x2, gamma, *epsilon):
    y, _, total = NPU.npu_add_rms_norm(x1, x2, gamma, *epsilon)
    return y, total, y.float()


def cast_of_a_view(x1, x2, gamma, *epsilon):
    y, _, total = NPU.npu_add_rms_norm(x1, x2, gamma, *epsilon)
    return y, total, y.view(-1, y.shape[-1]).float()


def quantised(x1, x2, gamma, *epsilon):
    y, _, total = NPU.npu_add_rms_norm(x1, x2, gamma, *epsilon)
    q, scale = NPU.npu_dynamic_quant(y, smooth_scales=gamma)
    return q, total, scale


def quantised_alone(x1, x2, gamma, *epsilon):
    y, _, _ = NPU.npu_add_rms_norm(x1, x2, gamma, *epsilon)
    return NPU.npu_dynamic_quant(y, smooth_scales=gamma)


def quantised_of_a_view(x1, x2, gamma, *epsilon):
    y, _, total = NPU.npu_add_rms_norm(x1, x2, gamma, *epsilon)
    q, scale = NPU.npu_dynamic_quant(y.flatten(0, 1))
    return q, scale.view(-1, 1), total


PATTERNS = {
    "cast": (cast, "AddRmsNormCast"),
    "cast_of_a_view": (cast_of_a_view, "AddRmsNormCast"),
    "quantised": (quantised, "AddRmsNormDynamicQuant"),
    "quantised_alone": (quantised_alone, "AddRmsNormDynamicQuant"),
    "quantised_of_a_view": (quantised_of_a_view, "AddRmsNormDynamicQuant"),
}


def lowered(torchair, function, args, fuses):
    torch._dynamo.reset()
    config = torchair.CompilerConfig()
    config.experimental_config.pattern_fusion_pass = fuses
    backend = torchair.get_npu_backend(compiler_config=config)
    logging.disable(logging.WARNING)
    try:
        result = torch.compile(function, backend=backend, dynamic=False)(*args)
    finally:
        logging.disable(logging.NOTSET)
    return result, [node.type for node in offdevice.last_graph().nodes]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("epsilon", [(), (1e-5,)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_fused_pair_equals_the_two(torchair, name, dtype, epsilon):
    import torch_npu

    if not torch_npu.__version__.startswith("2.13."):
        pytest.skip(f"the patterns are those of torch_npu 2.13, here is {torch_npu.__version__}")
    function, fused = PATTERNS[name]
    args = (*inputs(2, 3, 32, dtype=dtype), *epsilon)
    expected = function(*args)
    for fuses in (True, False):
        result, types = lowered(torchair, function, args, fuses)
        assert (fused in types) == fuses
        assert ("AddRmsNorm" in types) != fuses
        for one, other in zip(result, expected):
            assert_same(one, other)
