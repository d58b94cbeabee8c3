"""npu_grouped_matmul_swiglu_quant as one GroupedMatmulSwigluQuantV2 node of a GE graph.

TorchAIR has no converter for the first version, and no builder for a node of its own. The second
version's node computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import DataType, Tensor

from npu_lowering.operators.grouped_matmul_swiglu_quant import GroupedSwigluQuant


def convert(arguments: Mapping[str, Any], problem: GroupedSwigluQuant) -> tuple[Tensor, ...]:
    """Add the node to the graph that TorchAIR is building.

    Args:
        arguments: those of the operator, by name, as GE tensors; a float16 scale is cast, since
            the node takes none.
        problem: the same call, checked.

    Returns:
        The node's two outputs, and a constant in the place of the offset.
    """
    scale = arguments["weight_scale"]
    if problem.weight_scale.dtype == torch.float16:
        scale = ge.Cast(scale, dst_type=DataType.DT_FLOAT)
    nothing = ge.Fill([0], ge.Cast(0.0, dst_type=DataType.DT_FLOAT))
    y, row_scale = ge.GroupedMatmulSwigluQuantV2(
        x=arguments["x"],
        x_scale=arguments["x_scale"],
        group_list=arguments["group_list"],
        weight=[arguments["weight"]],
        weight_scale=[scale],
        weight_assist_matrix=[nothing],
        bias=None,
        smooth_scale=None,
        quant_dtype=DataType.DT_INT8,
        group_list_type=0,
    )
    return y, row_scale, ge.Const(0.0, dtype=DataType.DT_FLOAT)
