"""Outputs of defective devices, planted with the oracle: it shares no code with the package.

Each takes a call that shows the defect, and gives what such a device would give.
"""

import torch
from cases import call
from oracle import oracle


def changed(case, **changes):
    return oracle(**{**case, **changes})


def full(**kwargs):
    """Everything is there: bias, offset, weight, both scales, tail rows."""
    made = {"m": 24, "counts": (7, 0, 9, 5), "bias": torch.bfloat16, **kwargs}
    return call(**made)


def offset_on_row_index(case):
    moved = case["row_index"] + case["shared_input_offset"]
    # What leaves the output is written elsewhere: here, to rows that are cut off again.
    return changed(case, row_index=moved, output_bs=8)[:6]


def totals(case):
    return {**case, "group_list": case["group_list"].cumsum(0), "group_list_type": 0}


def totals_as_counts(case):
    left, counts = case["x"].shape[0], []
    for value in case["group_list"].tolist():
        counts.append(min(value, left))
        left -= counts[-1]
    return changed(case, group_list=torch.tensor(counts), group_list_type=1)


def counts_as_totals(case):
    """Two totals that do not grow make groups of no rows."""
    return changed(case, group_list=case["group_list"].cummax(0).values, group_list_type=0)


def tail_rows(case):
    counts = case["group_list"].clone()
    counts[-1] += case["x"].shape[0] - counts.sum()
    return changed(case, group_list=counts)


def bias_bits(case):
    e, n = case["bias"].shape
    halves = case["bias"].reshape(-1).view(torch.bfloat16)[: e * n]
    return changed(case, bias=halves.reshape(e, n))


def with_bias(case, factor):
    """The terms of each row without bias, then bias times a factor of the row's, then the sum."""
    m, ends = case["x"].shape[0], case["group_list"].cumsum(0)
    apart = {"bias": None, "shared_input": None, "row_index": torch.arange(m), "output_bs": m}
    terms = oracle(**{**case, **apart})
    out = oracle(**{**case, "group_list": torch.zeros_like(ends)})  # shared_input alone
    for r in range(int(ends[-1])):
        bias = case["bias"][int((ends <= r).sum())].float()
        out[case["row_index"][r]] += terms[r] + factor(r) * bias
    return out


def bias_scaled(case):
    return with_bias(case, lambda r: case["pertoken_scale"][r] * case["logit"][r])


def bias_without_logit(case):
    return with_bias(case, lambda _: 1.0)


def to_nz(w):
    """By the definition: ``w5[e, a, b, i, j] == w[e, 16 * b + i, 32 * a + j]``."""
    e, k, n = w.shape
    return torch.stack(
        [
            w[:, 16 * b : 16 * b + 16, 32 * a : 32 * a + 32]
            for a in range(n // 32)
            for b in range(k // 16)
        ],
        1,
    ).reshape(e, n // 32, k // 16, 16, 32)


def nz_as_nd(case):
    return changed(case, w=to_nz(case["w"]).reshape(case["w"].shape))


def nd_as_nz(case):
    e, k, n = case["w"].shape
    return changed(case, w=case["w"].reshape(e, n // 32, k // 16, 16, 32))


def tiles_along_n_first(case):
    w5 = to_nz(case["w"])
    return changed(case, w=w5.transpose(1, 2).reshape(w5.shape))


def tiles_transposed(case):
    w5 = to_nz(case["w"])
    return changed(case, w=w5.transpose(3, 4).reshape(w5.shape))


def transposed(case):
    return changed(case, w=case["w"].transpose(1, 2).reshape(case["w"].shape))


def garbage_in_unhit_rows(case):
    out = oracle(**case)
    hit = {*case["row_index"].tolist(), 1, 2}
    for row in set(range(6)) - hit:
        out[row] = float("nan") if row % 2 else 1e-30
    return out


def stored(case):
    out = torch.zeros(6, case["scale"].shape[1])
    rows = oracle(**{**case, "row_index": torch.arange(24), "output_bs": 24, "shared_input": None})
    for r in range(int(case["group_list"].sum())):
        out[case["row_index"][r]] = rows[r]
    return out


def other_factor_order(case):
    """acc * scale * pertoken_scale * logit, the order of the kernel's own tests."""
    weighed = {**case, "row_index": torch.arange(24), "output_bs": 24, "shared_input": None}
    plain = oracle(**{**weighed, "pertoken_scale": None, "logit": None})
    rows = plain * case["pertoken_scale"].unsqueeze(1) * case["logit"].unsqueeze(1)
    out = oracle(**{**case, "logit": torch.zeros(24)})
    return out.index_add(0, case["row_index"], rows)


def nulls(name):
    return lambda case: changed(case, **{name: None})


def no_tail(**kwargs):
    return call(**kwargs)


UNHIT = {"row_index": torch.arange(24) % 2 * 5}
# cause, call, defect; several forms of one cause have a row each.
DEFECTS = {
    "unhit_rows": ("unhit_rows", lambda: full(**UNHIT), garbage_in_unhit_rows),
    "rounded_terms": ("rounded_terms", no_tail, other_factor_order),
    "offset": ("offset_on_row_index", lambda: full(shared_input_offset=2), offset_on_row_index),
    "shared_offset": (
        "shared_offset_left_out",
        lambda: full(shared_input_offset=3),
        lambda case: changed(case, shared_input_offset=0),
    ),
    "totals": ("totals_as_counts", lambda: totals(full()), totals_as_counts),
    "totals_no_tail": ("totals_as_counts", lambda: totals(no_tail()), totals_as_counts),
    "counts": ("counts_as_totals", full, counts_as_totals),
    "tail": ("tail_rows", full, tail_rows),
    "logit": ("logit_left_out", full, lambda case: oracle(**{**case, "logit": None})),
    "pertoken_scale": ("pertoken_scale_left_out", full, nulls("pertoken_scale")),
    "bias": ("bias_left_out", full, nulls("bias")),
    "bias_bits": ("bias_bits", lambda: full(bias=torch.float32), bias_bits),
    "bias_scaled": ("bias_scaled", full, bias_scaled),
    "bias_without_logit": ("bias_without_logit", full, bias_without_logit),
    "shared_input": ("shared_input_left_out", full, nulls("shared_input")),
    "shared_input_weight": (
        "shared_input_weight_left_out",
        full,
        nulls("shared_input_weight"),
    ),
    "nz_as_nd": ("nz_order", full, nz_as_nd),
    "nd_as_nz": ("nz_order", full, nd_as_nz),
    "nz_given_5d": (
        "nz_order",
        lambda: {**full(), "w": to_nz(full()["w"])},
        lambda case: changed(full(), w=case["w"].reshape(4, 64, 64)),
    ),
    "tiles_along_n_first": ("nz_order", full, tiles_along_n_first),
    "tiles_transposed": ("nz_order", full, tiles_transposed),
    "transposed": ("weight_transposed", lambda: full(k=48, n=96), transposed),
    "transposed_square": ("weight_transposed", full, transposed),
    "stored": ("stored", no_tail, stored),
}
