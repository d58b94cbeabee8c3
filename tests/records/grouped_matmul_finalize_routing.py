"""The fused operator: the tables and the oracle that it always had."""

import contextlib
from unittest import mock

import torch
from cases import CASES, FULL_SIZE
from errors import ERRORS, VALUE_ERRORS
from operators import Tested
from oracle import oracle

from npu_lowering.operators.grouped_matmul_finalize_routing import cpu, native


@contextlib.contextmanager
def without_compiler():
    """As where no compiler built the kernel."""
    with mock.patch.object(native, "available", return_value=False):
        yield


@contextlib.contextmanager
def without_int_mm():
    """And torch has no exact int8 product."""
    with without_compiler(), mock.patch.object(cpu, "_int_mm_is_exact", return_value=False):
        yield


def attributes(case):
    """What the node says of a call; what has the default of the definition may be left out."""
    found = {"output_bs": case.get("output_bs") or case["x"].shape[0]}
    if case.get("shared_input") is not None:
        weight = case.get("shared_input_weight")
        found["shared_input_weight"] = float(torch.tensor(1.0 if weight is None else weight))
        found["shared_input_offset"] = case.get("shared_input_offset") or 0
    return found


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
    )
]
