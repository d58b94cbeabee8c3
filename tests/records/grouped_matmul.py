"""npu_grouped_matmul, group by group."""

import torch
from errors import Bad
from operators import Tested

INT32, FLOAT16, FLOAT32, BFLOAT16 = 3, 5, 6, 15


def call(counts=(2, 0, 3), tail=0, k=8, n=5, dtype=torch.int8, scaled=False, **kwargs):
    generator = torch.Generator().manual_seed(17)
    m, e = sum(counts) + tail, len(counts)

    def made(*shape):
        if dtype == torch.int8:
            return torch.randint(-128, 128, shape, dtype=dtype, generator=generator)
        return torch.randn(*shape, generator=generator).to(dtype)

    case = {
        "x": [made(m, k)],
        "weight": [made(e, k, n)],
        "group_list": torch.tensor(counts),
        "split_item": 3,
        "group_type": 0,
        "group_list_type": 1,
    }
    if dtype == torch.int8 and not scaled:
        case["output_dtype"] = INT32
    if scaled:
        case["scale"] = [torch.rand(e, n, generator=generator) * 0.01]
        case["per_token_scale"] = [torch.rand(m, generator=generator)]
        case["output_dtype"] = BFLOAT16
    return {**case, **kwargs}


def oracle(
    x,
    weight,
    *,
    group_list,
    scale=None,
    per_token_scale=None,
    group_list_type=0,
    output_dtype=None,
    split_item=0,
    group_type=None,
    tuning_config=None,
):
    del split_item, group_type, tuning_config
    (x,), (weight,) = x, weight
    codes = {
        INT32: torch.int32,
        FLOAT16: torch.float16,
        FLOAT32: torch.float32,
        BFLOAT16: torch.bfloat16,
    }
    rows, start = [], 0
    for g, value in enumerate(group_list.tolist()):
        end = start + value if group_list_type else value
        for r in range(start, end):
            acc = x[r].double() @ weight[g].double()  # exact for int8
            if scale is not None:
                acc = acc.float() * scale[0][g].float()
                if per_token_scale is not None:
                    acc = acc * per_token_scale[0][r]
            rows.append(acc)
        start = end
    dtype = codes[output_dtype] if output_dtype else x.dtype
    out = torch.zeros(x.shape[0], weight.shape[2], dtype=torch.float64)
    for r, row in enumerate(rows):
        out[r] = row.double()
    return [out.to(dtype)]


TESTED = [
    Tested(
        name="npu_grouped_matmul",
        samples={
            "int32": call,
            "totals": lambda: call(group_list=torch.tensor([2, 2, 5]), group_list_type=0),
            "tail": lambda: call(tail=3),
            "one_row": lambda: call(counts=(1,)),
            "no_rows_count": lambda: call(counts=(0, 0), tail=2),
            "bfloat16_of_int8": lambda: call(scaled=True),
            "float32_of_int8": lambda: call(scaled=True, output_dtype=FLOAT32),
            "float16_of_int8": lambda: call(scaled=True, output_dtype=FLOAT16),
            "no_per_token_scale": lambda: call(scaled=True, per_token_scale=None),
            "scale_bfloat16": lambda: call(scaled=True, scale=[torch.rand(3, 5).bfloat16()]),
            "split_item_2": lambda: call(split_item=2),
            "long_k": lambda: call(k=3000),
            "large": lambda: call(counts=(30, 17, 53), k=256, n=128),
        },
        decomposed=False,
        oracle=oracle,
        # TorchAIR's converter refuses float32 of int8, which the kernel computes.
        node=lambda case: None if case.get("output_dtype") == FLOAT32 else "GroupedMatmul",
        attributes=lambda case: {
            "split_item": case["split_item"],
            "group_type": 0,
            "group_list_type": case["group_list_type"],
        },
        errors={
            "weights": Bad(
                {"weight": [torch.zeros(8, 5, dtype=torch.int8)] * 2},
                NotImplementedError,
                "weight must be a list of one tensor, got 2; supported are one x and one 3-D",
                call,
            ),
            "bias": Bad(
                {"bias": [torch.zeros(3, 5)]},
                NotImplementedError,
                "bias is not supported yet and must be None, got",
                call,
            ),
            "split_item": Bad(
                {"split_item": 1}, NotImplementedError, "split_item must be 2 or 3, got 1;", call
            ),
            "group_type": Bad(
                {"group_type": 2}, NotImplementedError, "group_type must be 0, got 2;", call
            ),
            "act_type": Bad(
                {"act_type": 1}, NotImplementedError, "act_type must be 0, got 1;", call
            ),
            "group_list_type": Bad(
                {"group_list_type": 2},
                ValueError,
                "group_list_type must be 0 (totals) or 1 (counts), got 2",
                call,
            ),
            "group_list": Bad(
                {"group_list": None},
                TypeError,
                "group_list is required: expected a tensor, int64 (e,), got None",
                call,
            ),
            "output_dtype": Bad(
                {"output_dtype": 1},
                TypeError,
                "output_dtype must be torch.int32, got torch.int8",
                call,
            ),
            "k": Bad(
                {"x": [torch.zeros(5, 7, dtype=torch.int8)]},
                ValueError,
                "weight must be (e, k, n) with the k of x, 7, got shape (3, 8, 5)",
                call,
            ),
            "weight_dtype": Bad(
                {"weight": [torch.zeros(3, 8, 5)]},
                TypeError,
                "weight must be int8, got float32",
                call,
            ),
        },
        value_errors={
            "count_negative": Bad(
                {"group_list": torch.tensor([2, -1, 3])},
                ValueError,
                "group_list must hold counts >= 0, of at most m = 5 rows in all, got group_list[1]",
                call,
            ),
            "counts_past_m": Bad(
                {"group_list": torch.tensor([2, 1, 3])},
                ValueError,
                "group_list must hold counts >= 0, of at most m = 5 rows in all, got group_list[2]",
                call,
            ),
        },
    )
]
