"""The interface document's graph example: lowered by TorchAIR, run, and compared with eager.

Without an NPU: python -m npu_lowering run examples/graph_mode.py
"""

import torch
import torch_npu
import torchair

from npu_lowering import offdevice

M, K, N = 576, 2048, 7168
TOKENS, EXPERTS, TOP_K = 72, 8, 8


class Model(torch.nn.Module):
    """The second matmul of an MoE layer and the combine."""

    def forward(self, x, weight, group_list, **rest):
        """From sorted rows to tokens."""
        return torch_npu.npu_grouped_matmul_finalize_routing(
            x, weight, group_list, shared_input_offset=TOKENS // 2, output_bs=TOKENS, **rest
        )


def inputs():
    """On the NPU: what the model takes by position, and what it takes by name."""
    torch.manual_seed(0)
    probabilities, experts = torch.randn(TOKENS, EXPERTS).softmax(1).topk(TOP_K)
    order = experts.reshape(-1).argsort(stable=True)
    weight = torch.randint(-10, 10, (EXPERTS, K, N), dtype=torch.int8)
    x = torch.randint(-10, 10, (M, K), dtype=torch.int8)
    counts = torch.bincount(experts.reshape(-1), minlength=EXPERTS)
    rest = {
        "scale": torch.randn(EXPERTS, N) * 0.01,
        "pertoken_scale": torch.randn(M) * 0.01,
        "shared_input": (torch.randn(TOKENS // 4, N) * 0.1).bfloat16(),
        "logit": probabilities.reshape(-1)[order],
        "row_index": order // TOP_K,
    }
    positional = (x.npu(), torch_npu.npu_format_cast(weight.npu(), 29), counts.npu())
    return positional, {name: tensor.npu() for name, tensor in rest.items()}


def main():
    """Compile for the NPU, run, and compare."""
    (positional, rest), model = inputs(), Model().npu()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    compiled = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)
    result = compiled(*positional, **rest)
    if offdevice.is_installed():  # on a device, the graph is CANN's and not to be seen
        print(offdevice.last_graph().nodes_of("GroupedMatmulFinalizeRouting")[0])
    equal = torch.equal(result, model(*positional, **rest))
    same = "bit for bit" if equal else "up to the order of adds"
    print(f"{tuple(result.shape)} {result.dtype}, equal to eager: {same}")


if __name__ == "__main__":
    main()
