"""npu_grouped_matmul, row by row."""

import contextlib

import torch
from errors import Bad
from operators import Tested
from records.grouped_matmul_finalize_routing import without_compiler, without_int_mm

INT8, INT32, FLOAT16, FLOAT32, BFLOAT16 = 1, 3, 5, 6, 15
CODES = {
    INT8: torch.int8,
    INT32: torch.int32,
    FLOAT16: torch.float16,
    FLOAT32: torch.float32,
    BFLOAT16: torch.bfloat16,
}


def made(*shape, dtype=torch.int8, seed=17):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    if dtype in (torch.int8, torch.int32):
        high = 128 if dtype == torch.int8 else 100_000
        return torch.randint(-high, high, shape, dtype=dtype, generator=generator)
    return torch.randn(*shape, generator=generator).to(dtype)


def positive(*shape, seed=19):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.01


def call(counts=(2, 0, 3), tail=0, k=8, n=5, dtype=torch.int8, scaled=False, **kwargs):
    """One x and one weight, groups of rows by counts."""
    m, e = sum(counts) + tail, len(counts)
    case = {
        "x": [made(m, k, dtype=dtype)],
        "weight": [made(e, k, n, dtype=dtype)],
        "group_list": torch.tensor(counts),
        "split_item": 3,
        "group_type": 0,
        "group_list_type": 1,
    }
    if dtype == torch.int8 and not scaled:
        case["output_dtype"] = INT32
    if scaled:
        case["scale"] = [positive(e, n)]
        case["per_token_scale"] = [positive(m) * 100]
        case["output_dtype"] = BFLOAT16
    return {**case, **kwargs}


def unstacked(**kwargs):
    """The same with a weight, a scale and a bias for each group."""
    case = call(**kwargs)
    for name in ("weight", "scale", "bias", "antiquant_scale", "antiquant_offset"):
        if case.get(name):
            case[name] = list(case[name][0])
    return case


def several(dtype=torch.float16, split_item=0, group_type=-1, n=(5, 6), bias=True, **kwargs):
    """Two x, each with its weight."""
    case = {
        "x": [made(3, 8, dtype=dtype), made(4, 6, dtype=dtype)],
        "weight": [made(8, n[0], dtype=dtype), made(6, n[1], dtype=dtype)],
        "split_item": split_item,
        "group_type": group_type,
    }
    if bias:
        kind = {torch.float16: torch.float16, torch.int8: torch.int32}.get(dtype, torch.float32)
        case["bias"] = [made(each, dtype=kind) for each in n]
    if dtype == torch.int8:
        case["output_dtype"] = INT32
    return {**case, **kwargs}


def antiquantised(dtype=torch.float16, offset=True, **kwargs):
    case = call(dtype=dtype)
    case["weight"] = [made(3, 8, 5)]
    case["antiquant_scale"] = [positive(3, 5).to(dtype)]
    if offset:
        case["antiquant_offset"] = [made(3, 5, dtype=dtype)]
    case["bias"] = [made(3, 5, dtype=torch.float16 if dtype == torch.float16 else torch.float32)]
    return {**case, **kwargs}


def columns(**kwargs):
    case = {
        "x": [made(6, 10, dtype=torch.float16)],
        "weight": [made(10, 5, dtype=torch.float16)],
        "group_list": torch.tensor([4, 4, 10]),
        "split_item": 3,
        "group_type": 2,
    }
    return {**case, **kwargs}


def listed(**kwargs):
    """The overload whose group_list is ints: one x, a weight for each group."""
    case = {
        "x": [made(7, 8, dtype=torch.float16)],
        "weight": [made(8, 5, dtype=torch.float16, seed=i) for i in range(3)],
        "bias": [made(5, dtype=torch.float16, seed=i) for i in range(3)],
        "group_list": [2, 3, 7],
        "split_item": 3,
    }
    return {**case, **kwargs}


def several_listed(**kwargs):
    case = several(**{"group_list": [3, 7], **kwargs})
    del case["group_type"]
    return case


def int64_scale(scale):
    """A float32's bits in the low half, and something in the high half."""
    return (scale.view(torch.int32).long() & 0xFFFFFFFF) | (1 << 46)


