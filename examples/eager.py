"""The interface document's example on CPU: eager and compiled, checked against a plain loop."""

import npu_lowering  # isort: skip -- before torch, which cannot be imported where CANN is missing

import time

import torch

M, K, N, TOKENS, EXPERTS, TOP_K = 576, 2048, 7168, 72, 8, 8


def inputs():
    """Random inputs of the document's sizes: each token goes to TOP_K experts."""
    torch.manual_seed(0)
    probabilities, experts = torch.randn(TOKENS, EXPERTS).softmax(1).topk(TOP_K)
    order = experts.reshape(-1).argsort(stable=True)  # rows of x are sorted by expert
    return {
        "x": torch.randint(-10, 10, (M, K), dtype=torch.int8),
        "w": torch.randint(-10, 10, (EXPERTS, K, N), dtype=torch.int8),
        "group_list": torch.bincount(experts.reshape(-1), minlength=EXPERTS),
        "scale": torch.randn(EXPERTS, N) * 0.01,
        "pertoken_scale": torch.randn(M) * 0.01,
        "shared_input": (torch.randn(TOKENS // 4, N) * 0.1).bfloat16(),
        "logit": probabilities.reshape(-1)[order],
        "row_index": order // TOP_K,
        "shared_input_offset": TOKENS // 2,
        "output_bs": TOKENS,
    }


def plain_loop(x, w, group_list, scale, pertoken_scale, shared_input, logit, row_index, **sizes):
    """What the operator computes, a row at a time."""
    first = sizes["shared_input_offset"]
    out = torch.zeros(sizes["output_bs"], w.shape[2])
    out[first : first + len(shared_input)] = shared_input.float()
    for g, rows in enumerate(torch.arange(M).split(group_list.tolist())):
        exact = w[g].double()  # a float64 holds every integer that can occur
        for r in rows:
            products = (x[r].double() @ exact).float()
            out[row_index[r]] += products * scale[g] * (pertoken_scale[r] * logit[r])
    return out


def main():
    """Run the operator in several ways and compare each with the loop."""
    call = inputs()
    expected, operator = plain_loop(**call), npu_lowering.npu_grouped_matmul_finalize_routing
    compiled = torch.compile(operator, fullgraph=True)
    print(f"{'way':<26}{'result':<16}{'equal to the loop':<20}ms")
    for name, way in (("eager", operator), ("torch.compile, inductor", compiled)):
        way(**call)  # compiles
        start = time.perf_counter()
        out = way(**call)
        elapsed = 1e3 * (time.perf_counter() - start)
        assert torch.equal(out, expected), name
        print(f"{name:<26}{tuple(out.shape)!s:<16}{'bit for bit':<20}{elapsed:.0f}")


if __name__ == "__main__":
    main()
