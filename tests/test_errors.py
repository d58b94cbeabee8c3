"""Illegal calls: the error, its sentence, and that it is the same everywhere."""

import re

import pytest
import torch
from cases import call, symbolic
from errors import ERRORS, VALUE_ERRORS

import npu_lowering


def on(device, case):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in case.items()}


def raises(bad):
    return pytest.raises(bad.error, match="^" + re.escape(bad.message))


@pytest.mark.parametrize("name", {**ERRORS, **VALUE_ERRORS})
def test_eager(name, op):
    bad = {**ERRORS, **VALUE_ERRORS}[name]
    with raises(bad):
        op(**{**bad.base(), **bad.change})


@pytest.mark.parametrize("name", ERRORS)
def test_meta_tensors(name, op):
    bad = ERRORS[name]
    with raises(bad):
        op(**on("meta", {**bad.base(), **bad.change}))


@pytest.mark.parametrize("name", ERRORS)
def test_fake_tensors(name, op):
    bad = ERRORS[name]
    case = {**bad.base(), **bad.change}
    # FakeTensorMode takes NotImplementedError for its own, so there it is a RuntimeError.
    error = RuntimeError if bad.error is NotImplementedError else bad.error
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = {
            k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in case.items()
        }
        with pytest.raises(error, match="^" + re.escape(bad.message)):
            op(**fakes)


@pytest.mark.parametrize("name", ERRORS)
def test_device_limits_and_decomposition(name, op):
    bad = ERRORS[name]
    case = {**bad.base(), **bad.change}
    if name == "dtype_code":
        case["dtype"] = torch.uint8  # what the dispatcher makes of the code
    with raises(bad):
        npu_lowering.device_limits(**case)
    with raises(bad):
        npu_lowering.decompositions()[op.default](**case)


@pytest.mark.parametrize("name", ["x_3d", "scale_of_another_n", "output_bs_large", "offset"])
def test_compiled(name):
    bad = ERRORS[name]
    compiled = torch.compile(
        npu_lowering.npu_grouped_matmul_finalize_routing, backend="eager", fullgraph=True
    )
    torch._dynamo.reset()
    with pytest.raises(Exception, match=re.escape(bad.message)):
        compiled(**{**bad.base(), **bad.change})


@pytest.mark.parametrize("name", VALUE_ERRORS)
def test_compiled_values(name):
    bad = VALUE_ERRORS[name]
    torch._dynamo.reset()
    compiled = torch.compile(
        npu_lowering.npu_grouped_matmul_finalize_routing, backend="aot_eager", fullgraph=True
    )
    with raises(bad):
        compiled(**{**bad.base(), **bad.change})


@pytest.mark.parametrize("name", ["w", "group_list", "scale", "logit", "row_index"])
def test_tensors_on_several_devices(name, op):
    case = call()
    case[name] = case[name].to("meta")
    with pytest.raises(ValueError, match=f"^{name} must be on the device of x, cpu, got meta"):
        op(**case)


def test_tail_rows_are_not_checked(op):
    """Nothing past the last group is read, so nothing there is wrong."""
    case = call(counts=(7, 0, 12, 4))
    case["row_index"][23:] = 2**40
    op(**case)


def test_device_limits_of_the_document():
    """A meta tensor weighs nothing, so the largest call can be asked about."""
    document = call(m=576, k=2048, n=7168, counts=(72,) * 8, output_bs=72, shared_rows=18)
    assert npu_lowering.device_limits(**document) == []


def test_device_limits_of_sizes_that_are_absent_or_symbolic():
    """There is no value to judge, and asking a symbol for one would pin it."""
    case = call(shared_rows=0)
    assert len(npu_lowering.device_limits(**case)) == 3  # k, and n twice
    case = symbolic(case)
    assert npu_lowering.device_limits(**case) == []
    for size in (*case["x"].shape, *case["w"].shape):
        assert size.node.maybe_as_int() is None


@pytest.mark.parametrize(
    ("sizes", "sentences"),
    [
        ({}, []),
        (
            {"k": 2049},
            [
                "k must be 2048 on the devices of the interface document, got 2049",
                "k must be a multiple of 16 on newer devices, got 2049",
            ],
        ),
        (
            {"n": 224},
            [
                "n must be 7168 on the devices of the interface document, got 224",
                "n must be at least 256 on newer devices, got 224",
            ],
        ),
        (
            {"n": 255},
            [
                "n must be 7168 on the devices of the interface document, got 255",
                "n must be a multiple of 32 on newer devices, got 255",
                "n must be at least 256 on newer devices, got 255",
            ],
        ),
        ({"n": 256}, ["n must be 7168 on the devices of the interface document, got 256"]),
        (
            {"n": 7170},
            [
                "n must be 7168 on the devices of the interface document, got 7170",
                "n must be a multiple of 32 on newer devices, got 7170",
            ],
        ),
        (
            {"m": 131073},
            ["m must be at most 131072 on the devices of the interface document, got 131073"],
        ),
        (
            {"e": 257},
            ["e must be at most 256 on the devices of the interface document, got 257"],
        ),
        (
            {"rows": 2049},
            [
                "rows of shared_input must be at most 2048 on the devices of the interface "
                "document, got 2049"
            ],
        ),
        (
            {"output_bs": 16385},
            ["output_bs must be at most 16384 on the devices of the interface document, got 16385"],
        ),
    ],
)
def test_device_limits(sizes, sentences):
    largest = {"m": 131072, "k": 2048, "n": 7168, "e": 256, "rows": 2048, "output_bs": 16384}
    size = {**largest, **sizes}
    m, k, n, e = size["m"], size["k"], size["n"], size["e"]

    def empty(*shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    limits = npu_lowering.device_limits(
        empty(m, k, dtype=torch.int8),
        empty(e, k, n, dtype=torch.int8),
        empty(e, dtype=torch.int64),
        scale=empty(e, n, dtype=torch.float32),
        logit=empty(m, dtype=torch.float32),
        shared_input=empty(size["rows"], n, dtype=torch.bfloat16),
        row_index=empty(m, dtype=torch.int64),
        output_bs=size["output_bs"],
    )
    assert limits == sentences
