"""What the operator computes, as loops that a reader can check by eye.

It shares no code with the package. A float64 product of int8 matrices is exact up to k = 2**39, so
it stands for the exact integer sum.
"""

import torch


def oracle(
    x,
    w,
    group_list,
    *,
    scale,
    row_index,
    bias=None,
    pertoken_scale=None,
    shared_input=None,
    logit=None,
    dtype=None,
    shared_input_weight=None,
    shared_input_offset=None,
    output_bs=None,
    group_list_type=None,
    tuning_config=None,
    compute=torch.float32,
):
    """The contract, line by line; with compute=torch.float64 it is the reference of gradients."""
    del dtype, tuning_config
    m, k = x.shape
    if w.dim() == 5:
        w = logical_weight(w, k)
    e, _, n = w.shape
    weight = torch.tensor(1.0 if shared_input_weight is None else shared_input_weight).to(compute)

    rows = [torch.zeros(n, dtype=compute) for _ in range(output_bs or m)]
    if shared_input is not None:
        for i in range(shared_input.shape[0]):
            rows[(shared_input_offset or 0) + i] = shared_input[i].to(compute) * weight

    start = 0
    for g in range(e):
        value = int(group_list[g])
        end = value if group_list_type == 0 else start + value
        # By way of integers: a float64 product of -1 and 0 is -0.0.
        acc = (x[start:end].double() @ w[g].double()).to(torch.int64)
        for r in range(start, end):
            t = acc[r - start].to(compute) * scale[g].to(compute)
            if pertoken_scale is not None and logit is not None:
                t = t * (pertoken_scale.reshape(m)[r].to(compute) * logit[r].to(compute))
            elif pertoken_scale is not None:
                t = t * pertoken_scale.reshape(m)[r].to(compute)
            elif logit is not None:
                t = t * logit[r].to(compute)
            if bias is not None:
                factor = 1.0 if logit is None else logit[r].to(compute)
                t = t + factor * bias[g].to(compute)
            rows[int(row_index[r])] = rows[int(row_index[r])] + t
        start = end
    return torch.stack(rows)


def logical_weight(w5, k):
    """``w[e, i, j]`` of a FRACTAL_NZ weight, by its definition."""
    i = torch.arange(k).unsqueeze(1)
    j = torch.arange(32 * w5.shape[1]).unsqueeze(0)
    return w5[:, j // 32, i // 16, i % 16, j % 32]
