"""Times the lowering through TorchAIR off the device: our converter against upstream's.

    python tests/benchmarks/lowering.py [SECONDS]

Prints JSON: name -> (minimum, median) in milliseconds. "node" is one call of the converter,
"4 layers" the first call of a compiled four-layer MoE model, from Dynamo to the result.
"""

import functools
import importlib
import json
import logging
import statistics
import sys
import time
import warnings
from pathlib import Path

from npu_lowering import offdevice

offdevice.install()

import torch  # noqa: E402
import torchair  # noqa: E402

import npu_lowering  # noqa: E402

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from deepseek_moe_layer import quantise  # noqa: E402

HIDDEN, EXPERTS, TOP_K, TOKENS = 256, 8, 2, 16


class Layer(torch.nn.Module):
    """Gate, top-k, quantisation, and the operator in the form that upstream's converter takes."""

    def __init__(self):
        super().__init__()
        self.gate = torch.randn(HIDDEN, EXPERTS)
        self.experts, self.scale = quantise(torch.randn(EXPERTS, HIDDEN, HIDDEN) / 16, dim=1)
        self.shared = torch.randn(HIDDEN, HIDDEN) / 16

    def forward(self, x):
        """From ``(tokens, hidden)`` float32 to the same."""
        weights, ids = (x @ self.gate).softmax(-1).topk(TOP_K)
        r = npu_lowering.routing(ids, weights, EXPERTS)
        values, scale = quantise(x)
        return x + npu_lowering.npu_grouped_matmul_finalize_routing(
            values[r.row_index],
            self.experts,
            r.group_list,
            scale=self.scale,
            pertoken_scale=scale[r.row_index],
            shared_input=(x @ self.shared).bfloat16(),
            logit=r.logit,
            row_index=r.row_index,
            output_bs=x.shape[0],
        )


def converters():
    """Ours and upstream's, as TorchAIR has them once each is registered."""
    operator = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    ours = operator._ge_converter
    from torchair._ge_concrete_graph.ge_converter.custom import grouped_matmul_finalize_routing

    importlib.reload(grouped_matmul_finalize_routing)  # which registers it, over ours
    return operator, {"ours": ours, "upstream's": operator._ge_converter}


def timed(converter, times):
    """The same converter, which adds the milliseconds of each call to times."""

    @functools.wraps(converter)
    def run(*args, **kwargs):
        start = time.perf_counter()
        try:
            return converter(*args, **kwargs)
        finally:
            times.append((time.perf_counter() - start) * 1e3)

    return run


def measure(seconds):
    """Compiles the same model by one converter and the other, in turn."""
    torchair.logger.setLevel(logging.ERROR)
    operator, found = converters()
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(Layer() for _ in range(4)))
    x = torch.randn(TOKENS, HIDDEN)
    expected = model(x)
    nodes, wholes = {name: [] for name in found}, {name: [] for name in found}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(wholes["ours"]) < 4:
        for name, converter in found.items():
            operator._ge_converter = timed(converter, nodes[name])
            torch._dynamo.reset()
            backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
            # The configuration lets every warning through; these sizes are no device's.
            warnings.filterwarnings("ignore", "npu_grouped_matmul_finalize_routing: ")
            compiled = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)
            start = time.perf_counter()
            result = compiled(x)
            wholes[name].append((time.perf_counter() - start) * 1e3)
            torch.testing.assert_close(result, expected, rtol=1e-2, atol=1e-2)
    return {
        f"{what}, {name}": (min(t[name][1:]), statistics.median(t[name][1:]))
        for what, t in (("node", nodes), ("4 layers", wholes))
        for name in found
    }


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)))
