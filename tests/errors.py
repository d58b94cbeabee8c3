"""Illegal calls, by name: what is wrong, which error it is, and what the message says."""

from dataclasses import dataclass
from typing import Any

import torch
from cases import call, fractal_nz


@dataclass(frozen=True)
class Bad:
    """A call with one thing wrong.

    Attributes:
        change: what replaces arguments of a legal call.
        error: the exception.
        message: the sentence, from its beginning.
        base: the legal call.
    """

    change: dict[str, Any]
    error: type
    message: str
    base: Any = call


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


int8, int32, int64, half = torch.int8, torch.int32, torch.int64, torch.float16
LIMIT = "output_bs must be 0 or None, for m, or in [1, m] = [1, 24], got "
REQUIRED_K1 = "w must be (e, n1, k1, 16, 32) with k1 = ceil(k / 16), which is 4 for the k of x, 64,"
EMPTY = "x and w must not be empty, got "
LATER = "not supported yet and must be None, got "
# Weights to come, as far as this torch has their dtypes.
NARROW = [
    dtype
    for name in ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn_x2")
    if (dtype := getattr(torch, name, None)) is not None
]

# What metadata shows: the same under fake tensors.
ERRORS = {
    "x_float": Bad({"x": zeros(24, 64)}, TypeError, "x must be int8, got float32"),
    "x_3d": Bad(
        {"x": zeros(3, 4, 5, dtype=int8)},
        ValueError,
        "x must be 2-D (m, k), got shape (3, 4, 5)",
    ),
    "x_0d": Bad({"x": zeros(dtype=int8)}, ValueError, "x must be 2-D (m, k), got shape ()"),
    "x_no_rows": Bad(
        {"x": zeros(0, 64, dtype=int8)},
        ValueError,
        EMPTY + "m = 0, k = 64, e = 4, n = 64",
    ),
    "x_no_columns": Bad(
        {"x": zeros(24, 0, dtype=int8), "w": zeros(4, 0, 64, dtype=int8)},
        ValueError,
        EMPTY + "m = 24, k = 0, e = 4, n = 64",
    ),
    "w_float": Bad({"w": zeros(4, 64, 64)}, TypeError, "w must be int8, got float32"),
    "w_int4": Bad(
        {"w": zeros(4, 64, 8, dtype=int32)},
        NotImplementedError,
        "w of int32 (eight int4 in each) is not supported yet; supported is int8 w",
    ),
    **{
        f"w_{dtype}": Bad(
            {"w": zeros(4, 64, 64, dtype=int8).view(dtype)},
            NotImplementedError,
            f"w of {str(dtype)[6:]} is not supported yet; supported is int8 w with int8 x",
        )
        for dtype in NARROW
    },
    "w_2d": Bad(
        {"w": zeros(64, 64, dtype=int8)},
        ValueError,
        "w must be 3-D (e, k, n) or its FRACTAL_NZ form, 5-D (e, n1, k1, 16, 32), got shape (64",
    ),
    "w_of_another_k": Bad(
        {"w": zeros(4, 63, 64, dtype=int8)},
        ValueError,
        "w must be (e, k, n) with the k of x, which is 64, got shape (4, 63, 64)",
    ),
    "w_no_experts": Bad(
        {"w": zeros(0, 64, 64, dtype=int8)},
        ValueError,
        EMPTY + "m = 24, k = 64, e = 0, n = 64",
    ),
    "w_no_columns": Bad(
        {"w": zeros(4, 64, 0, dtype=int8)},
        ValueError,
        EMPTY + "m = 24, k = 64, e = 4, n = 0",
    ),
    "w_nz_of_other_tiles": Bad(
        {"w": zeros(4, 2, 2, 32, 16, dtype=int8)},
        ValueError,
        "w must be (e, n1, k1, 16, 32) when 5-D, got shape (4, 2, 2, 32, 16)",
    ),
    "w_nz_of_taller_tiles": Bad(
        {"w": zeros(4, 2, 4, 32, 32, dtype=int8)},
        ValueError,
        "w must be (e, n1, k1, 16, 32) when 5-D, got shape (4, 2, 4, 32, 32)",
    ),
    "w_nz_of_narrower_tiles": Bad(
        {"w": zeros(4, 4, 4, 16, 16, dtype=int8)},
        ValueError,
        "w must be (e, n1, k1, 16, 32) when 5-D, got shape (4, 4, 4, 16, 16)",
    ),
    "w_nz_of_another_k": Bad({"w": zeros(4, 2, 5, 16, 32, dtype=int8)}, ValueError, REQUIRED_K1),
    "w_nz_of_another_k_padded": Bad(
        {"w": zeros(4, 2, 2, 16, 32, dtype=int8)},
        ValueError,
        "w must be (e, n1, k1, 16, 32) with k1 = ceil(k / 16), which is 3 for the k of x, 33, got "
        "shape (4, 2, 2, 16, 32)",
        lambda: fractal_nz(k=33),
    ),
    "group_list_int32": Bad(
        {"group_list": zeros(4, dtype=int32)}, TypeError, "group_list must be int64, got int32"
    ),
    "group_list_short": Bad(
        {"group_list": zeros(3, dtype=int64)},
        ValueError,
        "group_list must be (e,) = (4,), got shape (3,)",
    ),
    "group_list_2d": Bad(
        {"group_list": zeros(4, 1, dtype=int64)},
        ValueError,
        "group_list must be (e,) = (4,), got shape (4, 1)",
    ),
    "x_none": Bad(
        {"x": None}, TypeError, "x is required: expected a tensor, int8 (m, k), got None"
    ),
    "w_none": Bad(
        {"w": None}, TypeError, "w is required: expected a tensor, int8 (e, k, n), got None"
    ),
    "group_list_none": Bad(
        {"group_list": None},
        TypeError,
        "group_list is required: expected a tensor, int64 (e,), got None",
    ),
    "scale_none": Bad(
        {"scale": None},
        TypeError,
        "scale is required: expected a tensor, float32 or bfloat16 (e, n), got None",
    ),
    "scale_half": Bad(
        {"scale": zeros(4, 64, dtype=half)},
        TypeError,
        "scale must be float32 or bfloat16, got float16",
    ),
    "scale_1d": Bad(
        {"scale": zeros(64)}, ValueError, "scale must be (e, n) = (4, 64), got shape (64,)"
    ),
    "scale_of_another_n": Bad(
        {"scale": zeros(4, 65)}, ValueError, "scale must be (e, n) = (4, 64), got shape (4, 65)"
    ),
    "scale_of_another_n_nz": Bad(
        {"scale": zeros(4, 63)},
        ValueError,
        "scale must be (e, n) = (4, 64), got shape (4, 63)",
        fractal_nz,
    ),
    "row_index_none": Bad(
        {"row_index": None},
        TypeError,
        "row_index is required: expected a tensor, int64 or int32 (m,), got None",
    ),
    "row_index_int16": Bad(
        {"row_index": zeros(24, dtype=torch.int16)},
        TypeError,
        "row_index must be int64 or int32, got int16",
    ),
    "row_index_short": Bad(
        {"row_index": zeros(23, dtype=int64)},
        ValueError,
        "row_index must be (m,) = (24,), got shape (23,)",
    ),
    "bias_half": Bad(
        {"bias": zeros(4, 64, dtype=half)},
        TypeError,
        "bias must be float32 or bfloat16, got float16",
    ),
    "bias_1d": Bad(
        {"bias": zeros(64)}, ValueError, "bias must be (e, n) = (4, 64), got shape (64,)"
    ),
    "pertoken_scale_bfloat16": Bad(
        {"pertoken_scale": zeros(24, dtype=torch.bfloat16)},
        TypeError,
        "pertoken_scale must be float32, got bfloat16",
    ),
    "pertoken_scale_row": Bad(
        {"pertoken_scale": zeros(1, 24)},
        ValueError,
        "pertoken_scale must be (m,) or (m, 1) = (24, 1), got shape (1, 24)",
    ),
    "pertoken_scale_long": Bad(
        {"pertoken_scale": zeros(25)},
        ValueError,
        "pertoken_scale must be (m,) or (m, 1) = (24,), got shape (25,)",
    ),
    "logit_double": Bad(
        {"logit": zeros(24, dtype=torch.float64)}, TypeError, "logit must be float32, got float64"
    ),
    "logit_2d": Bad(
        {"logit": zeros(24, 1)}, ValueError, "logit must be (m,) = (24,), got shape (24, 1)"
    ),
    "shared_input_without_logit": Bad(
        {"logit": None},
        ValueError,
        "logit is required with shared_input: expected both, logit alone or neither, got shared",
    ),
    "shared_input_float": Bad(
        {"shared_input": zeros(2, 64)}, TypeError, "shared_input must be bfloat16, got float32"
    ),
    "shared_input_1d": Bad(
        {"shared_input": zeros(64, dtype=torch.bfloat16)},
        ValueError,
        "shared_input must be 2-D (rows, n), got shape (64,)",
    ),
    "shared_input_no_rows": Bad(
        {"shared_input": zeros(0, 64, dtype=torch.bfloat16)},
        ValueError,
        "shared_input must have at least one row (pass None for none), got shape (0, 64)",
    ),
    "shared_input_of_another_n": Bad(
        {"shared_input": zeros(2, 63, dtype=torch.bfloat16)},
        ValueError,
        "shared_input must be (rows, n) with the n of w, which is 64, got shape (2, 63)",
    ),
    "shared_input_past_the_end": Bad(
        {"shared_input_offset": 5},
        ValueError,
        "shared_input_offset + the rows of shared_input must be at most output_bs = 6, got 5 + 2",
    ),
    "shared_input_offset_negative": Bad(
        {"shared_input_offset": -1}, ValueError, "shared_input_offset must be >= 0, got -1"
    ),
    "shared_input_offset_without_shared_input": Bad(
        {"shared_input": None, "shared_input_offset": 7},
        ValueError,
        "shared_input_offset + the rows of shared_input must be at most output_bs = 6, got 7 + 0",
    ),
    "dtype_half": Bad(
        {"dtype": half}, TypeError, "dtype must be None or torch.float32, got torch.float16"
    ),
    "dtype_code": Bad(
        {"dtype": 0},
        TypeError,
        "dtype must be None or torch.float32, got torch.uint8; the codes 0, 1 and 2 of the "
        "interface document belong to the GE attribute, and torch reads an int as a ScalarType",
    ),
    "output_bs_negative": Bad({"output_bs": -1}, ValueError, LIMIT + "-1"),
    "output_bs_large": Bad({"output_bs": 25}, ValueError, LIMIT + "25"),
    "group_list_type_2": Bad(
        {"group_list_type": 2},
        ValueError,
        "group_list_type must be 0 (totals) or 1 (counts), got 2",
    ),
    "offset": Bad(
        {"offset": zeros(4, 1, 64)},
        NotImplementedError,
        f"offset is {LATER}a tensor of shape (4, 1, 64); supported are int8 x and int8 w, without",
    ),
    "x_dtype": Bad({"x_dtype": 290}, NotImplementedError, f"x_dtype is {LATER}290; supported are"),
    "w_dtype": Bad({"w_dtype": 296}, NotImplementedError, f"w_dtype is {LATER}296"),
    "scale_dtype": Bad({"scale_dtype": 293}, NotImplementedError, f"scale_dtype is {LATER}293"),
    "pertoken_scale_dtype": Bad(
        {"pertoken_scale_dtype": 293},
        NotImplementedError,
        f"pertoken_scale_dtype is {LATER}293",
    ),
}


