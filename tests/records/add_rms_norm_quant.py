"""What npu_add_rms_norm is fused with, row by row in numpy's float32."""

import numpy as np
import torch
from errors import Bad
from operators import Tested


def numbers(shape, seed, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def call(shape=(3, 16), dtype=torch.bfloat16, **kwargs):
    made = {"x1": numbers(shape, 0, dtype), "x2": numbers(shape, 1, dtype)}
    return {**made, "gamma": numbers(shape[-1:], 2, dtype) + 2, **kwargs}


def smooth(*names, **kwargs):
    made = call(**kwargs)
    k, dtype = made["x1"].shape[-1], made["x1"].dtype
    return {**made, **{n: torch.linspace(0.25, 2, k).to(dtype) * int(n[-1]) for n in names}}


def normalised(x1, x2, gamma, epsilon, beta=None):
    """The sum, and y rounded to its dtype; float32 as the kernel's, with float64 sums."""
    total = (x1.double() + x2.double()).to(x1.dtype)
    rows = []
    for row in total.double().reshape(-1, total.shape[-1]):
        one = (row.square().sum() / len(row) + epsilon) ** -0.5
        y = row * one * gamma.double()
        rows.append(y if beta is None else y + beta.double())
    y = torch.stack(rows) if rows else total.double().reshape(-1, total.shape[-1])
    return total, y.reshape(total.shape).to(x1.dtype)


def oracle_cast(x1, x2, gamma, epsilon=1e-6):
    total, y = normalised(x1, x2, gamma, epsilon)
    mean = total.double().square().sum(-1, keepdim=True) / total.shape[-1]
    return y.float(), y, ((mean + epsilon) ** -0.5).float(), total


def oracle_dynamic(
    x1, x2, gamma, smooth_scale1=None, smooth_scale2=None, beta=None, *, epsilon=1e-6,
    output_mask=None, y_dtype=None,
):  # fmt: skip
    del y_dtype
    total, y = normalised(x1, x2, gamma, epsilon, beta)
    both = smooth_scale1 is not None and smooth_scale2 is not None
    mask = [True, both] if output_mask is None else output_mask
    ys, scales = [], []
    for factor, given in zip((smooth_scale1, smooth_scale2), mask):
        q, scale = torch.zeros(0, dtype=torch.int8), torch.zeros(0)
        if given:
            wide = y.float().reshape(-1, y.shape[-1]).numpy()
            wide = wide if factor is None else wide * factor.float().numpy()
            q, scale = np.zeros(wide.shape, np.int8), np.zeros(len(wide), np.float32)
            for i, row in enumerate(wide):
                scale[i] = np.abs(row).max() / np.float32(127)
                if scale[i]:
                    q[i] = np.rint(row / scale[i]).astype(np.int8)
            q = torch.from_numpy(q).reshape(y.shape)
            scale = torch.from_numpy(scale).reshape(y.shape[:-1])
        ys.append(q)
        scales.append(scale)
    return (*ys, total, *scales)


def call_quant(dtype=torch.bfloat16, scale_dtype=torch.float32, points=torch.int32, **kwargs):
    made = call(dtype=dtype)
    scales = torch.linspace(0.01, 0.04, 16).to(scale_dtype)
    zeros = torch.arange(-8, 8).to(points)
    return {**made, "scales1": scales, "zero_points1": zeros, **kwargs}


def oracle_quant(
    x1, x2, gamma, scales1, zero_points1=None, beta=None, scales2=None, zero_points2=None, *,
    axis=-1, epsilon=1e-6, div_mode=True, dst_type=None,
):  # fmt: skip
    del axis, dst_type
    total, y = normalised(x1, x2, gamma, epsilon, beta)
    found = []
    for scales, points in ((scales1, zero_points1), (scales2, zero_points2)):
        q = np.zeros(y.shape, np.int8)
        if scales is not None:
            wide, factor = y.float().numpy(), scales.float().numpy()
            wide = wide / factor if div_mode else wide * factor
            wide = wide if points is None else wide + points.float().numpy()
            q = np.clip(np.rint(wide), -128, 127).astype(np.int8)
        found.append(torch.from_numpy(q))
    return (*found, total)


WHY = "the oracle sums in float64, the kernel in float32, so that a rounding may differ"
GAMMA = Bad(
    {"gamma": torch.zeros(15).bfloat16()},
    ValueError,
    "gamma must be (k,) = (16,), got shape (15,)",
    call,
)

TESTED = [
    Tested(
        name="npu_add_rms_norm_cast",
        samples={
            "bfloat16": call,
            "float16": lambda: call(dtype=torch.float16),
            "three_axes": lambda: call((2, 3, 8)),
            "one_row": lambda: call((1, 8)),
            "no_rows": lambda: call((0, 8)),
            "epsilon": lambda: call(epsilon=0.5),
            "large": lambda: call((40, 1024)),
        },
        oracle=oracle_cast,
        node="AddRmsNormCast",
        attributes=lambda case: {"epsilon": case.get("epsilon", 1e-6)},
        tolerance=2**-7,
        why=WHY,
        errors={
            "dtype": Bad(
                {"x1": torch.zeros(3, 16)},
                TypeError,
                "x1 must be float16 or bfloat16, got float32",
                call,
            ),
            "x2_shape": Bad(
                {"x2": torch.zeros(1, 16).bfloat16()},
                ValueError,
                "x2 must be of the shape of x1 = (3, 16), got shape (1, 16)",
                call,
            ),
        },
    ),
    Tested(
        name="npu_add_rms_norm_dynamic_quant",
        samples={
            "bfloat16": call,
            "float16": lambda: call(dtype=torch.float16),
            "one_smooth_scale": lambda: smooth("smooth_scale1"),
            "two_smooth_scales": lambda: smooth("smooth_scale1", "smooth_scale2"),
            "the_second_alone": lambda: smooth("smooth_scale2", output_mask=[False, True]),
            "both_without_scales": lambda: call(output_mask=[True, True]),
            "the_first_of_two": lambda: smooth(
                "smooth_scale1", "smooth_scale2", output_mask=[True, False]
            ),
            "beta": lambda: call(beta=numbers((16,), 3)),
            "three_axes": lambda: call((2, 3, 8)),
            "one_row": lambda: call((1, 8)),
            "no_rows": lambda: call((0, 8)),
            "y_dtype": lambda: call(y_dtype=1),
            "epsilon": lambda: call(epsilon=0.5),
            "large": lambda: call((40, 1024)),
        },
        oracle=oracle_dynamic,
        node="AddRmsNormDynamicQuant",
        attributes=lambda case: {"epsilon": case.get("epsilon", 1e-6)},
        errors={
            "gamma_shape": GAMMA,
            "smooth_shape": Bad(
                {"smooth_scale2": torch.zeros(15).bfloat16()},
                ValueError,
                "smooth_scale2 must be (k,) = (16,), got shape (15,)",
                call,
            ),
            "smooth_dtype": Bad(
                {"smooth_scale1": torch.zeros(16)},
                TypeError,
                "smooth_scale1 must be bfloat16, got float32",
                call,
            ),
            "y_dtype": Bad(
                {"y_dtype": 16},
                NotImplementedError,
                "y_dtype must be None or 1, for int8, on CPU, got 16",
                call,
            ),
            "mask": Bad(
                {"output_mask": [False, False]},
                ValueError,
                "output_mask must be two bools, at least one of them True, got [False, False]",
                call,
            ),
        },
    ),
    Tested(
        name="npu_add_rms_norm_quant",
        samples={
            "bfloat16": call_quant,
            "float16": lambda: call_quant(torch.float16),
            "bfloat16_scales": lambda: call_quant(
                scale_dtype=torch.bfloat16, points=torch.bfloat16
            ),
            "no_points": lambda: call_quant(zero_points1=None),
            "multiplied": lambda: call_quant(div_mode=False, scales1=torch.linspace(1, 40, 16)),
            "two": lambda: call_quant(
                scales2=torch.linspace(0.01, 1, 16), zero_points2=torch.arange(16).int()
            ),
            "beta": lambda: call_quant(beta=numbers((16,), 3), dst_type=1),
            "one_row": lambda: {**call_quant(), **call((1, 16))},
            "no_rows": lambda: {**call_quant(), **call((0, 16))},
            "three_axes": lambda: {**call_quant(), **call((2, 3, 16))},
        },
        oracle=oracle_quant,
        node=None,
        errors={
            "gamma_shape": Bad(GAMMA.change, GAMMA.error, GAMMA.message, call_quant),
            "scales_missing": Bad(
                {"zero_points2": torch.zeros(16).int()},
                ValueError,
                "scales2 is required with zero_points2, got None",
                call_quant,
            ),
            "scales_dtype": Bad(
                {"scales1": torch.zeros(16).half()},
                TypeError,
                "scales1 must be float32 or bfloat16, got float16",
                call_quant,
            ),
            "scales_shape": Bad(
                {"scales1": torch.zeros(1)},
                ValueError,
                "scales1 must be (k,) = (16,), got shape (1,)",
                call_quant,
            ),
            "points_dtype": Bad(
                {"zero_points1": torch.zeros(16).char()},
                TypeError,
                "zero_points1 must be int32 or bfloat16, got int8",
                call_quant,
            ),
            "axis": Bad(
                {"axis": 0},
                NotImplementedError,
                "axis must be -1, got 0; it is all that the device has",
                call_quant,
            ),
        },
    ),
]
