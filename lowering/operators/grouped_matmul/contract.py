"""What npu_grouped_matmul accepts: a call of either overload as one checked value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    Size,
    check_choice,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    code_of,
    dtype_of_code,
    is_symbolic,
    must_be_none,
    require,
)
from npu_lowering.operators.exact import OVERFLOW_K
from npu_lowering.operators.row_groups import ends_of

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_BIAS = {
    torch.int8: torch.int32,
    torch.float16: torch.float16,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
}
_SUPPORTED = "supported are x of int8, float16, bfloat16 or float32, weight of x's dtype or int8"

NO_GROUPS, ROWS, COLUMNS = -1, 0, 2
_GROUP_TYPES: dict[object, str] = {
    NO_GROUPS: "no groups",
    ROWS: "groups of rows of x",
    COLUMNS: "groups of columns of x",
}
_SPLIT_ITEMS: dict[object, str] = {
    0: "several results",
    1: "several results",
    2: "one result",
    3: "one result",
}
_ACTIVATIONS: dict[object, str] = {
    0: "none",
    1: "relu",
    2: "gelu, by tanh",
    4: "fast gelu",
    5: "silu",
}


@dataclass(frozen=True)
class GroupedMatmul:
    """A checked call.

    Attributes:
        x: ``(m, k)``, or several, or of more axes.
        weight: one ``(e, k, n)``, or several ``(k, n)``.
        bias: for each weight ``(n,)`` or ``(e, n)``; empty for none, as those that follow.
        scale: the same.
        antiquant_scale: the same.
        antiquant_offset: the same.
        per_token_scale: for each x ``(m,)``.
        group_list: int64 ``(e,)``, or ints, or None.
        totals: whether group_list holds running totals, not counts.
        group_type: NO_GROUPS where each x has its weight, ROWS or COLUMNS where one x is cut.
        joined: whether there is one result.
        activation: what is applied last, by its number.
        dtype: of the results.
    """

    x: tuple[Tensor, ...]
    weight: tuple[Tensor, ...]
    bias: tuple[Tensor, ...]
    scale: tuple[Tensor, ...]
    antiquant_scale: tuple[Tensor, ...]
    antiquant_offset: tuple[Tensor, ...]
    per_token_scale: tuple[Tensor, ...]
    group_list: Tensor | tuple[int, ...] | None
    totals: bool
    group_type: int
    joined: bool
    activation: int
    dtype: torch.dtype

    @property
    def stacked(self) -> bool:
        """Whether all weights are one tensor."""
        return self.weight[0].dim() == 3

    @property
    def groups(self) -> Size:
        """How many weights there are."""
        return self.weight[0].shape[0] if self.stacked else len(self.weight)

    def ends(self) -> list[int]:
        """Where each group of rows, or of columns, of one x ends.

        Raises:
            ValueError: a count is negative, a total decreases, or they are more than x has.
        """
        values = self.group_list
        axis = 1 if self.group_type == COLUMNS else 0
        listed = values.tolist() if isinstance(values, Tensor) else list(values or ())
        return ends_of("group_list", listed, self.x[0].shape[axis], totals=self.totals)

    def check_ints(self) -> None:
        """Hold a group_list of ints to its values, where sizes are numbers.

        Raises:
            ValueError: see :meth:`ends` and :meth:`check_sizes`.
        """
        if any(is_symbolic(x.shape[0]) for x in self.x):
            return
        if self.group_type == NO_GROUPS:
            self.check_sizes()
        else:
            self.ends()

    def check_sizes(self) -> None:
        """Hold a group_list beside several x to their sizes.

        Raises:
            ValueError: it says another size.
        """
        if self.group_list is None:
            return
        values = self.group_list
        listed = values.tolist() if isinstance(values, Tensor) else list(values)
        rows = [int(x.shape[0]) for x in self.x]
        ends = ends_of("group_list", listed, sum(rows), totals=self.totals)
        for g, (end, before) in enumerate(zip(ends, [0, *ends])):
            if end - before != rows[g]:
                raise ValueError(
                    f"group_list must say the rows of each x, {rows}, "
                    f"got {end - before} rows at group_list[{g}]"
                )


def check_group_type(group_type: int | None, matrices: int) -> int:
    """The group type of a call; several x that have their weights each are no groups.

    Raises:
        TypeError: it is None.
        ValueError: it is none that there is.
    """
    if group_type is None:
        raise TypeError(
            "group_type is required where group_list is no list of ints: expected -1, 0 or 2, "
            "got None"
        )
    check_choice("group_type", group_type, _GROUP_TYPES)
    return NO_GROUPS if group_type == ROWS and matrices > 1 else group_type


def checked(
    given: Mapping[str, Any],
    *,
    group_list: Tensor | Sequence[int] | None,
    group_type: int,
    totals: bool,
    output_dtype: int | None,
) -> GroupedMatmul:
    """A call of either overload, held to what both have in common.

    Args:
        given: the arguments by name.
        group_list: as given, ints as they are.
        group_type: what None stands for already resolved.
        totals: of group_list.
        output_dtype: as the number of a dtype.
    """
    for name in _REFUSED:
        value = given.get(name)
        if not isinstance(value, (list, tuple)) or len(value):
            must_be_none(name, value, _SUPPORTED)
    split_item = 0 if given["split_item"] is None else given["split_item"]
    check_choice("split_item", split_item, _SPLIT_ITEMS)
    act_type = given["act_type"] or 0
    check_choice("act_type", act_type, _ACTIVATIONS)
    lists = {name: tuple(given.get(name) or ()) for name in _LISTS}
    for name in ("x", "weight"):
        if not lists[name]:
            raise ValueError(f"{name} must be a list of at least one tensor, got none")
    if not isinstance(group_list, Tensor) and group_list is not None:
        group_list = tuple(group_list)
    call = GroupedMatmul(
        **lists,
        group_list=group_list,
        totals=totals,
        group_type=group_type,
        joined=split_item in (2, 3),
        activation=act_type,
        dtype=_result_dtype(lists, output_dtype),
    )
    _check_form(call)
    _check_matrices(call)
    _check_per_weight(call)
    _check_quantisation(call)
    tensors = [tensor for name in _LISTS for tensor in lists[name]]
    if isinstance(group_list, Tensor):
        tensors.append(group_list)
    check_devices("x", {f"tensor {i}": tensor for i, tensor in enumerate(tensors)})
    return call


_LISTS = (
    "x",
    "weight",
    "bias",
    "scale",
    "antiquant_scale",
    "antiquant_offset",
    "per_token_scale",
)
_REFUSED = (
    "offset",
    "activation_input",
    "activation_quant_scale",
    "activation_quant_offset",
    "x_dtype",
    "weight_dtype",
    "scale_dtype",
    "per_token_scale_dtype",
)


def _result_dtype(lists: Mapping[str, tuple[Tensor, ...]], code: int | None) -> torch.dtype:
    x, scale = lists["x"][0], lists["scale"]
    check_dtype("x", x, torch.int8, *_FLOATS)
    if x.dtype != torch.int8:
        return x.dtype if code is None else dtype_of_code("output_dtype", code, x.dtype)
    if not scale:
        # torch_npu's Meta says int8 where no dtype is asked for, which no product fits in.
        default = code_of(torch.int32)
        return dtype_of_code("output_dtype", default if code is None else code, torch.int32)
    if scale[0].dtype == torch.int64:
        default = code_of(torch.int8)
        allowed: tuple[torch.dtype, ...] = (torch.int8, torch.float16)
    else:
        default = code_of(torch.float16)
        allowed = _FLOATS
    return dtype_of_code("output_dtype", default if code is None else code, *allowed)


def _check_form(call: GroupedMatmul) -> None:
    """How many of each there are, and what group_list has to be for it."""
    xs, weights = len(call.x), len(call.weight)
    if call.group_type == NO_GROUPS:
        if xs != weights:
            raise ValueError(f"x must have as many tensors as weight, {weights}, got {xs}")
        return
    if call.group_list is None:
        raise TypeError(
            "group_list is required: expected int64 (e,), the groups of one x, got None"
        )
    if xs != 1:
        raise ValueError(f"x must be a list of one tensor where it is cut in groups, got {xs}")
    if call.group_type == COLUMNS:
        if not call.joined:
            raise NotImplementedError("split_item must be 2 or 3 with group_type 2, got 0 or 1")
        if weights != 1 or call.weight[0].dim() != 2:
            raise NotImplementedError(
                "weight must be a list of one 2-D (k, n) with group_type 2, got "
                f"{weights} with the shape {tuple(call.weight[0].shape)}"
            )
        if call.x[0].dtype == torch.int8 or any(
            (call.bias, call.scale, call.antiquant_scale, call.per_token_scale)
        ):
            raise NotImplementedError(
                "x must be a float and bias and scales None with group_type 2, "
                f"got x of {call.x[0].dtype}"
            )
    elif not call.joined and isinstance(call.group_list, Tensor):
        raise ValueError(
            "split_item must be 2 or 3 (one result) where one x is cut by a group_list tensor, "
            "got 0 or 1"
        )
    elif weights == 1 and call.weight[0].dim() == 3 and not call.joined:
        raise ValueError("split_item must be 2 or 3 with one 3-D weight, got 0 or 1")


def _check_matrices(call: GroupedMatmul) -> None:
    dtype = call.x[0].dtype
    stored = (dtype,) if not call.antiquant_scale else (torch.int8,)
    for i, x in enumerate(call.x):
        check_dtype(f"x[{i}]", x, dtype)
        if call.group_type == NO_GROUPS and not call.joined:
            require(
                ValueError,
                2 <= x.dim() <= 6,
                _says(f"x[{i}] must be 2-D to 6-D", x),
            )
        else:
            check_rank(f"x[{i}]", x, 2, "(m, k)")
        require(
            ValueError,
            x.dtype != torch.int8 or x.shape[-1] < OVERFLOW_K,
            _says(f"x[{i}] must have k < {OVERFLOW_K}", x),
        )
    one = call.group_type == ROWS and len(call.weight) == 1 and call.weight[0].dim() == 3
    form = "(e, k, n)" if one else "(k, n)"
    for i, weight in enumerate(call.weight):
        check_dtype(f"weight[{i}]", weight, *stored)
        check_rank(f"weight[{i}]", weight, 3 if one else 2, form)
        k = call.x[i if call.group_type == NO_GROUPS else 0].shape[-1]
        require(
            ValueError,
            weight.shape[-2] == k,
            _says(f"weight[{i}] must be {form} with the k of x, {k}", weight),
        )
        if call.joined:
            n = call.weight[0].shape[-1]
            require(
                ValueError,
                weight.shape[-1] == n,
                _says(f"weight[{i}] must have the n of the others, {n}", weight),
            )
    group_list = call.group_list
    if isinstance(group_list, Tensor):
        check_dtype("group_list", group_list, torch.int64)
        if call.group_type == COLUMNS:
            check_rank("group_list", group_list, 1, "(groups,)")
        else:
            check_shape("group_list", group_list, "(e,)", (call.groups,))
    elif group_list is not None and len(group_list) != call.groups:
        raise ValueError(
            f"group_list must have an element for each weight, {call.groups}, got {len(group_list)}"
        )


def _says(rule: str, tensor: Tensor) -> Callable[[], str]:
    """The message of a tensor whose shape breaks a rule."""
    return lambda: f"{rule}, got shape {tuple(tensor.shape)}"


def _check_per_weight(call: GroupedMatmul) -> None:
    """What comes for each weight, a row for each where they are stacked."""
    dtype = call.x[0].dtype
    allowed = {
        "bias": (_BIAS[dtype],),
        "scale": (torch.float32, torch.bfloat16, torch.int64),
        "antiquant_scale": (dtype,),
        "antiquant_offset": (dtype,),
    }
    for name, dtypes in allowed.items():
        tensors = getattr(call, name)
        if not tensors:
            continue
        if len(tensors) != len(call.weight):
            raise ValueError(
                f"{name} must have as many tensors as weight, {len(call.weight)}, "
                f"got {len(tensors)}"
            )
        for i, (tensor, weight) in enumerate(zip(tensors, call.weight)):
            check_dtype(f"{name}[{i}]", tensor, *dtypes)
            n = weight.shape[-1]
            if call.stacked:
                check_shape(f"{name}[{i}]", tensor, "(e, n)", (weight.shape[0], n))
            else:
                check_shape(f"{name}[{i}]", tensor, "(n,)", (n,))
    if call.per_token_scale:
        if len(call.per_token_scale) != len(call.x):
            raise ValueError(
                f"per_token_scale must have as many tensors as x, {len(call.x)}, "
                f"got {len(call.per_token_scale)}"
            )
        for i, (tensor, x) in enumerate(zip(call.per_token_scale, call.x)):
            check_dtype(f"per_token_scale[{i}]", tensor, torch.float32)
            check_shape(f"per_token_scale[{i}]", tensor, "(m,)", x.shape[:-1])


def _check_quantisation(call: GroupedMatmul) -> None:
    dtype = call.x[0].dtype
    if call.scale and dtype != torch.int8:
        check_dtype("x with scale", call.x[0], torch.int8)
    if call.per_token_scale and (not call.scale or call.scale[0].dtype == torch.int64):
        raise ValueError("scale is required, a float, with per_token_scale, got None or int64")
    if call.antiquant_offset and not call.antiquant_scale:
        raise ValueError("antiquant_scale is required with antiquant_offset, got None")
    if call.antiquant_scale:
        check_dtype("x with antiquant_scale", call.x[0], torch.float16, torch.bfloat16)
    if call.activation and not call.per_token_scale:
        raise ValueError(
            f"act_type must be 0 without per_token_scale, got {call.activation}: "
            "an activation comes with per-token quantisation only"
        )


def fake(call: GroupedMatmul) -> list[Tensor]:
    """The results without their values."""
    x, n = call.x[0], call.weight[0].shape[-1]
    if call.group_type == COLUMNS:
        groups = call.group_list.shape[0] if isinstance(call.group_list, Tensor) else 0
        return [x.new_empty((groups, x.shape[0], n), dtype=call.dtype)]
    if call.joined:
        return [x.new_empty((sum(each.shape[0] for each in call.x), n), dtype=call.dtype)]
    if call.group_type == NO_GROUPS:
        return [
            each.new_empty((*each.shape[:-1], weight.shape[-1]), dtype=call.dtype)
            for each, weight in zip(call.x, call.weight)
        ]
    ends = call.ends()
    return [
        x.new_empty((end - start, weight.shape[-1]), dtype=call.dtype)
        for start, end, weight in zip([0, *ends], ends, call.weight)
    ]