ACTIVATIONS = {
    0: lambda y: y,
    1: lambda y: max(y, 0.0),
    2: lambda y: (
        0.5 * y * (1 + float(torch.tanh(torch.tensor(0.7978845608 * (y + 0.044715 * y**3)))))
    ),
    4: lambda y: (
        y
        / (1 + float(torch.exp(torch.tensor(-1.702 * abs(y)))))
        * float(torch.exp(torch.tensor(0.851 * (y - abs(y)))))
    ),
    5: lambda y: y / (1 + float(torch.exp(torch.tensor(-y)))),
}


def oracle(
    x,
    weight,
    *,
    bias=None,
    scale=None,
    antiquant_scale=None,
    antiquant_offset=None,
    per_token_scale=None,
    group_list=None,
    split_item=0,
    group_type=None,
    group_list_type=0,
    act_type=0,
    tuning_config=None,
    output_dtype=None,
):
    del tuning_config
    groups = [] if group_list is None else [int(value) for value in group_list]
    if group_list_type != 1:
        groups = [end - start for start, end in zip([0, *groups], groups)]
    stacked = weight[0].dim() == 3

    def of(tensors, g):
        return None if not tensors else tensors[0][g] if stacked else tensors[g]

    dtype = output_dtype if isinstance(output_dtype, torch.dtype) else CODES.get(output_dtype)
    if dtype is None:
        int8_dtype = torch.int32 if scale is None else torch.float16
        if scale is not None and scale[0].dtype == torch.int64:
            int8_dtype = torch.int8
        dtype = int8_dtype if x[0].dtype == torch.int8 else x[0].dtype
    if group_type == 2:
        out, start = [], 0
        for count in groups:
            part = slice(start, start + count)
            out.append(x[0][:, part].double() @ weight[0][part].double())
            start += count
        return [torch.stack(out).to(dtype)]

    def row(values, g, per_token):
        w, b = of(weight, g), of(bias, g)
        if antiquant_scale is not None:
            wide = torch.float16 if values.dtype == torch.float16 else torch.float32
            w = w.to(wide)
            if antiquant_offset is not None:
                w = w + of(antiquant_offset, g).to(wide)
            w = (w * of(antiquant_scale, g).to(wide)).to(values.dtype)
        acc = values.double() @ w.double()  # exact for int8
        if b is not None:
            acc = acc + b.double()
        if scale is None:
            return acc
        factor = of(scale, g)
        if factor.dtype == torch.int64:
            factor = (factor % 2**32).sub(2**31).add(2**31).to(torch.int32).view(torch.float32)
        y = acc.float() * factor.float()
        if per_token is not None:
            y = y * per_token
        if dtype == torch.int8:
            return torch.tensor([max(-128, min(127, round(each))) for each in y.tolist()])
        if act_type == 0:
            return y
        return torch.tensor([ACTIVATIONS[act_type](each) for each in y.tolist()])

    if len(x) == len(weight) and not stacked and not (len(x) == 1 and groups):
        outs = []
        for g, each in enumerate(x):
            flat = each.reshape(-1, each.shape[-1])
            tokens = None if per_token_scale is None else per_token_scale[g].flatten()
            made = [
                row(values, g, None if tokens is None else tokens[r])
                for r, values in enumerate(flat)
            ]
            out = torch.stack(made) if made else torch.zeros(0, weight[g].shape[1])
            outs.append(out.to(dtype).reshape(*each.shape[:-1], -1))
        return [torch.cat(outs)] if split_item in (2, 3) else outs
    out = torch.zeros(x[0].shape[0], weight[0].shape[-1], dtype=torch.float64)
    start = 0
    for g, count in enumerate(groups):
        for r in range(start, start + count):
            token = None if per_token_scale is None else per_token_scale[0][r]
            out[r] = row(x[0][r], g, token).double()
        start += count
    if split_item in (0, 1):
        return [part.to(dtype) for part in out[: sum(groups)].split(groups)]
    return [out.to(dtype)]


def bad(change, error, message, base=call):
    return Bad(change, error, message, base)


COUNTS = "group_list must hold counts >= 0, of at most m = 5 rows in all, got "

