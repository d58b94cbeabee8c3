"""npu_dequant_swiglu_quant, row by row in float32."""

import torch
from errors import Bad
from operators import Tested


def call(counts=(3, 0, 4), tail=0, h=8, dtype=torch.int32, **kwargs):
    """A dynamic call for groups of rows."""
    generator = torch.Generator().manual_seed(23)
    rows, groups = sum(counts) + tail, len(counts)
    case = {"x": torch.randint(-4000, 4000, (rows, 2 * h), dtype=dtype, generator=generator)}
    case["weight_scale"] = torch.rand(groups, 2 * h, generator=generator) * 0.001
    case["activation_scale"] = torch.rand(rows, generator=generator) + 0.5
    case["group_index"] = torch.tensor(counts)
    return {**case, "activate_left": True, "quant_mode": 1, **kwargs}


def floats(dtype=torch.bfloat16, rows=5, h=8, **kwargs):
    generator = torch.Generator().manual_seed(29)
    x = torch.randn(rows, 2 * h, generator=generator) * 3
    return {"x": x.to(dtype), "quant_mode": 1, **kwargs}


def some(*shape, dtype=torch.float32, seed=31):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.25).to(dtype)


def gpt_oss(mode=1, **kwargs):
    """As that model's decoder calls it: a float bias beside group_index."""
    return call(
        bias=some(3, 16, dtype=torch.bfloat16),
        quant_scale=some(3, 8),
        swiglu_mode=mode,
        clamp_limit=1.5,
        glu_alpha=1.702,
        glu_bias=1.0,
        **kwargs,
    )


def ungrouped(**kwargs):
    return {**call(counts=(5,)), "group_index": None, **kwargs}


def static(**kwargs):
    case = ungrouped(quant_mode=0, quant_scale=some(8) * 0.02, quant_offset=some(8) * 20)
    return {**case, **kwargs}


def oracle(
    x,
    *,
    weight_scale=None,
    activation_scale=None,
    bias=None,
    quant_scale=None,
    quant_offset=None,
    group_index=None,
    activate_left=False,
    quant_mode=0,
    dst_type=None,
    round_mode=None,
    activate_dim=None,
    swiglu_mode=0,
    clamp_limit=7.0,
    glu_alpha=1.702,
    glu_bias=1.0,
):
    del dst_type, round_mode, activate_dim
    shape, h = x.shape[:-1], x.shape[-1] // 2
    rows = x.reshape(-1, 2 * h)
    counts = [len(rows)] if group_index is None else group_index.tolist()
    groups = [g for g, count in enumerate(counts) for _ in range(count)]
    y = torch.zeros(len(rows), h, dtype=torch.int8)
    scales = torch.zeros(len(rows))

    def of(tensor, g):
        per_group = tensor.dim() == 2 or (quant_mode == 0 and len(counts) == tensor.shape[0])
        return (tensor[g] if per_group else tensor).float()

    for r, g in enumerate(groups):
        t = rows[r]
        if bias is not None and bias.dtype == torch.int32:
            t = t + (bias[g] if bias.dim() == 2 else bias)
        t = t.float()
        if weight_scale is not None:
            t = t * (weight_scale[g] if weight_scale.dim() == 2 else weight_scale)
        if activation_scale is not None:
            t = t * activation_scale.reshape(-1)[r]
        if bias is not None and bias.dtype != torch.int32:
            t = t + (bias[g] if bias.dim() == 2 else bias).float()
        a, b = (t[:h], t[h:]) if activate_left else (t[h:], t[:h])
        if swiglu_mode == 1:
            a, b = t[0::2].clone(), t[1::2].clone()
        if swiglu_mode:
            b = torch.minimum(b, torch.tensor(clamp_limit))
            b = torch.maximum(b, torch.tensor(-clamp_limit))
        if swiglu_mode in (1, 2):
            a = torch.minimum(a, torch.tensor(clamp_limit))
            s = a / (1 + torch.exp(-glu_alpha * a)) * (b + glu_bias)
        else:
            s = a / (1 + torch.exp(-a))
            if swiglu_mode == 3:
                s = torch.minimum(s, torch.tensor(clamp_limit))
            s = s * b
        if quant_mode == 1:
            if quant_scale is not None:
                s = s * of(quant_scale, g)
            scales[r] = max(abs(v) for v in s.tolist())
            scales[r] = scales[r] / 127
            if scales[r] > 0:
                y[r] = torch.tensor([round(v) for v in (s / scales[r]).tolist()])
            continue
        if quant_scale is not None:
            s = s / of(quant_scale, g)
        if quant_offset is not None:
            s = s + of(quant_offset, g)
        y[r] = torch.tensor([max(-128, min(127, round(v))) for v in s.tolist()])
    return y.reshape(*shape, h), scales.reshape(shape)


