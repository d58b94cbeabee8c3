"""Generated calls, legal and illegal; ``--hypothesis-profile=long`` runs thousands of each."""

import contextlib

import pytest
import torch
from cases import call
from compare import assert_same
from hypothesis import given
from hypothesis import strategies as st
from spoils import counts_of, illegal, tensors_of, wrong_values
from strategies import expected, legal, on_tensors

import npu_lowering


def plain(case):
    return torch.ops.npu.npu_grouped_matmul_finalize_routing(**case)


def on_meta(case):
    return plain(on_tensors(lambda tensor: tensor.to("meta"), case))


def on_fakes(case):
    mode = torch._subclasses.FakeTensorMode()
    fakes = on_tensors(mode.from_tensor, case)
    with mode:
        return plain(fakes)


def decomposed(case):
    operator = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    return npu_lowering.decompositions()[operator](**case)


def limits(case):
    return npu_lowering.device_limits(**case)


STAGES = {
    "eager": plain,
    "meta": on_meta,
    "fake": on_fakes,
    "decomposition": decomposed,
    "device_limits": limits,
}


@contextlib.contextmanager
def refused(bad, stage):
    """The error and its sentence, whatever the stage."""
    error = bad.error
    if stage == "fake" and error is NotImplementedError:
        error = RuntimeError  # FakeTensorMode takes NotImplementedError for its own
    with pytest.raises(error, match=bad.pattern) as caught:
        yield caught
    assert caught.type is error


@given(legal())
def test_legal_calls_equal_the_oracle(case):
    result = expected(case)
    assert_same(plain(case), result)
    assert_same(decomposed(case), result)


@given(legal())
def test_a_call_leaves_its_inputs_alone(case):
    before = on_tensors(torch.clone, case)
    result = plain(case)
    assert result.is_contiguous()
    result.fill_(7)  # fresh memory: nothing of an input changes with it
    decomposed(case)
    for name, value in case.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


@given(legal())
def test_the_fake_agrees(case):
    real = plain(case)
    for fake in (on_fakes(case), on_meta(case)):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())
    assert on_fakes(case).device == real.device


@given(illegal())
def test_illegal_calls_are_refused_alike(bad):
    """One error and one sentence, the argument's name in it, for real, fake and traced tensors."""
    said = set()
    for stage, run in STAGES.items():
        with refused(bad, stage) as caught:
            run(bad.case)
        said.add(str(caught.value))
    assert len(said) == 1, said


@given(wrong_values())
def test_wrong_values_are_refused(bad):
    with refused(bad, "eager"):
        plain(bad.case)


@given(legal(), st.integers(-(2**63), 2**63 - 1), st.data())
def test_any_value_in_group_list_is_refused_or_computed(case, value, data):
    groups = case["group_list"].clone()
    groups[data.draw(st.integers(0, len(groups) - 1))] = value
    case["group_list"] = groups
    counts = counts_of(case)
    index = case["row_index"][: max(sum(counts), 0)]
    rows = case.get("output_bs") or case["x"].shape[0]
    counts_are_good = min(counts) >= 0 and sum(counts) <= case["x"].shape[0]
    if counts_are_good and bool(((index >= 0) & (index < rows)).all()):
        assert_same(plain(case), expected(case))
    else:
        with pytest.raises((ValueError, IndexError), match=r"^(group_list|row_index) must"):
            plain(case)


@given(legal(), st.data())
def test_tensors_of_several_devices_are_refused(case, data):
    name = data.draw(st.sampled_from(tensors_of(case)))
    case[name] = case[name].to("meta")
    # Where x is the stray one, the first of the others is named.
    pattern = "^w must be on the device of x, meta, got cpu"
    if name != "x":
        pattern = f"^{name} must be on the device of x, cpu, got meta"
    for run in (plain, decomposed, limits):
        with pytest.raises(ValueError, match=pattern):
            run(case)
    with pytest.raises(RuntimeError, match=r"same device|different devices"):  # torch's own
        on_fakes(case)


KINDS = {
    "x": (None, [1], "x", 3),
    "w": ([1], "w", 3),
    "group_list": ([1, 2], "group_list", 3),
    "offset": (3, "offset"),
    "dtype": ("float32", [1]),
    "output_bs": ("6", 6.5, [6], 2**63),
    "group_list_type": ("1", 1.0, [1], 2**64),
    "shared_input_offset": ("1", 0.5, [1], -(2**63) - 1),
    "shared_input_weight": ("1", [1.0], 1j),
    "tuning_config": ("1", 1.5, [1.5]),
    "x_dtype": ("int8", 1.5),
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in KINDS.items() for value in values]
)
def test_other_kinds_of_value_are_refused_by_the_schema(name, value):
    """By torch's own check, whose sentence has the argument's name, too."""
    for run in (plain, on_meta, on_fakes):
        with pytest.raises((RuntimeError, TypeError), match=rf"(for argument '|^){name}\b"):
            run({**call(), name: value})