ERRORS = {
    "weights": bad(
        {"weight": [torch.zeros(8, 5, dtype=torch.int8)] * 2},
        ValueError,
        "group_list must be (e,) = (2,), got shape (3,)",
    ),
    "no_x": bad({"x": []}, ValueError, "x must be a list of at least one tensor, got none"),
    "bias_dtype": bad(
        {"bias": [torch.zeros(3, 5)]}, TypeError, "bias[0] must be int32, got float32"
    ),
    "bias_shape": bad(
        {"bias": [torch.zeros(5, dtype=torch.int32)]},
        ValueError,
        "bias[0] must be (e, n) = (3, 5), got shape (5,)",
    ),
    "bias_count": bad(
        {"bias": [torch.zeros(3, 5, dtype=torch.int32)] * 2},
        ValueError,
        "bias must have as many tensors as weight, 1, got 2",
    ),
    "offset": bad(
        {"offset": [torch.zeros(3, 5)]},
        NotImplementedError,
        "offset is not supported yet and must be None, got",
    ),
    "x_dtype_code": bad(
        {"x_dtype": 290},
        NotImplementedError,
        "x_dtype is not supported yet and must be None, got 290;",
    ),
    "split_item_tensor": bad(
        {"split_item": 1}, ValueError, "split_item must be 2 or 3 (one result) where one x is cut"
    ),
    "split_item": bad({"split_item": 4}, ValueError, "split_item must be 0 (several results), 1"),
    "group_type": bad({"group_type": 1}, ValueError, "group_type must be -1 (no groups), 0 ("),
    "group_type_none": bad(
        {"group_type": None}, TypeError, "group_type is required where group_list is no list"
    ),
    "act_type": bad(
        {"act_type": 3}, ValueError, "act_type must be 0 (none), 1 (relu), 2 (gelu, by tanh), 4"
    ),
    "act_type_without_tokens": bad(
        {"act_type": 1}, ValueError, "act_type must be 0 without per_token_scale, got 1: an"
    ),
    "group_list_type": bad(
        {"group_list_type": 2},
        ValueError,
        "group_list_type must be 0 (totals) or 1 (counts), got 2",
    ),
    "group_list": bad(
        {"group_list": None},
        TypeError,
        "group_list is required: expected int64 (e,), the groups of one x, got None",
    ),
    "group_list_dtype": bad(
        {"group_list": torch.zeros(3, dtype=torch.int32)},
        TypeError,
        "group_list must be int64, got int32",
    ),
    "output_dtype": bad(
        {"output_dtype": INT8}, TypeError, "output_dtype must be torch.int32, got torch.int8"
    ),
    "output_dtype_float": bad(
        {"output_dtype": FLOAT32},
        TypeError,
        "output_dtype must be torch.float16, got torch.float32",
        lambda: call(dtype=torch.float16),
    ),
    "k": bad(
        {"x": [torch.zeros(5, 7, dtype=torch.int8)]},
        ValueError,
        "weight[0] must be (e, k, n) with the k of x, 7, got shape (3, 8, 5)",
    ),
    "k_large": bad(
        {
            "x": [torch.zeros(5, 1 << 17, dtype=torch.int8)],
            "weight": [torch.zeros(3, 1 << 17, 1, dtype=torch.int8)],
        },
        ValueError,
        "x[0] must have k < 131072, got shape (5, 131072)",
    ),
    "weight_dtype": bad(
        {"weight": [torch.zeros(3, 8, 5)]}, TypeError, "weight[0] must be int8, got float32"
    ),
    "x_dtype": bad(
        {"x": [torch.zeros(5, 8, dtype=torch.int64)]},
        TypeError,
        "x must be int8 or float16 or bfloat16 or float32, got int64",
    ),
    "scale_of_floats": bad(
        {"scale": [torch.zeros(3, 5)]},
        TypeError,
        "x with scale must be int8, got float16",
        lambda: call(dtype=torch.float16),
    ),
    "scale_shape": bad(
        {"scale": [torch.zeros(2, 5)]},
        ValueError,
        "scale[0] must be (e, n) = (3, 5), got shape (2, 5)",
        lambda: call(scaled=True),
    ),
    "per_token_alone": bad(
        {"scale": None, "output_dtype": INT32},
        ValueError,
        "scale is required, a float, with per_token_scale, got None or int64",
        lambda: call(scaled=True),
    ),
    "per_token_shape": bad(
        {"per_token_scale": [torch.zeros(4)]},
        ValueError,
        "per_token_scale[0] must be (m,) = (5,), got shape (4,)",
        lambda: call(scaled=True),
    ),
    "antiquant_offset_alone": bad(
        {"antiquant_offset": [torch.zeros(3, 5).half()]},
        ValueError,
        "antiquant_scale is required with antiquant_offset, got None",
        lambda: call(dtype=torch.float16),
    ),
    "antiquant_dtype": bad(
        {"antiquant_scale": [torch.zeros(3, 5)]},
        TypeError,
        "antiquant_scale[0] must be float16, got float32",
        antiquantised,
    ),
    "several_counts": bad(
        {"weight": [torch.zeros(8, 5).half()]},
        ValueError,
        "x must have as many tensors as weight, 1, got 2",
        several,
    ),
    "n_differs": bad(
        {"split_item": 2},
        ValueError,
        "weight[1] must have the n of the others, 5, got shape (6, 6)",
        several,
    ),
    "columns_apart": bad(
        {"split_item": 0},
        NotImplementedError,
        "split_item must be 2 or 3 with group_type 2, got 0 or 1",
        columns,
    ),
}