def defined(case, values):
    """Rows of groups; of a static call y alone."""
    y, scale = values
    if case.get("group_index") is not None:
        rows = int(case["group_index"].sum())
        y, scale = y[:rows], scale[:rows]
    return (y, scale) if case["quant_mode"] == 1 else (y,)


def bad(change, error, message, base=call):
    return Bad(change, error, message, base)


ERRORS = {
    "x_dtype": bad(
        {"x": torch.zeros(7, 16)}, TypeError, "x must be int32 or float16 or bfloat16, got float32"
    ),
    "x_odd": bad(
        {"x": torch.zeros(7, 15, dtype=torch.int32)},
        ValueError,
        "x must be (..., 2 * h), at least 2-D, got shape (7, 15)",
    ),
    "weight_scale_missing": bad(
        {"weight_scale": None}, ValueError, "weight_scale is required where x is int32, got None"
    ),
    "weight_scale_groups": bad(
        {"weight_scale": torch.zeros(2, 16)},
        ValueError,
        "weight_scale must be (groups, columns) = (3, 16), got shape (2, 16)",
    ),
    "weight_scale_one_axis": bad(
        {"weight_scale": torch.zeros(16)},
        ValueError,
        "weight_scale must be (groups, columns) = (3, 16), got shape (16,)",
    ),
    "weight_scale_dtype": bad(
        {"weight_scale": torch.zeros(3, 16).bfloat16()},
        TypeError,
        "weight_scale must be float32, got bfloat16",
    ),
    "weight_scale_of_floats": bad(
        {"weight_scale": torch.zeros(1, 16)},
        ValueError,
        "weight_scale must be None where x is not int32, got a tensor of shape (1, 16)",
        floats,
    ),
    "bias_of_floats": bad(
        {"bias": torch.zeros(16)},
        ValueError,
        "bias must be None where x is not int32, got a tensor of shape (16,)",
        floats,
    ),
    "activation_scale_shape": bad(
        {"activation_scale": torch.zeros(6)},
        ValueError,
        "activation_scale must be an element a row of x = (7,), got shape (6,)",
    ),
    "activation_scale_dtype": bad(
        {"activation_scale": torch.zeros(7).half()},
        TypeError,
        "activation_scale must be float32, got float16",
    ),
    "bias_dtype": bad(
        {"bias": torch.zeros(3, 16, dtype=torch.int64)},
        TypeError,
        "bias must be int32 or float32 or float16 or bfloat16, got int64",
    ),
    "bias_shape": bad(
        {"bias": torch.zeros(3, 8)},
        ValueError,
        "bias must be (groups, columns) = (3, 16), got shape (3, 8)",
    ),
    "quant_scale_shape": bad(
        {"quant_scale": torch.zeros(3)},
        ValueError,
        "quant_scale must be (groups, columns) = (3, 8), got shape (3,)",
    ),
    "quant_scale_dtype": bad(
        {"quant_scale": torch.zeros(3, 8, dtype=torch.float64)},
        TypeError,
        "quant_scale must be float32 or float16 or bfloat16, got float64",
    ),
    "quant_offset_dynamic": bad(
        {"quant_offset": torch.zeros(3, 8)},
        ValueError,
        "quant_offset must be None with quant_mode 1 (dynamic), got a tensor of shape (3, 8)",
    ),
    "quant_offset_alone": bad(
        {"quant_scale": None},
        ValueError,
        "quant_scale is required with quant_offset, got a tensor of shape (8,) and None",
        static,
    ),
    "quant_offset_shape": bad(
        {"quant_offset": torch.zeros(7)},
        ValueError,
        "quant_offset must be of the shape of quant_scale = (8,), got shape (7,)",
        static,
    ),
    "quant_offset_dtype": bad(
        {"quant_offset": torch.zeros(8).half()},
        TypeError,
        "quant_offset must be float32, got float16",
        static,
    ),
    "group_index_dtype": bad(
        {"group_index": torch.zeros(3)}, TypeError, "group_index must be int64, got float32"
    ),
    "group_index_rank": bad(
        {"group_index": torch.zeros(3, 2, dtype=torch.int64)},
        ValueError,
        "group_index must be 1-D (groups,), got shape (3, 2)",
    ),
    "group_index_empty": bad(
        {"group_index": torch.zeros(0, dtype=torch.int64)},
        ValueError,
        "group_index must not be empty, got shape (0,)",
    ),
    "quant_mode": bad(
        {"quant_mode": 2}, ValueError, "quant_mode must be 0 (static) or 1 (dynamic), got 2"
    ),
    "swiglu_mode": bad({"swiglu_mode": 4}, ValueError, "swiglu_mode must be 0 (halves), 1 ("),
    "activate_left": bad(
        {"activate_left": False},
        ValueError,
        "activate_left must be True with swiglu_mode 1, got False",
        gpt_oss,
    ),
    "clamp_limit": bad(
        {"clamp_limit": 0.0}, ValueError, "clamp_limit must be > 0 and finite, got 0.0", gpt_oss
    ),
    "dst_type": bad(
        {"dst_type": 291},
        NotImplementedError,
        "dst_type must be None or torch.int8 (1), got 291; npu_dequant_swiglu_quant is computed",
    ),
    "round_mode": bad(
        {"round_mode": 2},
        NotImplementedError,
        "round_mode must be None or 0 (half to even), which int8 takes, got 2",
    ),
    "activate_dim": bad(
        {"activate_dim": 0},
        NotImplementedError,
        "activate_dim must be None, -1 or 1, the last axis of x, got 0",
    ),
}

