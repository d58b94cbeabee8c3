"""Strategies of illegal calls: a legal one with one thing wrong, and what has to be said of it."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from strategies import is_tensor, legal, restride
from wrong_shapes import SHAPES, sizes_of

REQUIRED = {
    "x": "int8 (m, k)",
    "w": "int8 (e, k, n)",
    "group_list": "int64 (e,)",
    "scale": "float32 or bfloat16 (e, n)",
    "row_index": "int64 or int32 (m,)",
}
DTYPES = {
    "x": "int8",
    "w": "int8",
    "group_list": "int64",
    "scale": "float32 or bfloat16",
    "bias": "float32 or bfloat16",
    "pertoken_scale": "float32",
    "logit": "float32",
    "shared_input": "bfloat16",
    "row_index": "int64 or int32",
}
OTHER_WEIGHTS = ("int32", "float8_e4m3fn", "float8_e5m2")
ALL_DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16")
ALL_DTYPES = (*ALL_DTYPES, "float32", "float64", "complex64", "float8_e4m3fn", "float8_e5m2")
# Codes of dtypes as torch_npu numbers them, and numbers that are no code of anything.
CODES = (0, 1, 285, 290, 291, 296, 297, -1, 2**40)


@dataclass(frozen=True)
class Illegal:
    """A call with one thing wrong.

    Attributes:
        case: the call.
        error: the exception.
        message: the sentence, from its beginning.
    """

    case: dict[str, Any]
    error: type
    message: str

    @property
    def pattern(self):
        """The sentence for pytest, which looks for it from the beginning."""
        return "^" + re.escape(self.message)


def tensors_of(case):
    return [name for name, value in case.items() if is_tensor(value)]


def missing(draw, case):
    name = draw(st.sampled_from(sorted(REQUIRED)))
    message = f"{name} is required: expected a tensor, {REQUIRED[name]}, got None"
    return Illegal({**case, name: None}, TypeError, message)


def dtype(draw, case):
    """A tensor of another dtype."""
    name = draw(st.sampled_from(tensors_of(case)))
    wrong = draw(st.sampled_from([d for d in ALL_DTYPES if d not in DTYPES[name].split(" or ")]))
    changed = {**case, name: torch.empty(case[name].shape, dtype=getattr(torch, wrong))}
    if name == "w" and wrong in OTHER_WEIGHTS:
        return Illegal(changed, NotImplementedError, f"w of torch.{wrong} ")
    # The one message in which the dtype has its full name.
    got = f"torch.{wrong}" if name == "w" else wrong
    return Illegal(changed, TypeError, f"{name} must be {DTYPES[name]}, got {got}")


def shape(draw, case):
    """A tensor of another shape, which may be another tensor's fault as well."""
    name = draw(st.sampled_from(tensors_of(case)))
    wrong, message = draw(st.sampled_from(SHAPES[name](sizes_of(case), case)))
    return Illegal({**case, name: case[name].new_zeros(wrong)}, ValueError, message)


def scalar(draw, case):
    """A number out of its range, or a tensor without the one it needs."""
    size = sizes_of(case)
    positive = st.one_of(st.integers(1, 9), st.sampled_from([2**31, 2**62]))
    far = draw(positive)
    shared = case.get("shared_input")
    rows = 0 if shared is None else shared.shape[0]
    type_ = draw(st.integers(-(2**63), 2**63 - 1).filter(lambda value: value not in (0, 1)))
    half = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.int8, torch.float64]))
    limit = f"output_bs must be 0 or None, for m, or in [1, m] = [1, {size.m}], got"
    end = "shared_input_offset + the rows of shared_input must be at most output_bs"
    first = size.rows - rows + far
    wrongs = [
        ("output_bs", size.m + far, ValueError, f"{limit} {size.m + far}"),
        ("output_bs", -far, ValueError, f"{limit} {-far}"),
        (
            "group_list_type",
            type_,
            ValueError,
            f"group_list_type must be 0 (totals) or 1 (counts), got {type_}",
        ),
        (
            "shared_input_offset",
            -far,
            ValueError,
            f"shared_input_offset must be >= 0, got {-far}",
        ),
        (
            "shared_input_offset",
            first,
            ValueError,
            f"{end} = {size.rows}, got {first} + {rows}",
        ),
        ("dtype", half, TypeError, f"dtype must be None or torch.float32, got {half}"),
    ]
    if shared is not None:
        said = f"got shared_input of shape {tuple(shared.shape)} and logit None"
        both = "logit is required with shared_input: expected both, logit alone or neither"
        wrongs.append(("logit", None, ValueError, f"{both}, {said}"))
    name, value, error, message = draw(st.sampled_from(wrongs))
    return Illegal({**case, name: value}, error, message)