LIST_ERRORS = {
    "group_type": bad(
        {"group_type": 0},
        ValueError,
        "group_type must be None with group_list as ints, got 0",
        listed,
    ),
    "group_list_type": bad(
        {"group_list_type": 1},
        ValueError,
        "group_list_type must be 0 (totals) with group_list as ints, got 1",
        listed,
    ),
    "decreasing": bad(
        {"group_list": [2, 1, 7]},
        ValueError,
        "group_list must hold totals that do not decrease, of at most m = 7 rows in all, "
        "got group_list[1] = 1 after 2 rows",
        listed,
    ),
    "past_m": bad(
        {"group_list": [2, 3, 8]},
        ValueError,
        "group_list must hold totals that do not decrease, of at most m = 7 rows in all, "
        "got group_list[2] = 8 after 3 rows",
        listed,
    ),
    "length": bad(
        {"group_list": [2, 7]},
        ValueError,
        "group_list must have an element for each weight, 3, got 2",
        listed,
    ),
    "sizes": bad(
        {"group_list": [2, 7]},
        ValueError,
        "group_list must say the rows of each x, [3, 4], got 2 rows at group_list[0]",
        several_listed,
    ),
}

TOLERANCE = 2**-8
WHY = "the oracle adds in float64; the order of a float matmul's adds is torch's"


def lowered_node(case):
    """TorchAIR's converter refuses float32 and int8 by name, and any dtype beside ints; it fails
    where ints give several results.
    """
    dtype, groups = case.get("output_dtype"), case.get("group_list")
    refused = dtype in (FLOAT32, INT8) or isinstance(dtype, torch.dtype)
    fails = isinstance(groups, list) and case["split_item"] in (0, 1)
    return None if refused or fails else "GroupedMatmul"


def of_int8(case):
    return case["x"][0].dtype == torch.int8


SAMPLES = {
    "int32": call,
    "totals": lambda: call(group_list=torch.tensor([2, 2, 5]), group_list_type=0),
    "tail": lambda: call(tail=3),
    "one_row": lambda: call(counts=(1,)),
    "no_rows_count": lambda: call(counts=(0, 0), tail=2),
    "bfloat16_of_int8": lambda: call(scaled=True),
    "float32_of_int8": lambda: call(scaled=True, output_dtype=FLOAT32),
    "float16_of_int8": lambda: call(scaled=True, output_dtype=FLOAT16),
    "no_per_token_scale": lambda: call(scaled=True, per_token_scale=None),
    "scale_bfloat16": lambda: call(scaled=True, scale=[positive(3, 5).bfloat16()]),
    "scale_int64": lambda: call(scale=[int64_scale(positive(3, 5))], output_dtype=None),
    "scale_int64_int8": lambda: call(scale=[int64_scale(positive(3, 5))], output_dtype=INT8),
    "scale_int64_float16": lambda: call(scale=[int64_scale(-positive(3, 5))], output_dtype=FLOAT16),
    "bias_int32": lambda: call(bias=[made(3, 5, dtype=torch.int32)]),
    "bias_and_scale": lambda: call(scaled=True, bias=[made(3, 5, dtype=torch.int32)]),
    "split_item_2": lambda: call(split_item=2),
    "long_k": lambda: call(k=3000),
    "large": lambda: call(counts=(30, 17, 53), k=256, n=128),
    "unstacked": lambda: unstacked(scaled=True, bias=[made(3, 5, dtype=torch.int32)], tail=1),
    "unstacked_int32": unstacked,
    "several_int8": lambda: several(dtype=torch.int8),
    "several_joined": lambda: several(
        torch.int8, split_item=3, group_type=0, n=(5, 5), group_list=torch.tensor([3, 7])
    ),
    "tuning_config": lambda: call(tuning_config=[16]),
}

