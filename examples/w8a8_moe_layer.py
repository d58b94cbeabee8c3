"""A W8A8 MoE layer as vllm-ascend writes it: from float weights, and from a checkpoint.

    python -m npu_lowering run examples/w8a8_moe_layer.py

The same lines run on a device with plain python. Here the CPU plays the NPU. The layer runs eagerly
and compiled by TorchAIR; both are equal to the bit, and near the float32 model that it was made of.
"""

import tempfile
from pathlib import Path

import torch
import torch_npu
import torchair
from safetensors.torch import load_file, save_file

TOKENS, HIDDEN, INTER, EXPERTS, TOP_K = 16, 256, 128, 8, 2


def quantised(weight):
    """int8 with a scale for each output channel: the largest magnitude of its row over 127."""
    scale = weight.abs().amax(-1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


def float_model():
    """Experts as torch.nn.Linear holds them, (out, in), and the gate."""
    torch.manual_seed(0)
    experts = [
        {
            "gate_proj": torch.randn(INTER, HIDDEN) / HIDDEN**0.5,
            "up_proj": torch.randn(INTER, HIDDEN) / HIDDEN**0.5,
            "down_proj": torch.randn(HIDDEN, INTER) / INTER**0.5,
        }
        for _ in range(EXPERTS)
    ]
    return torch.randn(HIDDEN, EXPERTS) / HIDDEN**0.5, experts


def reference(x, gate, experts):
    """The layer in float32, expert by expert."""
    weights, ids = (x @ gate).softmax(-1).topk(TOP_K, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        token, slot = (ids == e).nonzero(as_tuple=True)
        rows = x[token]
        inner = torch.nn.functional.silu(rows @ expert["gate_proj"].t())
        rows = (inner * (rows @ expert["up_proj"].t())) @ expert["down_proj"].t()
        out.index_add_(0, token, rows * weights[token, slot].unsqueeze(1))
    return out


def checkpoint(experts, file):
    """What msmodelslim writes for W8A8: int8 (out, in), a scale (out, 1), an offset of zeros."""
    tensors = {}
    for e, expert in enumerate(experts):
        for name, weight in expert.items():
            key = f"model.layers.0.mlp.experts.{e}.{name}"
            tensors[f"{key}.weight"], tensors[f"{key}.weight_scale"] = quantised(weight)
            tensors[f"{key}.weight_offset"] = torch.zeros_like(tensors[f"{key}.weight_scale"])
    save_file(tensors, file)


def loaded(file):
    """Experts of a checkpoint as (int8, scale) by name; an offset would need asymmetric kernels."""
    tensors = load_file(file)
    experts = []
    for e in range(EXPERTS):
        keys = {
            n: f"model.layers.0.mlp.experts.{e}.{n}" for n in ("gate_proj", "up_proj", "down_proj")
        }
        assert not any(tensors[f"{key}.weight_offset"].any() for key in keys.values())
        experts.append(
            {n: (tensors[f"{k}.weight"], tensors[f"{k}.weight_scale"]) for n, k in keys.items()}
        )
    return experts


def operands(experts):
    """The operators' form: (experts, in, out) and scales (experts, out).

    gate and up lie side by side, gate first: npu_dequant_swiglu_quant with activate_left gates by
    the left half. The transposed views keep k contiguous, which is a fast layout; the cast to
    FRACTAL_NZ (29) is what the device's kernels want.
    """

    def joined(*names):
        weights = torch.stack([torch.cat([e[n][0] for n in names]) for e in experts])
        scales = torch.stack([torch.cat([e[n][1] for n in names]) for e in experts])
        cast = torch_npu.npu_format_cast(weights.transpose(1, 2).npu(), 29)
        return cast, scales.squeeze(-1).npu()

    return *joined("gate_proj", "up_proj"), *joined("down_proj")


def layer(x, gate, w1, scale1, w2, scale2):
    """Gate, routing, first product, activation, and the fused second product."""
    logits = x.float() @ gate
    weights, ids, _ = torch_npu.npu_moe_gating_top_k(logits, TOP_K, k_group=1, group_count=1)
    weights = weights / weights.sum(-1, keepdim=True)
    q, scale = torch_npu.npu_dynamic_quant(x)
    rows, index, counts, row_scale = torch_npu.npu_moe_init_routing_v2(
        q,
        ids,
        scale=scale,
        active_num=ids.numel(),
        expert_num=EXPERTS,
        expert_tokens_num_type=1,
        expert_tokens_num_flag=True,
        active_expert_range=[0, EXPERTS],
        quant_mode=-1,
        row_idx_type=1,
    )
    inner = torch_npu.npu_grouped_matmul(
        [rows],
        [w1],
        group_list=counts,
        group_type=0,
        group_list_type=1,
        split_item=3,
        output_dtype=torch.int32,
    )[0]
    inner, inner_scale = torch_npu.npu_dequant_swiglu_quant(
        inner,
        weight_scale=scale1,
        activation_scale=row_scale,
        group_index=counts,
        activate_left=True,
        quant_mode=1,
    )
    return torch_npu.npu_grouped_matmul_finalize_routing(
        inner,
        w2,
        counts,
        scale=scale2,
        pertoken_scale=inner_scale,
        logit=weights.reshape(-1)[index].float(),
        row_index=(index // TOP_K).to(torch.int64),
        output_bs=x.shape[0],
    )


def compare(what, gate, experts, floats):
    """Run a set of weights eagerly and compiled, and print how far the layer is from float32."""
    x = torch.randn(TOKENS, HIDDEN).bfloat16().npu()
    arguments = (x, gate.npu(), *operands(experts))
    eager = layer(*arguments)
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    lowered = torch.compile(layer, backend=backend, fullgraph=True)(*arguments)
    exact = reference(x.float(), gate, floats)
    error = (eager - exact).norm() / exact.norm()
    print(f"{what}: TorchAIR equal to eager bit for bit: {torch.equal(lowered, eager)}; ", end="")
    print(f"relative error of W8A8: {error:.4f}")


def main():
    """Both sets of weights, which are the same numbers."""
    gate, floats = float_model()
    compare(
        "from float weights",
        gate,
        [{n: quantised(w) for n, w in e.items()} for e in floats],
        floats,
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(floats, Path(folder, "quant_model_weight_w8a8.safetensors"))
        experts = loaded(Path(folder, "quant_model_weight_w8a8.safetensors"))
    compare("from a checkpoint", gate, experts, floats)


if __name__ == "__main__":
    main()
