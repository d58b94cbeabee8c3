"""npu_swiglu, in Python's floats."""

import torch
from errors import Bad
from operators import Tested


def call(shape=(3, 8), dtype=torch.bfloat16, **kwargs):
    generator = torch.Generator().manual_seed(3)
    return {"input": (torch.randn(shape, generator=generator) * 4).to(dtype), **kwargs}


def oracle(input, dim=-1, compute=None):  # noqa: A002
    half = input.shape[dim] // 2
    left = input.double().narrow(dim, 0, half)
    right = input.double().narrow(dim, half, half)
    result = left / (1 + (-left).exp()) * right
    return result if compute else result.to(input.dtype).contiguous()


def backward(shape=(3, 8), dtype=torch.bfloat16, dim=-1, **kwargs):
    case = call(shape, dtype)
    half = list(shape)
    half[dim] //= 2
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(half, generator=generator).to(dtype)
    return {"grad_output": grad, **case, "dim": dim, **kwargs}


def oracle_backward(grad_output, input, dim=-1):  # noqa: A002
    """By autograd, in float64."""
    wide = input.double().requires_grad_()
    left, right = wide.chunk(2, dim)
    result = left / (1 + (-left).exp()) * right
    (grad,) = torch.autograd.grad(result, [wide], grad_output.double())
    return grad.to(input.dtype).contiguous()


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
        differentiable=("input",),
        reference=oracle,
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
    ),
    Tested(
        name="npu_swiglu_backward",
        samples={
            "bfloat16": backward,
            "float16": lambda: backward(dtype=torch.float16),
            "float32": lambda: backward(dtype=torch.float32),
            "first_axis": lambda: backward((4, 3), dim=0),
            "middle_axis": lambda: backward((2, 6, 3), dim=-2),
            "one_row": lambda: backward((1, 2)),
            "no_rows": lambda: backward((0, 8)),
            "large": lambda: backward((64, 2048)),
        },
        oracle=oracle_backward,
        node="SwiGluGrad",
        attributes=lambda case: {"dim": case["dim"]},
        tolerance=2**-8,
        why="the oracle computes in float64 and rounds once; exp is the C library's",
        errors={
            "shape": Bad(
                {"grad_output": torch.zeros(3, 8).bfloat16()},
                ValueError,
                "grad_output must be of the shape of the result = (3, 4), got shape (3, 8)",
                backward,
            ),
            "dtype": Bad(
                {"grad_output": torch.zeros(3, 4)},
                TypeError,
                "grad_output must be bfloat16, got float32",
                backward,
            ),
            "odd": Bad(
                {"input": torch.zeros(3, 7).bfloat16()},
                ValueError,
                "input must be of even length along dim -1, got shape (3, 7)",
                backward,
            ),
        },
    ),
]
