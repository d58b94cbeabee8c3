"""The operator's contract, checked once: arguments in, a :class:`Problem` out.

What needs data is in :func:`check_values`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    Size,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    must_be_none,
    require,
    required,
)
from npu_lowering.operators.grouped_matmul_finalize_routing import schema
from npu_lowering.operators.grouped_matmul_finalize_routing.fractal_nz import K0, N0
from npu_lowering.operators.operator import SymInt, dtype_name
from npu_lowering.torch_internals import is_data_dependent

LATER = ("offset", "x_dtype", "w_dtype", "scale_dtype", "pertoken_scale_dtype")
"""Arguments of weight formats other than int8."""
_SUPPORTED = "supported are int8 x and int8 w, without offset and without the *_dtype arguments"


@dataclass(frozen=True)
class Problem:
    """A legal call in one form: defaults filled in, pertoken_scale 1-D, sizes by name.

    Attributes:
        x: ``(m, k)`` int8.
        w: ``(e, k, n)`` int8, or its FRACTAL_NZ form ``(e, n/32, ceil(k/16), 16, 32)``.
        group_list: ``(e,)`` int64, counts or totals by group_list_type.
        scale: ``(e, n)`` float32 or bfloat16.
        bias: ``(e, n)`` float32 or bfloat16, or None.
        pertoken_scale: ``(m,)`` float32, or None for ones.
        shared_input: ``(rows, n)`` bfloat16, or None.
        logit: ``(m,)`` float32, or None for ones.
        row_index: ``(m,)`` int64 or int32.
        shared_input_weight: factor of shared_input, rounded to float32 where it is used.
        shared_input_offset: first output row that shared_input is added to.
        output_bs: rows of the result.
        max_output_bs: an upper bound of them, or 0.
        group_list_type: :data:`schema.COUNTS` or :data:`schema.TOTALS`.
    """

    x: Tensor
    w: Tensor
    group_list: Tensor
    scale: Tensor
    bias: Tensor | None
    pertoken_scale: Tensor | None
    shared_input: Tensor | None
    logit: Tensor | None
    row_index: Tensor
    shared_input_weight: float
    shared_input_offset: int
    output_bs: Size
    max_output_bs: int
    group_list_type: int

    @property
    def m(self) -> Size:
        """Rows of x, tail rows included."""
        return self.x.shape[0]

    @property
    def k(self) -> Size:
        """The inner size."""
        return self.x.shape[1]

    @property
    def e(self) -> Size:
        """Experts, which are groups."""
        return self.w.shape[0]

    @property
    def n(self) -> Size:
        """Columns of the result."""
        return self.scale.shape[1]

    @property
    def w_is_nz(self) -> bool:
        """Whether w is in its 5-D form."""
        return self.w.dim() == 5


def is_covered(call: Mapping[str, Any]) -> bool:
    """Whether a call is ours: int8 weights, no argument of another weight format or newer schema.

    Args:
        call: the arguments that are given, by name.
    """
    w = call.get("w")
    if w is None:
        return True  # to be refused by our sentence
    later = (value for name, value in call.items() if name in LATER or name not in ARGUMENTS)
    return bool(w.dtype == torch.int8) and all(value is None for value in later)


def check(
    x: Tensor,
    w: Tensor,
    group_list: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    shared_input: Tensor | None = None,
    logit: Tensor | None = None,
    row_index: Tensor | None = None,
    dtype: torch.dtype | None = None,
    shared_input_weight: float | None = 1.0,
    shared_input_offset: SymInt | None = 0,
    output_bs: SymInt | None = 0,
    group_list_type: int | None = 1,
    tuning_config: Sequence[int] | None = None,
    x_dtype: int | None = None,
    w_dtype: int | None = None,
    scale_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
    max_output_bs: int = 0,
) -> Problem:
    """Multiply by the experts' weights, dequantise, weigh, and add each row to its token.

    The same as ``torch.ops.npu.npu_grouped_matmul_finalize_routing``, and as
    ``torch_npu.npu_grouped_matmul_finalize_routing`` where there is a torch_npu. For group g and
    its rows r, consecutive rows of x, in float32 and in this order::

        acc = x[r] @ w[g]                              exact int32
        y   = acc * scale[g] * (pertoken_scale[r] * logit[r]) + logit[r] * bias[g]
        out = 0, with shared_input * shared_input_weight from row shared_input_offset on
        out[row_index[r]] += y                         in ascending r

    Rows past the last group's end are not read, in any tensor. On CPU the result is deterministic,
    bit for bit, for any number of threads.

    Args:
        x: ``(m, k)`` int8, the rows of all experts, sorted by expert.
        w: ``(e, k, n)`` int8, which is also what a tensor cast to FRACTAL_NZ looks like; or that
            format spelled out, ``(e, n/32, ceil(k/16), 16, 32)``, see :func:`to_fractal_nz`.
        group_list: ``(e,)`` int64, counts of rows or their running totals, see group_list_type.
        scale: ``(e, n)`` float32 or bfloat16; required.
        bias: ``(e, n)`` float32 or bfloat16. A GE graph takes bfloat16 only.
        offset: not supported yet; None.
        pertoken_scale: ``(m,)`` or ``(m, 1)`` float32; None counts as ones.
        shared_input: ``(rows, n)`` bfloat16, the shared expert's output; needs logit.
        logit: ``(m,)`` float32, the routing weight of each row; None counts as ones.
        row_index: ``(m,)`` int64 or int32, the output row that each row is added to; required.
        dtype: None or torch.float32, the dtype of the result.
        shared_input_weight: factor of shared_input; None means 1.
        shared_input_offset: first output row that shared_input is added to; None means 0. It does
            not move row_index.
        output_bs: rows of the result, at most m; 0 or None means m.
        group_list_type: 1, or None, where group_list holds counts; 0 where it holds totals.
        tuning_config: a hint to the device's tiling; never changes the result.
        x_dtype: not supported yet; None.
        w_dtype: not supported yet; None.
        scale_dtype: not supported yet; None.
        pertoken_scale_dtype: not supported yet; None.
        max_output_bs: while a symbolic output_bs is lowered to GE, an upper bound of it, for the
            node's attribute has to be a constant; 0 where torch knows a bound already. It never
            changes the result, and is no argument of torch_npu's own operator.

    Returns:
        ``(output_bs, n)`` float32, contiguous, fresh.

    Raises:
        TypeError: a dtype is wrong, or a required tensor is None.
        ValueError: a shape, a size or a scalar is wrong; on CPU also for values of group_list.
        IndexError: on CPU, a row_index that counts lies outside ``[0, output_bs)``.
        NotImplementedError: an argument of the int4, float8 or float4 forms is given.

    Source: the interface document of torch_npu, and the schemas of its releases.
    """
    del tuning_config  # picks tile sizes on the device and never changes the result
    for name, value in zip(LATER, (offset, x_dtype, w_dtype, scale_dtype, pertoken_scale_dtype)):
        must_be_none(name, value, _SUPPORTED)
    e, m, n = _matrices(x, w)
    group_list = required("group_list", group_list, "int64 (e,)")
    check_dtype("group_list", group_list, torch.int64)
    check_shape("group_list", group_list, "(e,)", (e,))
    scale = required("scale", scale, "float32 or bfloat16 (e, n)")
    check_dtype("scale", scale, torch.float32, torch.bfloat16)
    check_shape("scale", scale, "(e, n)", (e, n))
    row_index = required("row_index", row_index, "int64 or int32 (m,)")
    check_dtype("row_index", row_index, torch.int64, torch.int32)
    check_shape("row_index", row_index, "(m,)", (m,))
    _check_bias(bias, e, n)
    pertoken_scale = _one_dimensional(pertoken_scale, m)
    _check_logit(logit, m)
    _check_result_dtype(dtype)
    rows = _output_rows(output_bs, m)
    first = _check_shared_input(shared_input, shared_input_offset, logit, n, rows)
    problem = Problem(
        x=x,
        w=w,
        group_list=group_list,
        scale=scale,
        bias=bias,
        pertoken_scale=pertoken_scale,
        shared_input=shared_input,
        logit=logit,
        row_index=row_index,
        shared_input_weight=1.0 if shared_input_weight is None else shared_input_weight,
        shared_input_offset=first,
        output_bs=rows,
        max_output_bs=_bound(max_output_bs, rows),
        group_list_type=_group_list_type(group_list_type),
    )
    check_devices("x", {k: v for k, v in vars(problem).items() if isinstance(v, Tensor)})
    return problem


ARGUMENTS = frozenset(inspect.signature(check).parameters)
"""Every argument this package knows."""


def check_values(problem: Problem) -> list[int]:
    """Hold the data of a call to the contract, where there is data.

    Returns:
        The running totals of the groups, ``e`` ints: group g is rows ``[ends[g-1], ends[g])``.

    Raises:
        ValueError: group_list has a negative count, a decreasing total, or more rows than x.
        IndexError: a row_index that counts lies outside ``[0, output_bs)``.
    """
    totals = problem.group_list_type == schema.TOTALS
    m = int(problem.m)
    ends: list[int] = []
    end = 0
    for g, value in enumerate(problem.group_list.tolist()):
        before, end = end, value if totals else end + value
        if end < before:
            _refuse_group(problem, g, value, before)
        if end > m:
            what = "" if totals else f", which makes {end} rows in all"
            raise ValueError(
                f"group_list must hold at most m = {m} rows of x, got group_list[{g}] = {value}"
                f"{what} (group_list_type={problem.group_list_type})"
            )
        ends.append(end)

    rows = problem.row_index[:end]  # what lies past the last group is never read
    if end:
        low, high = torch.aminmax(rows)
        if int(low) < 0 or int(high) >= problem.output_bs:
            bad = ((rows < 0) | (rows >= problem.output_bs)).nonzero()
            first = int(bad[0])
            raise IndexError(
                f"row_index must lie in [0, output_bs) = [0, {problem.output_bs}), got "
                f"row_index[{first}] = {int(rows[first])} ({len(bad)} of {end} rows are outside)"
            )
    return ends


def _refuse_group(problem: Problem, g: int, value: int, before: int) -> NoReturn:
    if problem.group_list_type == schema.COUNTS:
        raise ValueError(
            f"group_list must hold counts >= 0 (group_list_type=1), got group_list[{g}] = {value}"
        )
    raise ValueError(
        "group_list must hold totals that do not decrease (group_list_type=0), "
        f"got group_list[{g}] = {value} after {before}"
    )


def _matrices(x: Tensor, w: Tensor) -> tuple[Size, Size, Size]:
    """e, m and n of two matrices that go together."""
    x = required("x", x, "int8 (m, k)")
    w = required("w", w, "int8 (e, k, n)")
    _check_weight_dtype(w)
    check_dtype("x", x, torch.int8)
    check_rank("x", x, 2, "(m, k)")
    m, k = x.shape
    e, n = _weight_sizes(w, k)
    for size in (m, k, e, n):
        require(
            ValueError,
            size > 0,
            lambda: f"x and w must not be empty, got m = {m}, k = {k}, e = {e}, n = {n}",
        )
    return e, m, n


def _check_weight_dtype(w: Tensor) -> None:
    if w.dtype == torch.int32 or "float8" in str(w.dtype) or "float4" in str(w.dtype):
        packed = " (eight int4 in each)" if w.dtype == torch.int32 else ""
        raise NotImplementedError(
            f"w of {dtype_name(w.dtype)}{packed} is not supported yet; "
            "supported is int8 w with int8 x"
        )
    check_dtype("w", w, torch.int8)


def _weight_sizes(w: Tensor, k: Size) -> tuple[Size, Size]:
    if w.dim() == 3:
        require(
            ValueError,
            w.shape[1] == k,
            lambda: (
                f"w must be (e, k, n) with the k of x, which is {k}, got shape {tuple(w.shape)}"
            ),
        )
        return w.shape[0], w.shape[2]
    require(
        ValueError,
        w.dim() == 5,
        lambda: (
            "w must be 3-D (e, k, n) or its FRACTAL_NZ form, 5-D (e, n1, k1, 16, 32), "
            f"got shape {tuple(w.shape)}"
        ),
    )
    for size, expected in ((w.shape[3], K0), (w.shape[4], N0)):
        require(
            ValueError,
            size == expected,
            lambda: f"w must be (e, n1, k1, {K0}, {N0}) when 5-D, got shape {tuple(w.shape)}",
        )
    require(
        ValueError,
        w.shape[2] == (k + K0 - 1) // K0,
        lambda: (
            f"w must be (e, n1, k1, 16, 32) with k1 = ceil(k / 16), which is "
            f"{(k + K0 - 1) // K0} for the k of x, {k}, got shape {tuple(w.shape)}"
        ),
    )
    return w.shape[0], w.shape[1] * N0


def _check_bias(bias: Tensor | None, e: Size, n: Size) -> None:
    if bias is not None:
        check_dtype("bias", bias, torch.float32, torch.bfloat16)
        check_shape("bias", bias, "(e, n)", (e, n))


def _one_dimensional(pertoken_scale: Tensor | None, m: Size) -> Tensor | None:
    """``(m,)`` of either form: the document asks for it, and its own examples pass ``(m, 1)``."""
    if pertoken_scale is None:
        return None
    check_dtype("pertoken_scale", pertoken_scale, torch.float32)
    wide = pertoken_scale.dim() == 2
    check_shape("pertoken_scale", pertoken_scale, "(m,) or (m, 1)", (m, 1) if wide else (m,))
    return pertoken_scale.select(1, 0) if wide else pertoken_scale


def _check_logit(logit: Tensor | None, m: Size) -> None:
    if logit is not None:
        check_dtype("logit", logit, torch.float32)
        check_shape("logit", logit, "(m,)", (m,))


def _check_result_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and dtype != torch.float32:
        raise TypeError(
            f"dtype must be None or torch.float32, got {dtype}; the codes 0, 1 and 2 of the "
            "interface document belong to the GE attribute, and torch reads an int as a ScalarType"
        )


def _group_list_type(value: int | None) -> int:
    kind = schema.COUNTS if value is None else value
    require(
        ValueError,
        kind in (schema.TOTALS, schema.COUNTS),
        lambda: f"group_list_type must be 0 (totals) or 1 (counts), got {kind}",
    )
    return kind


def _output_rows(output_bs: int | None, m: Size) -> Size:
    # What only data knows counts as given: whether it is 0 is not known while it is traced.
    if output_bs is None or (not is_data_dependent(output_bs) and output_bs == 0):
        return m
    rows: Size = output_bs
    require(
        ValueError,
        rows > 0,
        lambda: f"output_bs must be 0 or None, for m, or in [1, m] = [1, {m}], got {rows}",
    )
    require(
        ValueError,
        rows <= m,
        lambda: f"output_bs must be 0 or None, for m, or in [1, m] = [1, {m}], got {rows}",
    )
    return rows


def _bound(max_output_bs: int, rows: Size) -> int:
    require(
        ValueError,
        max_output_bs >= 0,
        lambda: f"max_output_bs must be >= 0, got {max_output_bs}",
    )
    if max_output_bs:
        require(
            ValueError,
            rows <= max_output_bs,
            lambda: f"output_bs must be at most max_output_bs = {max_output_bs}, got {rows}",
        )
    return max_output_bs


def _check_shared_input(
    shared_input: Tensor | None,
    shared_input_offset: Size | None,
    logit: Tensor | None,
    n: Size,
    rows: Size,
) -> int:
    offset = 0 if shared_input_offset is None else shared_input_offset
    require(
        ValueError,
        offset >= 0,
        lambda: f"shared_input_offset must be >= 0, got {shared_input_offset}",
    )
    shared_rows: Size = 0
    if shared_input is not None:
        if logit is None:
            raise ValueError(
                "logit is required with shared_input: expected both, logit alone or neither, "
                f"got shared_input of shape {tuple(shared_input.shape)} and logit None"
            )
        check_dtype("shared_input", shared_input, torch.bfloat16)
        check_rank("shared_input", shared_input, 2, "(rows, n)")
        shared_rows = shared_input.shape[0]
        require(
            ValueError,
            shared_rows > 0,
            lambda: (
                "shared_input must have at least one row (pass None for none), "
                f"got shape {tuple(shared_input.shape)}"
            ),
        )
        require(
            ValueError,
            shared_input.shape[1] == n,
            lambda: (
                f"shared_input must be (rows, n) with the n of w, which is {n}, "
                f"got shape {tuple(shared_input.shape)}"
            ),
        )
    require(
        ValueError,
        offset + shared_rows <= rows,
        lambda: (
            "shared_input_offset + the rows of shared_input must be at most output_bs = "
            f"{rows}, got {offset} + {shared_rows}"
        ),
    )
    return offset
