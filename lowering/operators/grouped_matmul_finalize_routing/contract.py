"""The operator's contract, checked once: arguments in, a :class:`Problem` out.

Only metadata is read here, so the rules hold alike for real, fake and meta tensors, and no rule
specialises a symbolic size that it merely compares. What needs data is in :func:`check_values`.
Every message names the argument, what was expected and what came.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, NoReturn

import torch
from torch import Tensor

from npu_lowering.operators.grouped_matmul_finalize_routing import schema
from npu_lowering.operators.grouped_matmul_finalize_routing.fractal_nz import K0, N0

# Under a tracer a size may be a SymInt, which torch's own annotations call an int as well.
Size = int

LATER = ("offset", "x_dtype", "w_dtype", "scale_dtype", "pertoken_scale_dtype")
"""Arguments of weight formats other than int8."""


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


def is_symbolic(size: object) -> bool:
    """Whether a size is a tracer's symbol and not a number."""
    return isinstance(size, torch.SymInt)


def is_covered(w: Tensor, rest: dict[str, Any]) -> bool:
    """Whether a call is ours: int8 weights, no argument of another weight format or newer schema.

    Args:
        w: the weight.
        rest: other arguments by name, not necessarily all.
    """
    later = (value for name, value in rest.items() if name in LATER or name not in ARGUMENTS)
    return w.dtype == torch.int8 and all(value is None for value in later)


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
    shared_input_weight: float | None = schema.SHARED_INPUT_WEIGHT,
    shared_input_offset: int | None = schema.SHARED_INPUT_OFFSET,
    output_bs: int | None = schema.OUTPUT_BS,
    group_list_type: int | None = schema.GROUP_LIST_TYPE,
    tuning_config: Sequence[int] | None = None,
    x_dtype: int | None = None,
    w_dtype: int | None = None,
    scale_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
) -> Problem:
    """Hold a call to the contract. Arguments and errors are those of the operator."""
    del tuning_config  # picks tile sizes on the device and never changes the result
    for name, value in zip(LATER, (offset, x_dtype, w_dtype, scale_dtype, pertoken_scale_dtype)):
        if value is not None:
            refuse_later(name, value)
    # torch takes None for any tensor from Python.
    x = _required("x", x, "int8 (m, k)")
    w = _required("w", w, "int8 (e, k, n)")
    group_list = _required("group_list", group_list, "int64 (e,)")
    _check_weight_dtype(w)
    _check_dtype("x", x, torch.int8)
    _check_2d("x", x, "(m, k)")
    m, k = x.shape
    e, n = _weight_sizes(w, k)
    for size in (m, k, e, n):
        _require(
            ValueError,
            size > 0,
            lambda: f"x and w must not be empty, got m = {m}, k = {k}, e = {e}, n = {n}",
        )

    _check_dtype("group_list", group_list, torch.int64)
    _check_shape("group_list", group_list, "(e,)", (e,))
    scale = _required("scale", scale, "float32 or bfloat16 (e, n)")
    _check_dtype("scale", scale, torch.float32, torch.bfloat16)
    _check_shape("scale", scale, "(e, n)", (e, n))
    row_index = _required("row_index", row_index, "int64 or int32 (m,)")
    _check_dtype("row_index", row_index, torch.int64, torch.int32)
    _check_shape("row_index", row_index, "(m,)", (m,))
    if bias is not None:
        _check_dtype("bias", bias, torch.float32, torch.bfloat16)
        _check_shape("bias", bias, "(e, n)", (e, n))
    if pertoken_scale is not None:
        _check_dtype("pertoken_scale", pertoken_scale, torch.float32)
        if pertoken_scale.dim() == 2:
            # The interface document asks for (m,), and its own examples pass (m, 1).
            _check_shape("pertoken_scale", pertoken_scale, "(m,) or (m, 1)", (m, 1))
            pertoken_scale = pertoken_scale.select(1, 0)
        else:
            _check_shape("pertoken_scale", pertoken_scale, "(m,) or (m, 1)", (m,))
    if logit is not None:
        _check_dtype("logit", logit, torch.float32)
        _check_shape("logit", logit, "(m,)", (m,))

    if dtype is not None and dtype != torch.float32:
        raise TypeError(
            f"dtype must be None or torch.float32, got {dtype}; the codes 0, 1 and 2 of the "
            "interface document belong to the GE attribute, and torch reads an int as a ScalarType"
        )
    rows = _output_rows(output_bs, m)
    first = _check_shared_input(shared_input, shared_input_offset, logit, n, rows)
    if group_list_type is None:
        group_list_type = schema.GROUP_LIST_TYPE
    _require(
        ValueError,
        group_list_type in (schema.TOTALS, schema.COUNTS),
        lambda: f"group_list_type must be 0 (totals) or 1 (counts), got {group_list_type}",
    )
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
        shared_input_weight=(
            schema.SHARED_INPUT_WEIGHT if shared_input_weight is None else shared_input_weight
        ),
        shared_input_offset=first,
        output_bs=rows,
        group_list_type=group_list_type,
    )
    _check_devices(problem)
    return problem