def later(draw, case):
    """An argument of the weight formats that are not built."""
    name = draw(
        st.sampled_from(["offset", "x_dtype", "w_dtype", "scale_dtype", "pertoken_scale_dtype"])
    )
    value = draw(st.sampled_from(CODES))
    if name == "offset":
        value = torch.zeros(case["scale"].shape)
    return Illegal(
        {**case, name: value},
        NotImplementedError,
        f"{name} is not supported yet and must be None, got ",
    )


@st.composite
def illegal(draw, kinds=(missing, dtype, shape, shape, scalar, later), **limits):
    """A call with one thing wrong that metadata shows.

    Args:
        draw: hypothesis'.
        kinds: of what is wrong, each a function of draw and a legal call.
        limits: arguments of the strategy of legal calls.
    """
    return draw(st.sampled_from(kinds))(draw, draw(legal(**limits)))


def counts_of(case):
    """How many rows each group has."""
    values = case["group_list"].tolist()
    if case.get("group_list_type") == 0:
        return [end - start for start, end in zip([0, *values], values)]
    return values


@st.composite
def wrong_values(draw, **limits):
    """A call with one thing wrong that only the data shows."""
    case = draw(legal(**limits))
    counts = counts_of(case)
    name = draw(st.sampled_from(["row_index", "group_list"])) if sum(counts) else "group_list"
    make = wrong_row_index if name == "row_index" else wrong_group_list
    place, value, error, message = make(draw, case, counts)
    changed = case[name].clone()
    changed[place] = value
    return Illegal({**case, name: restride(draw, name, changed)}, error, message)


def wrong_row_index(draw, case, counts):
    rows = case.get("output_bs") or case["x"].shape[0]
    place = draw(st.integers(0, sum(counts) - 1))
    limits = torch.iinfo(case["row_index"].dtype)
    value = draw(st.one_of(st.integers(limits.min, -1), st.integers(rows, limits.max)))
    said = f"got row_index[{place}] = {value} (1 of {sum(counts)} rows are outside)"
    message = f"row_index must lie in [0, output_bs) = [0, {rows}), {said}"
    return place, value, IndexError, message


def wrong_group_list(draw, case, counts):
    m = case["x"].shape[0]
    totals = case.get("group_list_type") == 0
    place = draw(st.integers(0, len(counts) - 1))
    before = sum(counts[:place])
    if draw(st.booleans()):  # too many
        first = m + 1 if totals else m + 1 - before
        value = draw(st.one_of(st.just(first), st.integers(first, 2**63 - 1)))
        said = "" if totals else f", which makes {before + value} rows in all"
        message = f"hold at most m = {m} rows of x, got group_list[{place}] = {value}{said}"
    elif totals:
        value = draw(st.one_of(st.just(before - 1), st.integers(-(2**63), before - 1)))
        said = f"got group_list[{place}] = {value} after {before}"
        message = f"hold totals that do not decrease (group_list_type=0), {said}"
    else:
        value = draw(st.one_of(st.just(-1), st.integers(-(2**63), -1)))
        message = f"hold counts >= 0 (group_list_type=1), got group_list[{place}] = {value}"
    return place, value, ValueError, f"group_list must {message}"
