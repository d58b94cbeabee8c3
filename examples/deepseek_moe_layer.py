"""A whole MoE layer in DeepSeek-V3's proportions, W8A8, run in three ways without an NPU.

Gate and top-k, routing, dynamic quantisation, the experts' gate and up projections, SwiGLU, a
second quantisation, and then one operator: down projection, combine and shared expert.
"""

import argparse
import os
import shutil
import warnings

import npu_lowering
from npu_lowering import offdevice

offdevice.install()

import torch  # noqa: E402
import torchair  # noqa: E402

HIDDEN, INTERMEDIATE, EXPERTS, TOP_K, ROUTED_SCALING, TOKENS = 7168, 2048, 256, 8, 2.5, 64
PARTS = ("activations", "weights", "second", "shared")


def quantise(x, dim=-1):
    """Symmetric int8 along dim, and its scale; max, for TorchAIR has no converter of amax."""
    scale = x.abs().max(dim, keepdim=True).values.clamp(min=1e-12) / 127
    return (x / scale).round().to(torch.int8), scale.squeeze(dim)


def requantised(x, really, dim=-1):
    """What int8 makes of x, as floats; or x."""
    values, scale = quantise(x, dim)
    return values * scale.unsqueeze(dim) if really else x


def swiglu(gate_up):
    """silu(gate) * up of both side by side."""
    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


class MoELayer(torch.nn.Module):
    """The layer: int8 experts, float32 gate, a shared expert whose output is bfloat16."""

    def __init__(self, hidden, intermediate, experts):
        super().__init__()
        self.experts = experts

        def weight(*shape):
            return torch.randn(shape) * shape[-2] ** -0.5

        self.gate = weight(hidden, experts)
        self.gate_up = weight(experts, hidden, 2 * intermediate)
        self.down = weight(experts, intermediate, hidden)
        self.shared_gate_up = weight(hidden, 2 * intermediate)
        self.shared_down = weight(intermediate, hidden)
        self.int8_gate_up, self.gate_up_scale = quantise(self.gate_up, dim=1)  # per output channel
        self.int8_down, self.down_scale = quantise(self.down, dim=1)

    def choose(self, x):
        """Sigmoid scores, the best experts, and their weights, without V3's groups of experts."""
        scores, ids = (x @ self.gate).sigmoid().topk(TOP_K)
        return ids, ROUTED_SCALING * scores / scores.sum(-1, keepdim=True)

    def shared(self, x):
        """The expert that sees every token."""
        return swiglu(x @ self.shared_gate_up) @ self.shared_down

    def forward(self, x):
        """From ``(tokens, hidden)`` float32 to the same."""
        r = npu_lowering.routing(*self.choose(x), self.experts)
        values, scale = quantise(x)
        operator = npu_lowering.npu_grouped_matmul_finalize_routing
        # A grouped matmul (npu_grouped_matmul on a device): each row goes to a row of its own.
        gate_up = operator(
            values[r.row_index],
            self.int8_gate_up,
            r.group_list,
            scale=self.gate_up_scale,
            pertoken_scale=scale[r.row_index],
            row_index=torch.arange(r.order.shape[0]),
        )
        values, scale = quantise(swiglu(gate_up))
        return operator(
            values,
            self.int8_down,
            r.group_list,
            scale=self.down_scale,
            pertoken_scale=scale,
            shared_input=self.shared(x).bfloat16(),
            logit=r.logit,
            row_index=r.row_index,
            output_bs=x.shape[0],
        )

    def reference(self, x, quantised=()):
        """The same layer, expert by expert in float32; of what is named, what int8 makes of it."""
        (ids, weights), rows = self.choose(x), requantised(x, "activations" in quantised)
        out = self.shared(x).to(torch.bfloat16 if "shared" in quantised else x.dtype).float()
        for expert in range(self.experts):
            token, slot = (ids == expert).nonzero(as_tuple=True)
            gate_up = requantised(self.gate_up[expert], "weights" in quantised, dim=0)
            down = requantised(self.down[expert], "weights" in quantised, dim=0)
            inner = requantised(swiglu(rows[token] @ gate_up), "second" in quantised)
            out.index_add_(0, token, weights[token, slot].unsqueeze(1) * (inner @ down))
        return out


def main():
    """Run three ways, compare with the float32 reference, and take the error apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=int, default=8, help="divides V3's sizes; 1 to 32")
    scale = parser.parse_args().scale
    torch.manual_seed(0)
    sizes = [size // scale for size in (HIDDEN, INTERMEDIATE, EXPERTS)]
    layer, x = MoELayer(*sizes), torch.randn(TOKENS, sizes[0])
    print("hidden {}, intermediate {}, {} experts, top".format(*sizes), TOP_K, tuple(x.shape))
    expected, eager = layer.reference(x), layer(x)

    def error(out):
        return float((out - expected).norm() / expected.norm())

    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    # TorchAIR's configuration lets every warning through, so this comes after it. These are the
    # sizes of no device, which the converter would say of each; and torch_npu looks for a Triton.
    warnings.filterwarnings("ignore", "npu_grouped_matmul_finalize_routing: |triton-ascend is not")
    ways = {
        "eager": layer,
        "TorchAIR": torch.compile(layer, backend=backend, dynamic=False, fullgraph=True),
    }
    if shutil.which(os.environ.get("CXX", "g++")):
        ways["inductor"] = torch.compile(layer, fullgraph=True)
    else:
        print("inductor is left out: it needs a C++ compiler, g++ or the one that CXX names")
    print(f"\n{'way':<12}{'error to float32':<20}largest difference to eager")
    for name, way in ways.items():
        torch._dynamo.reset()  # torch 2.1 would go on with what another backend has compiled
        difference = float(((out := way(x)) - eager).abs().max())
        print(f"{name:<12}{error(out):<20.4%}{difference:.3g}")
        # Where a last bit differs before it is rounded, one int8 may be the next one.
        assert difference <= 0.1 * float((eager - expected).abs().max()), name
    nodes = offdevice.last_graph().nodes_of("GroupedMatmulFinalizeRouting")
    print("GroupedMatmulFinalizeRouting nodes in the GE graph:", len(nodes))
    print(f"\n{'quantised':<24}error to float32")
    errors = {part: error(layer.reference(x, (part,))) for part in PARTS}
    root, together = sum(size**2 for size in errors.values()) ** 0.5, layer.reference(x, PARTS)
    rest = {"root of their squares": root, "all together": error(together)}
    for what, size in {**errors, **rest}.items():
        print(f"{what:<24}{size:.4%}")
    print("the layer is that, up to rounding:", torch.allclose(eager, together, atol=1e-2))


if __name__ == "__main__":
    main()