ARGUMENTS = tuple(inspect.signature(check).parameters)
"""Every argument this package knows, in the order of the schema."""


def check_known(call: dict[str, Any]) -> Problem:
    """:func:`check` of a call by name, of a schema that may be newer than this package.

    An argument that is not known here may be None; anything else is refused by its name.
    """
    for name, value in call.items():
        if name not in ARGUMENTS and value is not None:
            refuse_later(name, value)
    return check(**{name: value for name, value in call.items() if name in ARGUMENTS})


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


def refuse_later(name: str, value: object) -> NoReturn:
    """Refuse an argument of a later generation that is not built yet."""
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise NotImplementedError(
        f"{name} is not supported yet and must be None, got {got}; "
        "supported are int8 x and int8 w, without offset and without the *_dtype arguments"
    )


def _require(error: type[Exception], condition: bool, message: Callable[[], str]) -> None:
    """As torch._check; a condition on symbols becomes a guard or a runtime assertion there."""
    if condition is not True:
        torch._check_with(error, condition, message)


def _refuse_group(problem: Problem, g: int, value: int, before: int) -> NoReturn:
    if problem.group_list_type == schema.COUNTS:
        raise ValueError(
            f"group_list must hold counts >= 0 (group_list_type=1), got group_list[{g}] = {value}"
        )
    raise ValueError(
        "group_list must hold totals that do not decrease (group_list_type=0), "
        f"got group_list[{g}] = {value} after {before}"
    )


def _required(name: str, tensor: Tensor | None, what: str) -> Tensor:
    if tensor is None:
        raise TypeError(f"{name} is required: expected a tensor, {what}, got None")
    return tensor


def _check_weight_dtype(w: Tensor) -> None:
    if w.dtype == torch.int8:
        return
    if w.dtype == torch.int32 or "float8" in str(w.dtype) or "float4" in str(w.dtype):
        packed = " (eight int4 in each)" if w.dtype == torch.int32 else ""
        raise NotImplementedError(
            f"w of {w.dtype}{packed} is not supported yet; supported is int8 w with int8 x"
        )
    raise TypeError(f"w must be int8, got {w.dtype}")


def _weight_sizes(w: Tensor, k: Size) -> tuple[Size, Size]:
    if w.dim() == 3:
        _require(
            ValueError,
            w.shape[1] == k,
            lambda: (
                f"w must be (e, k, n) with the k of x, which is {k}, got shape {tuple(w.shape)}"
            ),
        )
        return w.shape[0], w.shape[2]
    _require(
        ValueError,
        w.dim() == 5,
        lambda: (
            "w must be 3-D (e, k, n) or its FRACTAL_NZ form, 5-D (e, n1, k1, 16, 32), "
            f"got shape {tuple(w.shape)}"
        ),
    )
    for size, expected in ((w.shape[3], K0), (w.shape[4], N0)):
        _require(
            ValueError,
            size == expected,
            lambda: f"w must be (e, n1, k1, {K0}, {N0}) when 5-D, got shape {tuple(w.shape)}",
        )
    _require(
        ValueError,
        w.shape[2] == (k + K0 - 1) // K0,
        lambda: (
            f"w must be (e, n1, k1, 16, 32) with k1 = ceil(k / 16), which is "
            f"{(k + K0 - 1) // K0} for the k of x, {k}, got shape {tuple(w.shape)}"
        ),
    )
    return w.shape[0], w.shape[1] * N0


def _check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype).replace("torch.", "") for dtype in allowed)
        raise TypeError(f"{name} must be {names}, got {str(tensor.dtype).replace('torch.', '')}")


def _check_2d(name: str, tensor: Tensor, form: str) -> None:
    _require(
        ValueError,
        tensor.dim() == 2,
        lambda: f"{name} must be 2-D {form}, got shape {tuple(tensor.shape)}",
    )


def _check_shape(name: str, tensor: Tensor, form: str, sizes: tuple[Size, ...]) -> None:
    def message() -> str:
        return f"{name} must be {form} = {sizes}, got shape {tuple(tensor.shape)}"

    _require(ValueError, tensor.dim() == len(sizes), message)
    for size, expected in zip(tensor.shape, sizes):
        _require(ValueError, size == expected, message)


