"""Generated calls, legal and illegal; ``--hypothesis-profile=long`` runs thousands of each."""

import re

import pytest
import torch
from cases import call
from compare import assert_same
from hypothesis import given
from hypothesis import strategies as st
from oracle import oracle

import npu_lowering

ERRORS = (ValueError, TypeError, IndexError, NotImplementedError, RuntimeError)
GARBAGE = (2**40, -5, -(2**62))


def restride(draw, tensor):
    """The same numbers behind other strides or another storage offset."""
    form = draw(st.sampled_from(["plain", "transposed", "spread", "shifted"]))
    if form == "transposed" and tensor.dim() > 1:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if form == "spread":
        return tensor.repeat_interleave(2, -1)[..., ::2]
    if form == "shifted":
        flat = torch.cat([tensor.new_zeros(3), tensor.reshape(-1)])
        return flat[3:].view(tensor.shape)
    return tensor


@st.composite
def legal(draw):
    """A legal call, with everything that the contract lets vary."""
    counts = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    tail = draw(st.integers(0 if sum(counts) else 1, 5))
    m = sum(counts) + tail
    nz = draw(st.booleans())
    k = draw(st.integers(1, 70))
    n = 32 * draw(st.integers(1, 3)) if nz else draw(st.integers(1, 70))
    output_bs = draw(st.one_of(st.just(0), st.none(), st.integers(1, m)))
    rows = output_bs or m
    shared_rows = draw(st.integers(0, rows))
    floats = st.sampled_from([torch.float32, torch.bfloat16])
    case = call(
        m=m,
        k=k,
        n=n,
        counts=counts,
        output_bs=output_bs,
        shared_rows=shared_rows,
        seed=draw(st.integers(0, 2**31)),
        bias=draw(st.one_of(st.none(), floats)),
        index_dtype=draw(st.sampled_from([torch.int64, torch.int32])),
    )
    if shared_rows:
        case["shared_input_offset"] = draw(st.integers(0, rows - shared_rows))
        case["shared_input_weight"] = draw(st.one_of(st.none(), st.floats(-4, 4, width=32)))
    elif draw(st.booleans()):
        case["logit"] = None
    if nz:
        generator = torch.Generator().manual_seed(k)
        shape = (len(counts), n // 32, -(-k // 16), 16, 32)
        case["w"] = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    case["scale"] = case["scale"].to(draw(floats))
    if draw(st.booleans()):
        case["group_list_type"] = 0
        case["group_list"] = case["group_list"].cumsum(0)
    if tail and case["row_index"].dtype == torch.int64:
        case["row_index"][m - tail :] = draw(st.sampled_from(GARBAGE))
        case["pertoken_scale"][m - tail :] = float("nan")
    if draw(st.booleans()):
        case["pertoken_scale"] = draw(st.sampled_from([None, case["pertoken_scale"].unsqueeze(1)]))
    return {
        name: restride(draw, value) if isinstance(value, torch.Tensor) else value
        for name, value in case.items()
    }


@given(legal())
def test_legal_calls_equal_the_oracle(case):
    op = torch.ops.npu.npu_grouped_matmul_finalize_routing
    expected = oracle(**case)
    assert_same(op(**case), expected)
    assert_same(npu_lowering.decompositions()[op.default](**case), expected)


@given(legal())
def test_the_fake_agrees(case):
    op = torch.ops.npu.npu_grouped_matmul_finalize_routing
    real = op(**case)
    mode = torch._subclasses.FakeTensorMode()
    fakes = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in case.items()}
    with mode:
        fake = op(**fakes)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def spoil(draw, case):
    """One argument made wrong, and its name."""
    name = draw(st.sampled_from([k for k, v in case.items() if isinstance(v, torch.Tensor)]))
    tensor = case[name]
    how = draw(st.sampled_from(["dtype", "rank", "longer", "empty", "0d", "double"]))
    wrong = {
        "dtype": lambda: tensor.to(torch.int16),
        "rank": lambda: tensor.unsqueeze(0).unsqueeze(0),
        "longer": lambda: (
            torch.cat([tensor, tensor], -1)
            if name not in ("x", "w")
            else torch.cat([tensor] * 18, 1)  # past any padding of k
        ),
        "empty": lambda: tensor[:0],
        "0d": lambda: tensor.new_zeros(()),
        "double": lambda: tensor.double(),
    }[how]()
    return name, {**case, name: wrong}