FLOAT_SAMPLES = {
    "float16": lambda: call(dtype=torch.float16),
    "bfloat16": lambda: call(dtype=torch.bfloat16, tail=1),
    "float32": lambda: call(dtype=torch.float32),
    "float16_bias": lambda: call(dtype=torch.float16, bias=[made(3, 5, dtype=torch.float16)]),
    "float32_bias": lambda: call(dtype=torch.float32, bias=[made(3, 5, dtype=torch.float32)]),
    "bfloat16_bias": lambda: call(dtype=torch.bfloat16, bias=[made(3, 5, dtype=torch.float32)]),
    "unstacked_float16": lambda: unstacked(
        dtype=torch.float16, bias=[made(3, 5, dtype=torch.float16)]
    ),
    "several": several,
    "several_bfloat16": lambda: several(torch.bfloat16, split_item=1),
    "more_axes": lambda: several(
        x=[made(2, 3, 8, dtype=torch.float16), made(2, 2, 6, dtype=torch.float16)]
    ),
    "joined": lambda: several(split_item=2, group_type=0, n=(5, 5)),
    "columns": columns,
    "columns_counts": lambda: columns(group_list=torch.tensor([1, 0, 5]), group_list_type=1),
    "antiquant": antiquantised,
    "antiquant_bfloat16": lambda: antiquantised(torch.bfloat16),
    "antiquant_scale_alone": lambda: antiquantised(offset=False),
    **{f"activation_{a}": lambda a=a: call(scaled=True, act_type=a) for a in (1, 2, 4, 5)},
}

TESTED = [
    Tested(
        name="npu_grouped_matmul",
        samples={**SAMPLES, **FLOAT_SAMPLES},
        decomposed=False,
        oracle=oracle,
        tolerance=TOLERANCE,
        exact=lambda case: of_int8(case) and not case.get("act_type"),
        why=WHY,
        node=lowered_node,
        attributes=lambda case: {
            "split_item": case["split_item"],
            "group_type": case["group_type"],
            "group_list_type": case.get("group_list_type", 0),
            "act_type": case.get("act_type", 0),
        },
        paths={
            "compiled": contextlib.nullcontext,
            "int_mm": without_compiler,
            "float32": without_int_mm,
        },
        errors=ERRORS,
        value_errors={
            "count_negative": bad(
                {"group_list": torch.tensor([2, -1, 3])}, ValueError, COUNTS + "group_list[1] = -1"
            ),
            "counts_past_m": bad(
                {"group_list": torch.tensor([2, 1, 3])}, ValueError, COUNTS + "group_list[2] = 3"
            ),
            "sizes": bad(
                {"group_list": torch.tensor([4, 7])},
                ValueError,
                "group_list must say the rows of each x, [3, 4], got 4 rows at group_list[0]",
                SAMPLES["several_joined"],
            ),
        },
    ),
    Tested(
        name="npu_grouped_matmul.List",
        samples={
            "joined": listed,
            "apart": lambda: listed(split_item=0),
            "apart_1": lambda: listed(split_item=1, group_list=[0, 3, 5]),
            "several": several_listed,
            "several_joined": lambda: several_listed(split_item=3, n=(5, 5)),
            "int8": lambda: listed(
                x=[made(7, 8)],
                weight=[made(8, 5, seed=i) for i in range(3)],
                bias=None,
                output_dtype=torch.int32,
            ),
        },
        decomposed=False,
        oracle=oracle,
        tolerance=TOLERANCE,
        exact=of_int8,
        why=WHY,
        node=lowered_node,
        attributes=lambda case: {"split_item": case["split_item"], "group_type": -1},
        errors=LIST_ERRORS,
    ),
]
