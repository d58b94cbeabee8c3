"""npu_swiglu, in Python's floats."""

import torch
from errors import Bad
from operators import Tested


def call(shape=(3, 8), dtype=torch.bfloat16, **kwargs):
    generator = torch.Generator().manual_seed(3)
    return {"input": (torch.randn(shape, generator=generator) * 4).to(dtype), **kwargs}


def oracle(input, dim=-1):  # noqa: A002
    half = input.shape[dim] // 2
    left = input.double().narrow(dim, 0, half)
    right = input.double().narrow(dim, half, half)
    return (left / (1 + (-left).exp()) * right).to(input.dtype).contiguous()


TESTED = [
    Tested(
        name="npu_swiglu",
        samples={
            "bfloat16": call,
            "float16": lambda: call(dtype=torch.float16),
            "float32": lambda: call(dtype=torch.float32),
            "first_axis": lambda: call(shape=(4, 3), dim=0),
            "middle_axis": lambda: call(shape=(2, 6, 3), dim=-2),
            "one_row": lambda: call(shape=(1, 2)),
            "no_rows": lambda: call(shape=(0, 8)),
            "one_axis": lambda: call(shape=(6,)),
            "large": lambda: call(shape=(64, 2048)),
        },
        oracle=oracle,
        node="SwiGlu",
        attributes=lambda case: {"dim": case.get("dim", -1)},
        tolerance=2**-8,
        why="the oracle computes in float64 and rounds once; exp is the C library's",
        errors={
            "odd": Bad(
                {"input": torch.zeros(3, 7)},
                ValueError,
                "input must be of even length along dim -1, got shape (3, 7)",
                call,
            ),
            "dim": Bad(
                {"dim": 2}, ValueError, "dim must be an axis of input, in [-2, 2), got 2", call
            ),
            "dtype": Bad(
                {"input": torch.zeros(3, 8, dtype=torch.float64)},
                TypeError,
                "input must be float16 or bfloat16 or float32, got float64",
                call,
            ),
        },
    )
]
