"""torch's FLOP counter counts the operators' matmuls: two for each product."""

import pytest
import torch
from cases import call, fractal_nz
from operators import TESTED
from torch.utils.flop_counter import FlopCounterMode
from versions import TORCH

import npu_lowering

pytestmark = pytest.mark.skipif(TORCH < (2, 4), reason="formulas of others came with torch 2.4")


def counted(function, *args, **kwargs):
    with FlopCounterMode(display=False) as counter:
        function(*args, **kwargs)
    return counter.get_total_flops()


def on_meta(case):
    return {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in case.items()}


@pytest.mark.parametrize("make", [call, fractal_nz])
def test_the_rows_of_groups_count(make, op):
    case = make(m=30, k=48, n=96, counts=(7, 0, 12, 5))
    assert counted(op, **case) == 2 * 24 * 48 * 96
    totals = {**case, "group_list": torch.tensor([7, 7, 19, 24]), "group_list_type": 0}
    assert counted(op, **totals) == 2 * 24 * 48 * 96
    public = npu_lowering.npu_grouped_matmul_finalize_routing
    assert counted(public, **case) == 2 * 24 * 48 * 96


def test_all_rows_count_where_the_groups_are_unknown(op):
    case = call(m=30, k=48, n=96, counts=(7, 0, 12, 5))
    assert counted(op, **on_meta(case)) == 2 * 30 * 48 * 96
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = {
            k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in case.items()
        }
        assert counted(op, **fakes) == 2 * 30 * 48 * 96


def test_backward_counts_its_own_call(op):
    case = call(m=24)
    case["scale"].requires_grad_()
    assert counted(lambda: op(**case).sum().backward()) == 2 * (2 * 24 * 64 * 64)


@pytest.mark.parametrize("sample", TESTED["npu_grouped_matmul"].samples)
def test_grouped_matmul(sample):
    case = TESTED["npu_grouped_matmul"].samples[sample]()
    xs, weights = case["x"], case["weight"]
    if len(xs) > 1:
        products = sum(x.numel() * weight.shape[-1] for x, weight in zip(xs, weights))
    else:
        (x,), n = xs, weights[0].shape[-1]
        groups = case.get("group_list")
        grouped = x.shape[1] if case.get("group_type") == 2 else x.numel() // x.shape[-1]
        other = x.numel() // grouped
        if groups is not None:
            grouped = int(groups.sum() if case.get("group_list_type") == 1 else groups[-1])
        products = grouped * other * n
    assert counted(npu_lowering.npu_grouped_matmul, **case) == 2 * products


@pytest.mark.parametrize("sample", TESTED["npu_quant_matmul"].samples)
def test_quant_matmul(sample):
    case = TESTED["npu_quant_matmul"].samples[sample]()
    products = torch.matmul(case["x1"].float(), case["x2"].float())
    expected = 2 * products.numel() * case["x1"].shape[-1]
    assert counted(npu_lowering.npu_quant_matmul, **case) == expected