def row_index(first_bad, value):
    rows = call()["row_index"].clone()
    rows[first_bad:] = value
    return rows


# What only the data shows.
VALUE_ERRORS = {
    "count_negative": Bad(
        {"group_list": torch.tensor([7, -2, 12, 5])},
        ValueError,
        "group_list must hold counts >= 0 (group_list_type=1), got group_list[1] = -2",
    ),
    "counts_past_m": Bad(
        {"group_list": torch.tensor([7, 2, 16, 5])},
        ValueError,
        "group_list must hold at most m = 24 rows of x, got group_list[2] = 16, which makes 25 ro",
    ),
    "count_huge": Bad(
        {"group_list": torch.tensor([2**62, 2**62, 2**62, 2**62])},
        ValueError,
        "group_list must hold at most m = 24 rows of x, got group_list[0] = 4611686018427387904",
    ),
    "totals_decrease": Bad(
        {"group_list": torch.tensor([7, 9, 8, 24]), "group_list_type": 0},
        ValueError,
        "group_list must hold totals that do not decrease (group_list_type=0), got group_list[2] "
        "= 8 after 9",
    ),
    "total_negative": Bad(
        {"group_list": torch.tensor([-1, 9, 9, 24]), "group_list_type": 0},
        ValueError,
        "group_list must hold totals that do not decrease (group_list_type=0), got group_list[0] "
        "= -1 after 0",
    ),
    "totals_past_m": Bad(
        {"group_list": torch.tensor([7, 9, 9, 25]), "group_list_type": 0},
        ValueError,
        "group_list must hold at most m = 24 rows of x, got group_list[3] = 25 (group_list_type=0",
    ),
    "row_index_large": Bad(
        {"row_index": row_index(17, 6)},
        IndexError,
        "row_index must lie in [0, output_bs) = [0, 6), got row_index[17] = 6 (7 of 24 rows are",
    ),
    "row_index_negative": Bad(
        {"row_index": row_index(3, -1)},
        IndexError,
        "row_index must lie in [0, output_bs) = [0, 6), got row_index[3] = -1 (21 of 24 rows are",
    ),
}
