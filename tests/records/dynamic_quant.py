"""npu_dynamic_quant, row by row in numpy's float32, whose division and rounding are IEEE's."""

import numpy as np
import torch
from errors import Bad
from operators import Tested


def call(shape=(5, 16), dtype=torch.bfloat16, **kwargs):
    generator = torch.Generator().manual_seed(5)
    return {"input": (torch.randn(shape, generator=generator) * 3).to(dtype), **kwargs}


def smooth(dtype=torch.bfloat16, **kwargs):
    made = call(dtype=dtype, **kwargs)
    scales = torch.linspace(0.25, 2, made["input"].shape[-1]).to(dtype)
    return {**made, "smooth_scales": scales}


def grouped(totals=(2, 2, 6), shape=(6, 16), **kwargs):
    made = call(shape=shape)
    scales = torch.linspace(0.25, 2, len(totals) * shape[-1]).view(len(totals), -1).bfloat16()
    return {
        **made,
        "smooth_scales": scales,
        "group_index": torch.tensor(totals, dtype=torch.int32),
        **kwargs,
    }


def with_zeros():
    made = call()
    made["input"][1] = 0
    made["input"][3] = -0.0
    return made


def oracle(
    input,  # noqa: A002
    smooth_scales=None,
    group_index=None,
    dst_type=None,
    quant_mode="pertoken",
    dst_type_max=0.0,
):
    del dst_type, quant_mode, dst_type_max
    rows = input.float().reshape(-1, input.shape[-1]).numpy()
    if smooth_scales is not None:
        factors = smooth_scales.float().numpy()
        if group_index is not None:
            ends = group_index.tolist()
            groups = [sum(end <= r for end in ends) for r in range(len(rows))]
            factors = np.stack([factors[g] for g in groups])
        rows = rows * factors
    y, scales = np.zeros(rows.shape, np.int8), np.zeros(len(rows), np.float32)
    for i, row in enumerate(rows):
        scales[i] = np.abs(row).max() / np.float32(127)
        if scales[i] != 0:
            y[i] = np.rint(row / scales[i]).astype(np.int8)
    shape = input.shape
    return torch.from_numpy(y).reshape(shape), torch.from_numpy(scales).reshape(shape[:-1])


TESTED = [
    Tested(
        name="npu_dynamic_quant",
        samples={
            "bfloat16": call,
            "float16": lambda: call(dtype=torch.float16),
            "float32": lambda: call(dtype=torch.float32),
            "smooth_scales": smooth,
            "smooth_scales_float16": lambda: smooth(dtype=torch.float16),
            "groups": grouped,
            "groups_three_axes": lambda: grouped(shape=(2, 3, 8)),
            "rows_of_zeros": with_zeros,
            "one_row": lambda: call(shape=(1, 4)),
            "one_column": lambda: call(shape=(4, 1)),
            "no_rows": lambda: call(shape=(0, 4)),
            "three_axes": lambda: call(shape=(2, 3, 8)),
            "dst_type": lambda: call(dst_type=1),
            "large": lambda: call(shape=(64, 2048)),
        },
        oracle=oracle,
        node="DynamicQuant",
        errors={
            "dtype": Bad(
                {"input": torch.zeros(5, 16, dtype=torch.int8)},
                TypeError,
                "input must be float16 or bfloat16 or float32, got int8",
                call,
            ),
            "no_columns": Bad(
                {"input": torch.zeros(5, 0)},
                ValueError,
                "input must be (..., k) with k > 0, got shape (5, 0)",
                call,
            ),
            "smooth_scales_dtype": Bad(
                {"smooth_scales": torch.zeros(16)},
                TypeError,
                "smooth_scales must be bfloat16, got float32",
                call,
            ),
            "smooth_scales_shape": Bad(
                {"smooth_scales": torch.zeros(15).bfloat16()},
                ValueError,
                "smooth_scales must be (k,) = (16,), got shape (15,)",
                call,
            ),
            "group_index_alone": Bad(
                {"group_index": torch.zeros(2, dtype=torch.int32)},
                ValueError,
                "smooth_scales is required with group_index, got None and a tensor of shape (2,)",
                call,
            ),
            "group_index_dtype": Bad(
                {"group_index": torch.tensor([2, 2, 6])},
                TypeError,
                "group_index must be int32, got int64",
                grouped,
            ),
            "group_index_groups": Bad(
                {"group_index": torch.tensor([2, 6], dtype=torch.int32)},
                ValueError,
                "smooth_scales must be (groups, k) = (2, 16), got shape (3, 16)",
                grouped,
            ),
            "dst_type": Bad(
                {"dst_type": 16}, NotImplementedError, "dst_type must be 1 on CPU, got 16", call
            ),
            "quant_mode": Bad(
                {"quant_mode": "pertensor"},
                NotImplementedError,
                "quant_mode must be 'pertoken' on CPU, got 'pertensor'",
                call,
            ),
            "dst_type_max": Bad(
                {"dst_type_max": 15.0},
                NotImplementedError,
                "dst_type_max must be 0.0 on CPU, got 15.0",
                call,
            ),
        },
        value_errors={
            "decreasing": Bad(
                {"group_index": torch.tensor([2, 1, 6], dtype=torch.int32)},
                ValueError,
                "group_index must hold totals that do not decrease, of at most m = 6 rows in all, "
                "got group_index[1] = 1 after 2 rows",
                grouped,
            ),
            "end": Bad(
                {"group_index": torch.tensor([2, 2, 5], dtype=torch.int32)},
                ValueError,
                "group_index must end with the number of rows, 6, got 5",
                grouped,
            ),
        },
    )
]
