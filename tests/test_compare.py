"""compare: equal, another order of adds, each known defect, and what it says of them."""

import dataclasses
import random
import re
import sys

import pytest
import torch
from cases import CASES, call
from defects import DEFECTS, full
from oracle import oracle

import npu_lowering
from npu_lowering.comparison.causes import CAUSES


def in_another_order(case, seed):
    """The same terms, by the oracle, shuffled row by row and with shared_input at any time."""
    m, output_bs = case["x"].shape[0], case["output_bs"]
    terms = oracle(**{**case, "row_index": torch.arange(m), "output_bs": m, "shared_input": None})
    steps = [(int(case["row_index"][r]), terms[r]) for r in range(int(case["group_list"].sum()))]
    first, weight = case["shared_input_offset"], torch.tensor(case["shared_input_weight"])
    steps += [(first + i, row.float() * weight) for i, row in enumerate(case["shared_input"])]
    random.Random(seed).shuffle(steps)
    out = torch.zeros(output_bs, case["scale"].shape[1])
    for row, term in steps:
        out[row] += term
    return out


@pytest.mark.parametrize("name", CASES)
def test_equal(name):
    case = CASES[name]()
    report = npu_lowering.compare(oracle(**case), **case)
    assert report.equal
    assert report.explained_by_order
    assert report.max_abs_error == report.max_rel_error == 0
    assert report.causes == ()
    assert str(report).startswith("equal to the last bit")


def test_defaults_change_nothing():
    """A default dtype and device, such as a script for a device sets."""
    case = full()
    actual = oracle(**{**case, "logit": None, "shared_input": None})
    plain = npu_lowering.compare(actual, **case)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert npu_lowering.compare(actual, **case) == plain
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("seed", range(5))
def test_another_order_is_explained(seed):
    case = full(m=300, counts=(100, 0, 120, 60))
    report = npu_lowering.compare(in_another_order(case, seed), **case)
    assert not report.equal
    assert report.explained_by_order
    assert 0 < report.order_ratio <= 1
    assert report.outside == 0
    assert report.verdict == "explained by the order of adds"
    assert str(report).splitlines()[0] == report.verdict


def test_the_bound_is_not_loose():
    """One unit in the last place more than an order can give is noticed where one row is added."""
    case = call(m=6, counts=(1, 1, 2, 2), row_index=torch.arange(6), shared_rows=0)
    actual = oracle(**case)
    actual[4, 7] = torch.nextafter(actual[4, 7], torch.tensor(torch.inf))
    report = npu_lowering.compare(actual, **case)
    assert (report.outside, report.outside_rows) == (1, 1)
    assert (report.worst_rows[0].index, report.worst_rows[0].column) == (4, 7)
    assert report.worst_rows[0].error > 0 == report.worst_rows[0].order_bound
    assert report.causes == ("rounded_terms",)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_named(name):
    cause, make, defect = DEFECTS[name]
    case = make()
    report = npu_lowering.compare(defect(case), **case)
    assert report.causes == (cause,), str(report)
    assert not report.explained_by_order
    assert report.likely[0] in str(report)


def test_every_cause_is_planted():
    assert {cause for cause, *_ in DEFECTS.values()} == {cause.name for cause in CAUSES}


@pytest.mark.parametrize("name", ["offset", "logit", "tail", "nz_as_nd"])
def test_a_defect_in_another_dtype(name):
    cause, make, defect = DEFECTS[name]
    case = make()
    report = npu_lowering.compare(defect(case).bfloat16(), **case)
    assert cause in report.causes
    assert "actual is bfloat16" in str(report)


def test_bfloat16_of_the_right_result():
    case = full()
    report = npu_lowering.compare(oracle(**case).bfloat16(), **case)
    assert report.explained_by_order
    assert not report.equal


def test_an_unknown_defect_has_no_cause():
    case = full()
    actual = oracle(**case)
    actual[3] *= 1.5
    report = npu_lowering.compare(actual, **case)
    assert report.causes == ()
    assert [row.index for row in report.worst_rows][:1] == [3]
    added = int((case["row_index"][:21] == 3).sum())
    assert report.worst_rows[0].added == added
    assert report.outside_rows == 1
    assert "no known cause" in str(report)
    assert re.search(rf"^3 +\d+ +\S+ +\S+ +{added}$", str(report), re.MULTILINE)


def test_a_shape_that_no_nz_weight_has():
    """Its order cannot be the cause, as the device has no such weight."""
    case = call(m=9, k=24, n=40, counts=[4, 5], output_bs=9)
    actual = oracle(**case)
    actual[2] += 1
    assert npu_lowering.compare(actual, **case).causes == ()


def test_one_wrong_row_is_not_a_cause_elsewhere():
    """A cause has to give the whole output, not only its worst rows."""
    case = full(m=240, counts=(70, 0, 90, 50), output_bs=40)
    actual, without = oracle(**case), oracle(**{**case, "logit": None})
    actual[7] = without[7]
    assert npu_lowering.compare(actual, **case).causes == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value):
    case = full()
    actual = oracle(**case)
    actual[2, 3] = value
    report = npu_lowering.compare(actual, **case)
    assert report.max_abs_error == float("inf")
    assert report.worst_rows[0].index == 2
    assert report.outside == 1


def test_the_report_is_a_frozen_value():
    case = full()
    report = npu_lowering.compare(oracle(**case), **case)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.equal = False


def test_blocks_change_nothing(monkeypatch):
    case = full(m=300, counts=(100, 0, 120, 60))
    actual = in_another_order(case, 0)
    whole = npu_lowering.compare(actual, **case)
    for module in ("npu_lowering.comparison.report", "npu_lowering.comparison.terms"):
        monkeypatch.setattr(sys.modules[module], "BLOCK", 100)
    assert npu_lowering.compare(actual, **case) == whole


def test_messages():
    case = full()
    with pytest.raises(TypeError, match=r"^actual must be float32 or bfloat16, got float64$"):
        npu_lowering.compare(oracle(**case).double(), **case)
    message = re.escape("actual must be (output_bs, n) = (6, 64), got (5, 64)")
    with pytest.raises(ValueError, match=f"^{message}$"):
        npu_lowering.compare(oracle(**case)[:5], **case)
    with pytest.raises(TypeError, match=r"^row_index is required"):
        npu_lowering.compare(oracle(**case), **{**case, "row_index": None})
