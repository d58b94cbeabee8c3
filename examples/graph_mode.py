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

    def forward(self, x, weight, group_list, scale, pertoken_scale, shared_input, logit, row_index):
        """From sorted rows to tokens."""
        return torch_npu.npu_grouped_matmul_finalize_routing(
            x,
            weight,
            group_list,
            scale=scale,
            pertoken_scale=pertoken_scale,
            shared_input=shared_input,
            logit=logit,
            row_index=row_index,
            shared_input_offset=TOKENS // 2,
            output_bs=TOKENS,
        )


def inputs():
    """On the NPU, in the order of the model's parameters."""
    torch.manual_seed(0)
    probabilities, experts = torch.randn(TOKENS, EXPERTS).softmax(1).topk(TOP_K)
    order = experts.reshape(-1).argsort(stable=True)
    weight = torch.randint(-10, 10, (EXPERTS, K, N), dtype=torch.int8)
    return (
        torch.randint(-10, 10, (M, K), dtype=torch.int8).npu(),
        torch_npu.npu_format_cast(weight.npu(), 29),
        torch.bincount(experts.reshape(-1), minlength=EXPERTS).npu(),
        (torch.randn(EXPERTS, N) * 0.01).npu(),
        (torch.randn(M) * 0.01).npu(),
        (torch.randn(TOKENS // 4, N) * 0.1).bfloat16().npu(),
        probabilities.reshape(-1)[order].npu(),
        (order // TOP_K).npu(),
    )


def main():
    """Compile for the NPU, run, and compare."""
    call, model = inputs(), Model().npu()
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    result = torch.compile(model, backend=backend, dynamic=False, fullgraph=True)(*call)
    if offdevice.is_installed():  # on a device, the graph is CANN's and not to be seen
        print(offdevice.last_graph().nodes_of("GroupedMatmulFinalizeRouting")[0])
    same = "bit for bit" if torch.equal(result, model(*call)) else "up to the order of adds"
    print(f"{tuple(result.shape)} {result.dtype}, equal to eager: {same}")


if __name__ == "__main__":
    main()
