"""The fused operator: the tables and the oracle that it always had."""

import contextlib
from unittest import mock

import torch
from cases import CASES, FULL_SIZE, call
from errors import ERRORS, VALUE_ERRORS, Bad
from operators import Tested
from oracle import oracle

from npu_lowering.operators import exact
from npu_lowering.operators.grouped_matmul_finalize_routing import native


@contextlib.contextmanager
def without_compiler():
    """As where no compiler built the kernel."""
    with mock.patch.object(native, "available", return_value=False):
        yield


@contextlib.contextmanager
def without_int_mm():
    """And torch has no exact int8 product."""
    with without_compiler(), mock.patch.object(exact, "_int_mm_is_exact", return_value=False):
        yield


def attributes(case):
    """What the node says of a call; what has the default of the definition may be left out."""
    found = {"output_bs": case.get("output_bs") or case["x"].shape[0]}
    if case.get("shared_input") is not None:
        weight = case.get("shared_input_weight")
        found["shared_input_weight"] = float(torch.tensor(1.0 if weight is None else weight))
        found["shared_input_offset"] = case.get("shared_input_offset") or 0
    return found


def without_bound(max_output_bs=0, **case):
    """The bound changes no result."""
    assert not max_output_bs or case["output_bs"] <= max_output_bs
    return oracle(**case)


# The operator for traced sizes has the same stages: a few samples show that it reaches them.
TRACED = ("both", "neither", "totals", "fractal_nz_padded", "strided", "bias", "output_bs_zero")

TESTED = [
    Tested(
        name="npu_grouped_matmul_finalize_routing",
        samples={**CASES, **FULL_SIZE},
        oracle=oracle,
        node="GroupedMatmulFinalizeRouting",
        attributes=attributes,
        errors=ERRORS,
        value_errors=VALUE_ERRORS,
        differentiable=("scale", "bias", "pertoken_scale", "shared_input", "logit"),
        reference=oracle,
        # tests/offdevice/test_converter.py lowers the rest of them.
        lowered=("both", "neither", "totals", "fractal_nz_padded", "strided"),
        paths={
            "compiled": contextlib.nullcontext,
            "int_mm": without_compiler,
            "float32": without_int_mm,
        },
    ),
    Tested(
        name="grouped_matmul_finalize_routing",
        samples={
            **{name: CASES[name] for name in TRACED},
            "a_bound": lambda: call(max_output_bs=10),
        },
        oracle=without_bound,
        node=None,  # the same node; tests/offdevice/test_symbolic_lowered.py
        errors={
            **{name: ERRORS[name] for name in ("x_3d", "scale_of_another_n", "output_bs_large")},
            "max_output_bs": Bad(
                {"max_output_bs": 5},
                ValueError,
                "output_bs must be at most max_output_bs = 5, got 6",
            ),
        },
        differentiable=("scale", "bias", "pertoken_scale", "shared_input", "logit"),
        reference=without_bound,
    ),
]
