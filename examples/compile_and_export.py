"""Capture a model around the operator: dynamic tokens, export, and export to plain torch ops."""

import npu_lowering  # isort: skip -- before torch, which cannot be imported where CANN is missing

import torch


class Experts(torch.nn.Module):
    """The second matmul of an MoE layer, with quantised weights, and the combine."""

    def __init__(self, experts=4, k=64, n=96, tokens=6):
        super().__init__()
        self.tokens = tokens
        weight = torch.randint(-128, 128, (experts, k, n), dtype=torch.int8)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", torch.rand(experts, n) * 0.01)

    def forward(self, x, group_list, pertoken_scale, logit, row_index):
        """From sorted rows to tokens."""
        return npu_lowering.npu_grouped_matmul_finalize_routing(
            x,
            self.weight,
            group_list,
            scale=self.scale,
            pertoken_scale=pertoken_scale,
            logit=logit,
            row_index=row_index,
            output_bs=self.tokens,
        )


def inputs(m):
    """Rows for four experts, the last of which gets what is left."""
    x = torch.randint(-128, 128, (m, 64), dtype=torch.int8)
    counts = torch.tensor([3, 0, 2, m - 5])
    return x, counts, torch.rand(m), torch.rand(m), torch.randint(6, (m,))


def main():
    """Capture once, run with several numbers of rows, compare with eager."""
    torch.manual_seed(0)
    model = Experts()
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    rows = torch.export.Dim("rows", min=6, max=4096)
    shapes = [{0: rows}, None, {0: rows}, {0: rows}, {0: rows}]
    exported = torch.export.export(model, inputs(24), dynamic_shapes=shapes)
    decomposed = exported.run_decompositions(npu_lowering.decompositions())
    ways = {"compiled": compiled, "exported": exported.module(), "in aten": decomposed.module()}
    for m in (8, 24, 100):
        call = inputs(m)
        same = {name: torch.equal(way(*call), model(*call)) for name, way in ways.items()}
        print(f"{m:>4} rows, equal to eager: {same}")
        assert all(same.values())
    print([str(node.target) for node in exported.graph.nodes if node.op == "call_function"])


if __name__ == "__main__":
    main()
