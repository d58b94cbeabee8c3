"""What ``torch.utils.flop_counter`` counts of the operators: two for each product of a matmul.

Products of int8 count as those of floats do. What is done to sums afterwards is not counted, as
torch counts no elementwise operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Callable

import torch
from torch import Tensor

from npu_lowering.operators import OPERATORS
from npu_lowering.operators.checking import Size
from npu_lowering.operators.operator import Operator
from npu_lowering.torch_internals import is_plain

Call = Mapping[str, Any]


def register() -> None:
    """Tell torch's counter of the operators that are defined; before torch 2.4 there is no way."""
    from torch.utils import flop_counter

    if not hasattr(flop_counter, "register_flop_formula"):
        return
    for operator in OPERATORS:
        formula = _FORMULAS.get(operator.packet)
        packet = getattr(getattr(torch.ops, operator.namespace), operator.packet, None)
        if formula is not None and packet is not None and packet not in flop_counter.flop_registry:
            flop_counter.register_flop_formula(packet, get_raw=True)(_raw(operator, formula))


def _raw(operator: Operator, formula: Callable[[Call], Size]) -> Callable[..., Size]:
    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> Size:  # noqa: ARG001
        return formula(operator.by_name(args, kwargs))

    return count


def _fused(call: Call) -> Size:
    x, w = call["x"], call["w"]
    n = w.shape[2] if w.dim() == 3 else w.shape[1] * w.shape[4]
    counts = call.get("group_list_type", 1) != 0
    products: Size = 2 * _rows(call["group_list"], x.shape[0], counts=counts) * x.shape[1] * n
    return products


def _grouped(call: Call) -> Size:
    xs, weights = call["x"], call["weight"]
    if len(xs) > 1:  # a matrix for each
        pairs = zip(xs, weights)
        several: Size = sum(2 * math.prod(x.shape) * weight.shape[-1] for x, weight in pairs)
        return several
    (m, k), n = xs[0].shape[-2:], weights[0].shape[-1]
    counts = call.get("group_list_type", 0) == 1
    if call.get("group_type") == 2:  # groups of columns
        k = _rows(call.get("group_list"), k, counts=counts)
    else:
        m = math.prod(xs[0].shape[:-1])
        m = _rows(call.get("group_list"), m, counts=counts)
    products: Size = 2 * m * k * n
    return products


def _quantised(call: Call) -> Size:
    x1, x2 = call["x1"], call["x2"]
    batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    products: Size = 2 * math.prod(batch) * x1.shape[-2] * x1.shape[-1] * x2.shape[-1]
    return products


def _rows(group_list: object, m: Size, *, counts: bool) -> Size:
    """The rows of all groups; all there are where nobody can know the counts."""
    if not isinstance(group_list, Tensor):
        return m
    if not is_plain(group_list) or group_list.is_meta:
        return m
    return int(group_list.sum() if counts else group_list[-1])


_FORMULAS: dict[str, Callable[[Call], Size]] = {
    "npu_grouped_matmul_finalize_routing": _fused,
    "grouped_matmul_finalize_routing": _fused,
    "npu_grouped_matmul": _grouped,
    "npu_quant_matmul": _quantised,
}
