"""npu_moe_init_routing_v2 as one MoeInitRoutingV3 node of a GE graph.

TorchAIR's own converter cannot build the node without an active_expert_range, which it takes to be
None and the node to be a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import Tensor

from npu_lowering.operators.moe_init_routing_v2 import InitRoutingV2

_TENSORS = ("x", "expert_idx", "scale", "offset")
_ATTRIBUTES = (
    "active_num",
    "expert_capacity",
    "expert_num",
    "drop_pad_mode",
    "expert_tokens_num_type",
    "expert_tokens_num_flag",
    "quant_mode",
    "row_idx_type",
)


def convert(arguments: Mapping[str, Any], problem: InitRoutingV2) -> tuple[Tensor, ...]:
    """Add the node to the graph that TorchAIR is building.

    Args:
        arguments: those of the operator, by name, as GE tensors.
        problem: the same call, checked; it says which experts are active.

    Returns:
        The GE tensors of the node's four outputs.
    """
    outputs: tuple[Tensor, ...] = ge.MoeInitRoutingV3(
        *(arguments[name] for name in _TENSORS),
        **{name: arguments[name] for name in _ATTRIBUTES},
        active_expert_range=[problem.first, problem.end],
    )
    return outputs
