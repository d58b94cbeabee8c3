"""npu_grouped_matmul_swiglu_quant, both versions, row by row in float32."""

import contextlib

import torch
from errors import Bad
from operators import Tested
from records.grouped_matmul import made, positive
from records.grouped_matmul_finalize_routing import without_compiler, without_int_mm


def call(totals=(2, 2, 5), tail=0, k=24, n=64, **kwargs):
    m, e = totals[-1] + tail, len(totals)
    case = {
        "x": made(m, k),
        "weight": made(e, k, n),
        "group_list": torch.tensor(totals),
        "weight_scale": positive(e, n) / 10,
        "x_scale": positive(m, seed=3) * 10,
    }
    return {**case, **kwargs}


def nz(**kwargs):
    """With FRACTAL_NZ of the weight spelled out; what pads k is garbage."""
    case = call(**kwargs)
    e, k, n = case["weight"].shape
    padded = made(e, -(-k // 16) * 16, n)
    padded[:, :k] = case["weight"]
    spelled = padded.view(e, -1, 16, n // 32, 32).permute(0, 3, 1, 2, 4).contiguous()
    return {**case, "weight": spelled}


def listed(**kwargs):
    case = call()
    case["weight"], case["weight_scale"] = [case["weight"]], [case["weight_scale"]]
    return {**case, **kwargs}


def of_nz(weight, k):
    """w5[e, a, b, i, j] is w[e, 16 * b + i, 32 * a + j]."""
    e, panels, _, _, _ = weight.shape
    plain = torch.zeros(e, k, 32 * panels, dtype=torch.int8)
    for r in range(k):
        for a in range(panels):
            plain[:, r, 32 * a : 32 * a + 32] = weight[:, a, r // 16, r % 16]
    return plain


def oracle(x, weight, group_list, weight_scale, x_scale):
    k, n = x.shape[1], weight_scale.shape[1]
    if weight.dim() == 5:
        weight = of_nz(weight, k)
    y, scale = torch.zeros(x.shape[0], n // 2, dtype=torch.int8), torch.zeros(x.shape[0])
    start = 0
    for g, end in enumerate(group_list.tolist()):
        for r in range(start, end):
            t = (x[r].long() @ weight[g].long()).float() * weight_scale[g].float() * x_scale[r]
            a, b = t[: n // 2], t[n // 2 :]
            s = a / (1 + torch.exp(-a)) * b
            scale[r] = max(abs(value) for value in s.tolist())
            scale[r] = scale[r] / 127
            if scale[r] > 0:
                y[r] = torch.tensor([round(value) for value in (s / scale[r]).tolist()])
        start = end
    return y, scale, torch.zeros(())


def oracle_v2(x, weight, weight_scale, x_scale, group_list, group_list_type=0, tuning_config=None):
    del tuning_config
    totals = group_list.cumsum(0) if group_list_type else group_list
    return oracle(x, weight[0], totals, weight_scale[0], x_scale)[:2]


def defined(case, values):
    """Rows of groups."""
    totals = case["group_list"]
    rows = int(totals.sum() if case.get("group_list_type") else totals[-1])
    return values[0][:rows], values[1][:rows]


PATHS = {
    "compiled": contextlib.nullcontext,
    "int_mm": without_compiler,
    "float32": without_int_mm,
}


def bad(change, error, message, base=call):
    return Bad(change, error, message, base)


SUPPORTED = "it is computed for int8 x and weight, quantised to int8 row by row"

TESTED = [
    Tested(
        name="npu_grouped_matmul_swiglu_quant",
        samples={
            "totals": call,
            "tail": lambda: call(tail=3),
            "one_row": lambda: call(totals=(1,)),
            "no_rows_count": lambda: call(totals=(0, 0), tail=2),
            "odd": lambda: call(n=10, k=7),
            "float16_scale": lambda: call(weight_scale=(positive(3, 64) / 10).half()),
            "bfloat16_scale": lambda: call(weight_scale=(positive(3, 64) / 10).bfloat16()),
            "nz": nz,
            "large": lambda: call(totals=(20, 37), k=256, n=256),
        },
        oracle=oracle,
        undefined=defined,
        decomposed=False,
        node="GroupedMatmulSwigluQuantV2",
        attributes=lambda case: {"group_list_type": 0},  # noqa: ARG005
        paths=PATHS,
        errors={
            "x_dtype": bad({"x": torch.zeros(5, 24)}, TypeError, "x must be int8, got float32"),
            "weight_shape": bad(
                {"weight": torch.zeros(3, 23, 64, dtype=torch.int8)},
                ValueError,
                "weight must be (e, k, n) = (3, 24, 64), got shape (3, 23, 64)",
            ),
            "bias": bad(
                {"bias": torch.zeros(3, 64, dtype=torch.int32)},
                NotImplementedError,
                "bias is not supported yet and must be None, got a tensor of shape (3, 64);",
            ),
            "offset": bad(
                {"offset": torch.zeros(3, 64)},
                NotImplementedError,
                "offset is not supported yet and must be None, got a tensor of shape (3, 64);",
            ),
            "nz_shape": bad(
                {"weight": torch.zeros(3, 2, 3, 16, 32, dtype=torch.int8)},
                ValueError,
                "weight must be (e, n / 32, ceil(k / 16), 16, 32) = (3, 2, 2, 16, 32), got shape",
            ),
            "odd_n": bad(
                {"weight_scale": torch.zeros(3, 63)},
                ValueError,
                "weight_scale must be (e, n) with n even, got shape (3, 63)",
            ),
            "x_scale": bad(
                {"x_scale": torch.zeros(4)},
                ValueError,
                "x_scale must be (m,) = (5,), got shape (4,)",
            ),
            "group_list": bad(
                {"group_list": torch.zeros(3, dtype=torch.int32)},
                TypeError,
                "group_list must be int64, got int32",
            ),
        },
        value_errors={
            "decreasing": bad(
                {"group_list": torch.tensor([2, 1, 5])},
                ValueError,
                "group_list must hold totals that do not decrease, of at most m = 5 rows in all, "
                "got group_list[1] = 1 after 2 rows",
            ),
            "past_m": bad(
                {"group_list": torch.tensor([2, 2, 6])},
                ValueError,
                "group_list must hold totals that do not decrease, of at most m = 5 rows in all, "
                "got group_list[2] = 6 after 2 rows",
            ),
        },
    ),
    Tested(
        name="npu_grouped_matmul_swiglu_quant_v2",
        samples={
            "totals": listed,
            "counts": lambda: listed(group_list=torch.tensor([2, 0, 3]), group_list_type=1),
            "tail": lambda: listed(group_list=torch.tensor([1, 1, 2]), tuning_config=[16]),
            "bfloat16_scale": lambda: listed(weight_scale=[(positive(3, 64) / 10).bfloat16()]),
            "nz": lambda: listed(weight=[nz()["weight"]]),
        },
        oracle=oracle_v2,
        undefined=defined,
        decomposed=False,
        node="GroupedMatmulSwigluQuantV2",
        attributes=lambda case: {"group_list_type": case.get("group_list_type", 0)},
        paths=PATHS,
        errors={
            "weights": bad(
                {"weight": [torch.zeros(24, 64, dtype=torch.int8)] * 2},
                ValueError,
                "weight must be a list of one tensor, got 2",
                listed,
            ),
            "smooth_scale": bad(
                {"smooth_scale": torch.zeros(3, 32)},
                NotImplementedError,
                "smooth_scale is not supported yet and must be None, got a tensor of shape (3, 32)",
                listed,
            ),
            "quant_dtype": bad(
                {"quant_dtype": 23},
                NotImplementedError,
                f"quant_dtype must be 1, got 23; {SUPPORTED}",
                listed,
            ),
            "dequant_mode": bad(
                {"dequant_mode": 1},
                NotImplementedError,
                f"dequant_mode must be 0, got 1; {SUPPORTED}",
                listed,
            ),
            "group_list_type": bad(
                {"group_list_type": 2},
                ValueError,
                "group_list_type must be 0 (totals) or 1 (counts), got 2",
                listed,
            ),
        },
        value_errors={
            "negative": bad(
                {"group_list": torch.tensor([2, -1, 3]), "group_list_type": 1},
                ValueError,
                "group_list must hold counts >= 0, of at most m = 5 rows in all, "
                "got group_list[1] = -1 after 2 rows",
                listed,
            ),
        },
    ),
]
