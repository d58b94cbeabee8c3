"""The table of GE operators the CPU engine computes: a type, a function."""

from __future__ import annotations

from typing import Any

import torch

from npu_lowering.offdevice.engine.call import Call, Kernel, Result
from npu_lowering.offdevice.engine.graph import FUSED_TYPE
from npu_lowering.offdevice.engine.kernels import index, math, nn, shape
from npu_lowering.operators.grouped_matmul_finalize_routing import schema

IN_PLACE = index.IN_PLACE

# Attributes of the node that are arguments of the operator, with the defaults of the definition.
_ATTRIBUTES: dict[str, Any] = {
    "shared_input_weight": 1.0,
    "shared_input_offset": 0,
    "output_bs": 0,
    "group_list_type": 1,
    "tuning_config": (),
}


def _grouped_matmul_finalize_routing(call: Call) -> Result:
    """The operator itself, as torch has it; arguments by the names its schema has."""
    operator = getattr(torch.ops.npu, schema.NAME).default
    values: dict[str, Any] = dict(call.inputs)
    for name, default in _ATTRIBUTES.items():
        value = call.attr(name, default)
        # The definition's own default for a list is not the schema's: leave it to the schema.
        if name != "tuning_config" or value:
            values[name] = list(value) if isinstance(value, tuple) else value
    result: torch.Tensor = operator(**values)
    return result


def _table() -> dict[str, Kernel]:
    table: dict[str, Kernel] = {FUSED_TYPE: _grouped_matmul_finalize_routing}
    for part in (index, math, nn, shape):
        twice = table.keys() & part.KERNELS.keys()
        assert not twice, f"two kernels for {twice}"
        table.update(part.KERNELS)
    return table


KERNELS = _table()
