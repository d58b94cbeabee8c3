"""npu_rms_norm and npu_add_rms_norm, row by row in Python's floats."""

import torch
from errors import Bad
from operators import Tested


def call(shape=(3, 8), dtype=torch.bfloat16, gamma_axes=1, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    gamma = torch.rand(shape[len(shape) - gamma_axes :], generator=generator) + 0.5
    made = {"input": torch.randn(shape, generator=generator).to(dtype), "gamma": gamma.to(dtype)}
    return {**made, **kwargs}


def call_add(seed=0, **kwargs):
    made = call(seed=seed, **kwargs)
    other = call(seed=seed + 1, **kwargs)
    x1 = made.pop("input")
    return {"x1": x1, "x2": other["input"], **made}


def oracle(input, gamma, epsilon=1e-6):  # noqa: A002
    """A float64 sum for each row; the float32 of the kernel is off by roundings of it."""
    last = gamma.dim()
    lead = input.shape[: input.dim() - last]
    rows = input.double().reshape(-1, gamma.numel())
    factor = gamma.double().reshape(-1)
    y, rstd = [], []
    for row in rows:
        one = (row.square().sum() / row.numel() + epsilon) ** -0.5
        y.append(row * one * factor)
        rstd.append(one)
    y = torch.stack(y) if y else rows
    rstd = torch.stack(rstd) if rstd else rows.new_zeros(0)
    return y.reshape(input.shape).to(input.dtype), rstd.float().reshape(*lead, *[1] * last)


def oracle_add(x1, x2, gamma, epsilon=1e-6):
    total = (x1.double() + x2.double()).to(x1.dtype)
    y, rstd = oracle(total, gamma, epsilon)
    return y, rstd, total


def reference(input, gamma, epsilon=1e-6, compute=torch.float64):  # noqa: A002
    """Differentiable, in one expression."""
    x, axes = input.to(compute), tuple(range(-gamma.dim(), 0))
    rstd = (x.square().mean(axes, keepdim=True) + epsilon) ** -0.5
    return x * rstd * gamma.to(compute), rstd


def call_backward(seed=0, **kwargs):
    made = call(seed=seed, **kwargs)
    rstd = reference(**made)[1].float()
    dy = call(seed=seed + 2, **kwargs)["input"]
    return {"dy": dy, "input": made["input"], "gamma": made["gamma"], "rstd": rstd}


def oracle_backward(dy, input, gamma, rstd):  # noqa: A002
    """Torch's own derivative of the formula in float64."""
    del rstd
    x, factor = input.double().requires_grad_(), gamma.double().requires_grad_()
    y, _ = reference(x, factor, compute=torch.float64)
    dx, dgamma = torch.autograd.grad(y, [x, factor], dy.double())
    return dx.to(input.dtype), dgamma.float()


WHY = "the oracle sums in float64 and rounds once, the kernel rounds at every step of float32"

SAMPLES = {
    "bfloat16": {},
    "float16": {"dtype": torch.float16},
    "float32": {"dtype": torch.float32},
    "one_row": {"shape": (1, 16)},
    "no_rows": {"shape": (0, 16)},
    "three_axes": {"shape": (2, 3, 8)},
    "gamma_of_two_axes": {"shape": (2, 3, 8), "gamma_axes": 2},
    "one_axis": {"shape": (8,)},
    "large": {"shape": (40, 1024)},
    "epsilon": {"epsilon": 0.5},
}


def made(maker, kwargs):
    return lambda: maker(**kwargs)


TESTED = [
    Tested(
        name="npu_rms_norm",
        samples={
            **{name: made(call, kwargs) for name, kwargs in SAMPLES.items()},
            "gamma_float32": lambda: {**call(), "gamma": call(dtype=torch.float32)["gamma"]},
        },
        oracle=oracle,
        node="RmsNorm",
        differentiable=("input", "gamma"),
        reference=reference,
        attributes=lambda case: {"epsilon": case.get("epsilon", 1e-6)},
        tolerance=2**-7,
        why=WHY,
        errors={
            "dtype": Bad(
                {"input": torch.zeros(3, 8, dtype=torch.int8)},
                TypeError,
                "input must be float16 or bfloat16 or float32, got int8",
                call,
            ),
            "gamma_dtype": Bad(
                {"gamma": torch.zeros(8, dtype=torch.float16)},
                TypeError,
                "gamma must be bfloat16 or float32, got float16",
                call,
            ),
            "gamma_shape": Bad(
                {"gamma": torch.zeros(7)},
                ValueError,
                "gamma must be the last axes of input = (8,), got shape (7,)",
                call,
            ),
            "gamma_rank": Bad(
                {"gamma": torch.zeros(())},
                ValueError,
                "gamma must have at least one and at most the 2 dimensions of input, got shape ()",
                call,
            ),
        },
    ),
    Tested(
        name="npu_add_rms_norm",
        samples={name: made(call_add, kwargs) for name, kwargs in SAMPLES.items()},
        oracle=oracle_add,
        node="AddRmsNorm",
        attributes=lambda case: {"epsilon": case.get("epsilon", 1e-6)},
        tolerance=2**-7,
        why=WHY,
        errors={
            "x2_dtype": Bad(
                {"x2": torch.zeros(3, 8)}, TypeError, "x2 must be bfloat16, got float32", call_add
            ),
            "x2_shape": Bad(
                {"x2": torch.zeros(1, 8).bfloat16()},
                ValueError,
                "x2 must be of the shape of x1 = (3, 8), got shape (1, 8)",
                call_add,
            ),
            "gamma_shape": Bad(
                {"gamma": torch.zeros(7)},
                ValueError,
                "gamma must be the last axes of x1 = (8,), got shape (7,)",
                call_add,
            ),
        },
    ),
    Tested(
        name="npu_rms_norm_backward",
        samples={
            name: made(call_backward, kwargs)
            for name, kwargs in SAMPLES.items()
            if name != "epsilon"
        },
        oracle=oracle_backward,
        node="RmsNormGrad",
        tolerance=2**-7,
        why=WHY,
        errors={
            "dy_dtype": Bad(
                {"dy": torch.zeros(3, 8)},
                TypeError,
                "dy must be bfloat16, got float32",
                call_backward,
            ),
            "dy_shape": Bad(
                {"dy": torch.zeros(1, 8).bfloat16()},
                ValueError,
                "dy must be of the shape of input = (3, 8), got shape (1, 8)",
                call_backward,
            ),
            "rstd_shape": Bad(
                {"rstd": torch.zeros(3)},
                ValueError,
                "rstd must be input's other axes and ones = (3, 1), got shape (3,)",
                call_backward,
            ),
        },
    ),
]
