"""Exact relations between generated calls: what changes a result in a known way, or not at all.

There are many, so each takes half of the profile's examples.
"""

import torch
from compare import assert_same
from hypothesis import assume, given
from hypothesis import strategies as st
from spoils import counts_of
from strategies import GARBAGE, OF_ROWS, is_tensor, legal, on_tensors, share

import npu_lowering

OF_EXPERTS = ("w", "scale", "bias")
# Far from where a float32 of these calls would overflow or become subnormal.
POWERS = st.integers(-12, 12).map(lambda exponent: 2.0**exponent)


def plain(case):
    return torch.ops.npu.npu_grouped_matmul_finalize_routing(**case)


def change(case, names, function):
    """The call with the tensors of those names replaced, where it has them."""
    return {
        name: function(value) if name in names and is_tensor(value) else value
        for name, value in case.items()
    }


def rows_of(case):
    return case.get("output_bs") or case["x"].shape[0]


def in_counts(case, counts):
    return {**case, "group_list": torch.tensor(counts), "group_list_type": 1}


@share(2)
@given(legal())
def test_totals_are_counts_added_up(case):
    counts = torch.tensor(counts_of(case))
    totals = {**case, "group_list": counts.cumsum(0), "group_list_type": 0}
    assert_same(plain(in_counts(case, counts.tolist())), plain(totals))


@share(2)
@given(legal(nz=True))
def test_a_weight_is_the_same_in_either_form(case):
    logical = npu_lowering.from_fractal_nz(case["w"], case["x"].shape[1])
    assert_same(plain({**case, "w": logical}), plain(case))
    padded = npu_lowering.to_fractal_nz(logical)  # its padding is zeros, and not the garbage
    assert_same(plain({**case, "w": padded}), plain(case))


@share(2)
@given(legal(), st.data())
def test_splitting_a_group_changes_nothing(case, data):
    counts = counts_of(case)
    group = data.draw(st.integers(0, len(counts) - 1))
    first = data.draw(st.integers(0, counts[group]))
    experts = [*range(group + 1), *range(group, len(counts))]
    split = change(case, OF_EXPERTS, lambda tensor: tensor[experts])
    parts = [*counts[:group], first, counts[group] - first, *counts[group + 1 :]]
    assert_same(plain(in_counts(split, parts)), plain(case))


@share(2)
@given(legal(), st.data())
def test_a_group_without_rows_changes_nothing(case, data):
    counts = counts_of(case)
    place = data.draw(st.integers(0, len(counts)))

    def insert(tensor):
        return torch.cat([tensor[:place], tensor[:1], tensor[place:]])

    longer = in_counts(change(case, OF_EXPERTS, insert), [*counts[:place], 0, *counts[place:]])
    assert_same(plain(longer), plain(case))


@share(2)
@given(legal(), st.data())
def test_rows_of_a_group_may_come_in_any_order(case, data):
    """As long as those of one token keep theirs, which is the order that they are added in."""
    counts = counts_of(case)
    tokens = case["row_index"].tolist()
    rank = data.draw(st.permutations(range(rows_of(case))))
    order, start = [], 0
    for count in counts:
        rows = range(start, start + count)
        order += sorted(rows, key=lambda row: rank[tokens[row]])
        start += count
    order += range(start, len(tokens))
    assert_same(plain(change(case, OF_ROWS, lambda tensor: tensor[order])), plain(case))


@share(2)
@given(legal(), st.integers(1, 9), st.data())
def test_tail_rows_add_nothing(case, more, data):
    case["output_bs"] = rows_of(case)
    longer = change(case, OF_ROWS, lambda tensor: torch.cat([tensor] + [tensor[:1]] * more))
    m = case["x"].shape[0]
    longer["row_index"][m:] = data.draw(st.sampled_from(GARBAGE[case["row_index"].dtype]))
    for name in ("pertoken_scale", "logit"):
        if longer.get(name) is not None:
            longer[name][m:] = data.draw(st.sampled_from([float("nan"), float("inf"), 1.0]))
    assert_same(plain(longer), plain(case))


@share(2)
@given(legal(hostile=False), POWERS)
def test_a_power_of_two_in_logit_and_shared_input_is_one_in_the_result(case, power):
    assume(case.get("logit") is not None)
    scaled = change(case, ("logit",), lambda logit: logit * power)
    if case.get("shared_input") is not None:
        weight = case["shared_input_weight"]
        scaled["shared_input_weight"] = (1.0 if weight is None else weight) * power
    assert_same(plain(scaled), plain(case) * power)


@share(2)
@given(legal(hostile=False), POWERS)
def test_a_power_of_two_moves_between_the_scales(case, power):
    assume(case.get("pertoken_scale") is not None)
    moved = change(case, ("scale",), lambda scale: scale * power)
    moved = change(moved, ("pertoken_scale",), lambda scale: scale / power)
    assert_same(plain(moved), plain(case))


@share(2)
@given(legal(), st.data())
def test_moving_shared_input_and_every_row_moves_the_result(case, data):
    rows, shared = rows_of(case), case.get("shared_input")
    first = (case.get("shared_input_offset") or 0) if shared is not None else 0
    length = 0 if shared is None else shared.shape[0]
    by = data.draw(st.integers(-first, rows - length - first))
    moved = change(case, ("row_index",), lambda index: (index.long() + by) % rows)
    if shared is not None:
        moved["shared_input_offset"] = first + by
    assert_same(plain(moved), plain(case).roll(by, 0))


@share(2)
@given(legal(), st.data())
def test_moving_shared_input_moves_it_only(case, data):
    """Every other output row stays, and where no row of x is added it is shared_input alone."""
    assume(case.get("shared_input") is not None)
    shared = case["shared_input"]
    first = data.draw(st.integers(0, rows_of(case) - shared.shape[0]))
    out = plain({**case, "shared_input_offset": first})
    without = plain({**case, "shared_input": None, "shared_input_offset": 0})
    index = case["row_index"][: sum(counts_of(case))]
    weight = case["shared_input_weight"]
    alone = shared.float() * torch.tensor(1.0 if weight is None else weight)
    for row in range(rows_of(case)):
        if not first <= row < first + shared.shape[0]:
            assert_same(out[row], without[row])
        elif row not in index:
            assert_same(out[row], alone[row - first])


@share(2)
@given(legal(), st.data())
def test_columns_are_independent(case, data):
    n = case["scale"].shape[1]
    if case["w"].dim() == 5:
        n1 = data.draw(st.integers(1, n // 32))
        last = 32 * n1
        some = {**case, "w": case["w"][:, :n1]}
    else:
        last = data.draw(st.integers(1, n))
        some = {**case, "w": case["w"][..., :last]}
    some = change(some, ("scale", "bias", "shared_input"), lambda tensor: tensor[:, :last])
    assert_same(plain(some), plain(case)[:, :last])


@share(2)
@given(legal(nz=False), st.integers(1, 40))
def test_columns_of_zeros_in_x_add_nothing(case, more):
    """To the exact integer sums, so w may hold anything there."""
    wider = {
        **case,
        "x": torch.nn.functional.pad(case["x"], (0, more)),
        "w": torch.nn.functional.pad(case["w"], (0, 0, 0, more), value=-128),
    }
    assert_same(plain(wider), plain(case))


@share(2)
@given(legal())
def test_strides_do_not_matter(case):
    packed = on_tensors(lambda tensor: tensor.clone(memory_format=torch.contiguous_format), case)
    assert_same(plain(packed), plain(case))
