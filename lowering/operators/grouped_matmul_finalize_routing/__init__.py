"""npu_grouped_matmul_finalize_routing, a module a stage."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from npu_lowering.operators.grouped_matmul_finalize_routing import (
    autograd,
    contract,
    cpu,
    decomposition,
    device_limits,
    fake,
)
from npu_lowering.operators.operator import GENode, NodeCall, Operator, public

NAME = "npu_grouped_matmul_finalize_routing"

_INPUTS = (
    "scale",
    "bias",
    "offset",
    "pertoken_scale",
    "shared_input",
    "logit",
    "row_index",
)


def _arguments(node: NodeCall) -> dict[str, Any]:
    """Attributes that the node leaves out have the defaults of GE's definition."""
    return {
        "x": node["x"],
        "w": node["w"],
        "group_list": node["group_list"],
        **{name: node.get(name) for name in _INPUTS},
        "shared_input_weight": node.attr("shared_input_weight", 1.0),
        "shared_input_offset": node.attr("shared_input_offset", 0),
        "output_bs": node.attr("output_bs", 0),
        "group_list_type": node.attr("group_list_type", 1),
    }


OPERATOR = Operator(
    name=NAME,
    check=contract.check,
    returns="Tensor",
    fake=fake.run,
    cpu=cpu.run,
    decomposition=decomposition.run,
    derivative=autograd.DERIVATIVE,
    covers=contract.is_covered,
    converter="npu_lowering.converters.grouped_matmul_finalize_routing",
    nodes=(GENode("GroupedMatmulFinalizeRouting", _arguments),),
    limits=device_limits.limits_of,
    summary="the experts' grouped matmul, dequantised, weighed, added to the tokens",
    unsupported="offset, x_dtype, w_dtype, scale_dtype, pertoken_scale_dtype; w other than int8",
    exactness="bit for bit, rows added in ascending order",
    source="the interface document; CANN's ops-transformer for the order of float operations",
)

npu_grouped_matmul_finalize_routing = public(contract.check, NAME, Tensor)