TESTED = [
    Tested(
        name="npu_dequant_swiglu_quant",
        samples={
            "groups": call,
            "right": lambda: call(activate_left=False),
            "tail": lambda: call(tail=3),
            "no_rows_count": lambda: call(counts=(0, 0), tail=2),
            "smooth": lambda: call(quant_scale=some(3, 8)),
            "smooth_float16": lambda: call(quant_scale=some(3, 8, dtype=torch.float16)),
            "bias_int32": lambda: call(bias=torch.arange(48, dtype=torch.int32).view(3, 16) * 50),
            "bias_float32": lambda: call(bias=some(3, 16)),
            "gpt_oss": gpt_oss,
            "clamped_halves": lambda: gpt_oss(2),
            "clamped_halves_right": lambda: {**gpt_oss(2), "activate_left": False},
            "clamped_after_silu": lambda: gpt_oss(3, tail=1),
            "ungrouped": ungrouped,
            "one_axis": lambda: ungrouped(
                weight_scale=some(16) * 0.001, bias=some(16), quant_scale=some(8)
            ),
            "column": lambda: ungrouped(activation_scale=some(5, 1)),
            "no_activation_scale": lambda: call(activation_scale=None),
            "static": static,
            "static_groups": lambda: call(
                quant_mode=0, quant_scale=some(3, 8) * 0.02, quant_offset=some(3, 8), tail=2
            ),
            "static_number": lambda: static(quant_scale=some(1) * 0.02, quant_offset=some(1)),
            "static_number_a_group": lambda: (
                call(
                    quant_mode=0, quant_scale=some(3) * 0.02, quant_offset=some(3), group_index=None
                )
                | {"group_index": torch.tensor((3, 0, 4))}
            ),
            "static_without_scale": lambda: static(quant_scale=None, quant_offset=None),
            "static_clamped": lambda: static(quant_scale=some(8) * 1e-4, quant_offset=None),
            "bfloat16": floats,
            "float16": lambda: floats(torch.float16, quant_scale=some(8)),
            "zeros": lambda: floats() | {"x": torch.zeros(5, 16).bfloat16()},
            "three_axes": lambda: ungrouped(
                x=call(counts=(6,))["x"].view(2, 3, 16), activation_scale=some(2, 3)
            ),
            "one_row": lambda: call(counts=(1,)),
            "no_rows": lambda: floats(rows=0),
            "dst_type": lambda: call(dst_type=1, round_mode=0, activate_dim=-1),
            "large": lambda: call(counts=(20, 0, 7, 33), tail=4, h=640, quant_scale=some(4, 640)),
        },
        oracle=oracle,
        undefined=defined,
        node="DequantSwigluQuant",
        attributes=lambda case: {
            "quant_mode": "dynamic" if case["quant_mode"] else "static",
            "activate_left": case.get("activate_left", False),
            "swiglu_mode": case.get("swiglu_mode", 0),
            "clamp_limit": case.get("clamp_limit", 7.0),
            "glu_alpha": case.get("glu_alpha", 1.702),
            "glu_bias": case.get("glu_bias", 1.0),
        },
        errors=ERRORS,
        value_errors={
            "count_negative": bad(
                {"group_index": torch.tensor([3, -1, 4])},
                ValueError,
                "group_index must hold counts >= 0, of at most m = 7 rows in all, "
                "got group_index[1] = -1 after 3 rows",
            ),
            "counts_past_the_rows": bad(
                {"group_index": torch.tensor([3, 0, 5])},
                ValueError,
                "group_index must hold counts >= 0, of at most m = 7 rows in all, "
                "got group_index[2] = 5 after 3 rows",
            ),
        },
    )
]