def _output_rows(output_bs: int | None, m: Size) -> Size:
    if not output_bs:
        return m
    rows: Size = output_bs
    _require(
        ValueError,
        rows > 0,
        lambda: f"output_bs must be 0 or None, for m, or in [1, m] = [1, {m}], got {rows}",
    )
    _require(
        ValueError,
        rows <= m,
        lambda: f"output_bs must be 0 or None, for m, or in [1, m] = [1, {m}], got {rows}",
    )
    return rows


def _check_shared_input(
    shared_input: Tensor | None,
    shared_input_offset: int | None,
    logit: Tensor | None,
    n: Size,
    rows: Size,
) -> int:
    offset = schema.SHARED_INPUT_OFFSET if shared_input_offset is None else shared_input_offset
    _require(
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
        _check_dtype("shared_input", shared_input, torch.bfloat16)
        _check_2d("shared_input", shared_input, "(rows, n)")
        shared_rows = shared_input.shape[0]
        _require(
            ValueError,
            shared_rows > 0,
            lambda: (
                "shared_input must have at least one row (pass None for none), "
                f"got shape {tuple(shared_input.shape)}"
            ),
        )
        _require(
            ValueError,
            shared_input.shape[1] == n,
            lambda: (
                f"shared_input must be (rows, n) with the n of w, which is {n}, "
                f"got shape {tuple(shared_input.shape)}"
            ),
        )
    _require(
        ValueError,
        offset + shared_rows <= rows,
        lambda: (
            "shared_input_offset + the rows of shared_input must be at most output_bs = "
            f"{rows}, got {offset} + {shared_rows}"
        ),
    )
    return offset


def _check_devices(problem: Problem) -> None:
    for name, value in vars(problem).items():
        if isinstance(value, Tensor) and value.device != problem.x.device:
            raise ValueError(
                f"{name} must be on the device of x, {problem.x.device}, got {value.device}"
            )


@dataclass(frozen=True)
class _DeviceLimit:
    """A documented limit of the device; none of the arithmetic."""

    quantity: str
    expected: str
    devices: str
    holds: Callable[[int], bool]


_DOCUMENT = "the devices of the interface document"
_NEWER = "newer devices"
# Sources: the interface document, 参数说明; for newer devices, the shape checks of CANN.
_DEVICE_LIMITS = (
    _DeviceLimit("m", "at most 131072", _DOCUMENT, lambda m: m <= 131072),
    _DeviceLimit("k", "2048", _DOCUMENT, lambda k: k == 2048),
    _DeviceLimit("n", "7168", _DOCUMENT, lambda n: n == 7168),
    _DeviceLimit("e", "at most 256", _DOCUMENT, lambda e: e <= 256),
    _DeviceLimit("rows of shared_input", "at most 2048", _DOCUMENT, lambda rows: rows <= 2048),
    _DeviceLimit("output_bs", "at most 16384", _DOCUMENT, lambda rows: rows <= 16384),
    _DeviceLimit("k", "a multiple of 16", _NEWER, lambda k: k % 16 == 0),
    _DeviceLimit("n", "a multiple of 32", _NEWER, lambda n: n % 32 == 0),
    _DeviceLimit("n", "at least 256", _NEWER, lambda n: n >= 256),
)


def limits_of(problem: Problem) -> list[str]:
    """:func:`device_limits` of a checked call."""
    shared = problem.shared_input
    sizes: dict[str, Size | None] = {
        "m": problem.m,
        "k": problem.k,
        "n": problem.n,
        "e": problem.e,
        "rows of shared_input": None if shared is None else shared.shape[0],
        "output_bs": problem.output_bs,
    }
    sentences = []
    for limit in _DEVICE_LIMITS:
        size = sizes[limit.quantity]
        # A symbolic size has no value to judge, and asking for one would specialise it.
        if size is not None and not is_symbolic(size) and not limit.holds(size):
            sentences.append(
                f"{limit.quantity} must be {limit.expected} on {limit.devices}, got {size}"
            )
    return sentences


def device_limits(x: Tensor, w: Tensor, group_list: Tensor, **kwargs: Any) -> list[str]:
    """Say which documented limits of the device a call exceeds.

    The limits are the device's, not the arithmetic's: on CPU the call runs all the same, and
    lowering it to GE warns with these sentences.

    Args:
        x: as for :func:`npu_lowering.npu_grouped_matmul_finalize_routing`, of any device; fake and
            meta tensors serve as well, for no data is read.
        w: as there.
        group_list: as there.
        **kwargs: the operator's keyword arguments.

    Returns:
        A sentence for each limit exceeded, with the rule and the value; empty when there is none.
        Limits on sizes that are symbolic are left out.

    Raises:
        TypeError, ValueError, NotImplementedError: the call is not legal anywhere; as the operator.
    """
    return limits_of(check(x, w, group_list, **kwargs))