@given(st.data())
def test_illegal_calls_are_refused_by_name(data):
    op = torch.ops.npu.npu_grouped_matmul_finalize_routing
    name, case = spoil(data.draw, data.draw(legal()))
    named = re.compile(rf"\b({name}|x|w|m|n|k)\b")
    with pytest.raises(ERRORS) as caught:
        op(**case)
    assert named.search(str(caught.value)), str(caught.value)


@given(legal(), st.integers(-(2**63), 2**63 - 1), st.data())
def test_hostile_indices_and_counts_never_pass_silently(case, value, data):
    op = torch.ops.npu.npu_grouped_matmul_finalize_routing
    m, total = case["x"].shape[0], None
    groups = case["group_list"].clone()
    position = data.draw(st.integers(0, len(groups) - 1))
    groups[position] = value
    case["group_list"] = groups
    ends = groups.tolist()
    if case.get("group_list_type") != 0:
        ends = [sum(ends[: i + 1]) for i in range(len(ends))]
    total = ends[-1]
    in_order = all(a <= b for a, b in zip([0, *ends], ends))
    index = case["row_index"][: max(total, 0)] if in_order and total <= m else None
    rows = case["output_bs"] or m
    good = index is not None and bool(((index >= 0) & (index < rows)).all())
    if good:
        assert_same(op(**case), oracle(**case))
    else:
        with pytest.raises((ValueError, IndexError), match=r"^(group_list|row_index) must"):
            op(**case)


# Exact relations between calls.


def plain(case):
    return torch.ops.npu.npu_grouped_matmul_finalize_routing(**case)


def test_splitting_a_group_changes_nothing():
    case = call(counts=(7, 0, 12, 5))
    split = {
        **case,
        "w": case["w"][[0, 1, 2, 2, 3]],
        "scale": case["scale"][[0, 1, 2, 2, 3]],
        "group_list": torch.tensor([7, 0, 4, 8, 5]),
    }
    assert_same(plain(split), plain(case))


def test_permuting_rows_within_groups_where_each_token_has_one_row():
    """One add a token, so order cannot matter."""
    case = call(output_bs=24, row_index=torch.randperm(24), shared_rows=0)
    order = torch.cat([torch.randperm(7), 7 + torch.randperm(12), 19 + torch.randperm(5)])
    moved = {
        **case,
        **{name: case[name][order] for name in ("x", "pertoken_scale", "logit", "row_index")},
    }
    assert_same(plain(moved), plain(case))


@pytest.mark.parametrize("power", [-3, 1, 7])
def test_scaling_logit_by_a_power_of_two_scales_the_result(power):
    case = call(shared_rows=0, bias=torch.float32)
    scaled = {**case, "logit": case["logit"] * 2.0**power}
    assert_same(plain(scaled), plain(case) * 2.0**power)


def test_moving_shared_input_moves_it_only():
    """Rows that no row of x is added to hold shared_input and nothing else."""
    case = call(row_index=torch.full((24,), 5), shared_input_weight=1.0)
    for offset in range(4):
        out = plain({**case, "shared_input_offset": offset})
        assert_same(out[offset : offset + 2], case["shared_input"].float())
        rest = torch.ones(6, dtype=torch.bool)
        rest[offset : offset + 2] = False
        rest[5] = False
        assert not out[rest].any()


def test_tail_rows_add_nothing():
    case = call()
    longer = dict(case)
    for name in ("x", "pertoken_scale", "logit", "row_index"):
        longer[name] = torch.cat([case[name], case[name][:5]])
    assert_same(plain(longer), plain(case))


def test_totals_equal_counts_and_nz_equals_nd():
    case = call(n=96)
    totals = {**case, "group_list": case["group_list"].cumsum(0), "group_list_type": 0}
    nz = {**case, "w": npu_lowering.to_fractal_nz(case["w"])}
    assert_same(plain(totals), plain(case))
    assert_same(plain(nz), plain(case))
