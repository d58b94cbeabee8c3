"""Generated calls through torch.compile and autograd.

An example here costs up to a hundred eager ones, so each test takes a stated share of the profile.
"""

import re

import pytest
import torch
from compare import assert_same
from hypothesis import given
from hypothesis import strategies as st
from oracle import oracle
from spoils import illegal, wrong_values
from strategies import FLOATS, LATER, expected, for_symbols, legal, share

import npu_lowering


def function(case):
    return npu_lowering.npu_grouped_matmul_finalize_routing(**case)


def compiled(backend, dynamic=False):
    """A fresh compilation: Dynamo would stop compiling after eight of one function."""
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, dynamic=dynamic, fullgraph=True)


@share(10)
@given(legal(), st.booleans())
def test_legal_calls_by_aot_eager(case, dynamic):
    case = for_symbols(case) if dynamic else case
    assert_same(compiled("aot_eager", dynamic)(case), expected(case))


@share(20)
@given(legal(), st.booleans())
def test_legal_calls_by_inductor(case, dynamic):
    case = for_symbols(case) if dynamic else case
    assert_same(compiled("inductor", dynamic)(case), expected(case))


@share(10)
@given(illegal(), st.booleans())
def test_illegal_calls_compiled(bad, dynamic):
    """Refused while tracing, under an error of Dynamo's that has our sentence."""
    sentence = re.escape(bad.message)
    if dynamic:  # where sizes are symbols
        sentence = re.sub(r"(\\-)?\d+", ".+", sentence)
    with pytest.raises(Exception, match=sentence):
        compiled("aot_eager", dynamic)(bad.case)


@share(12)
@given(wrong_values(), st.booleans())
def test_wrong_values_compiled(bad, dynamic):
    with pytest.raises(bad.error, match=bad.pattern):
        compiled("aot_eager", dynamic)(bad.case)


# Gradients.


def gradients(function, case, weight, **options):
    """The gradient of a weighted sum of the result for each float input, by name."""
    names = [name for name in FLOATS if case.get(name) is not None]
    leaves = {name: case[name].detach().requires_grad_() for name in names}
    out = function(**{**case, **leaves}, **options)
    if not out.requires_grad:  # no row counts: the oracle uses none of its inputs
        return {name: torch.zeros_like(case[name]) for name in names}
    loss = (out * weight.to(out.dtype)).sum()
    grads = torch.autograd.grad(loss, [*leaves.values()], materialize_grads=True)
    return dict(zip(names, grads))


def in_float64(case, transform=lambda tensor: tensor):
    """The call for the reference: float inputs in float64, all else as it is."""
    case = {name: value for name, value in case.items() if name not in LATER}
    for name in FLOATS:
        if case.get(name) is not None:
            case[name] = transform(case[name].double())
    return case


def absolute(case):
    """The same call with no sign anywhere: its gradients bound the sums of absolute terms."""
    case = in_float64(case, torch.abs)
    weight = case.get("shared_input_weight")
    case["shared_input_weight"] = None if weight is None else abs(weight)
    return {**case, "x": case["x"].short().abs(), "w": case["w"].short().abs()}


def assert_gradients(function, case):
    """Elementwise within (terms + 8) float32 roundings of the sum of the terms' absolute values.

    No sum of backward has more than m + n terms, and no term of one more than 8 roundings. What is
    returned in bfloat16 is rounded once more, to 8 bits.
    """
    rows, n = case.get("output_bs") or case["x"].shape[0], case["scale"].shape[1]
    weight = torch.linspace(-1, 1, rows * n).view(rows, n)
    found = gradients(function, case, weight)
    expected = gradients(oracle, in_float64(case), weight, compute=torch.float64)
    terms = gradients(oracle, absolute(case), weight.abs(), compute=torch.float64)
    steps = (case["x"].shape[0] + n + 8) * 2**-24
    for name, grad in found.items():
        assert grad.dtype == case[name].dtype
        assert grad.shape == case[name].shape
        bound = steps * terms[name] + 2**-126
        if grad.dtype == torch.bfloat16:
            bound = bound + 2**-8 * expected[name].abs()
        error = (grad.double() - expected[name]).abs()
        worst = (error / bound).max().item()
        assert worst <= 1, f"{name}: {worst:.3g} times the bound"


# NaN in a tail row of an input makes no gradient, but would be in the reference's absolute terms.
@share(3)
@given(legal(hostile=False))
def test_gradients(case):
    assert_gradients(torch.ops.npu.npu_grouped_matmul_finalize_routing, case)


@share(20)
@given(legal(hostile=False), st.booleans())
def test_gradients_by_aot_eager(case, dynamic):
    run = compiled("aot_eager", dynamic)
    assert_gradients(lambda **case: run(case), case)
