"""npu_moe_gating_top_k_softmax_v2 as one MoeGatingTopKSoftmaxV2 node of a GE graph.

TorchAIR's own converter asks for a node of the first version, which has neither renorm nor a
softmax, and ends in a TypeError. TorchAIR's builder of this node ends in an AssertionError for any
call, and has another name for the last attribute than CANN's definition, which is followed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchair._ge_concrete_graph.compat_ir import IrDef, ge_op
from torchair.ge import attr
from torchair.ge._ge_graph import Tensor

from npu_lowering.operators.moe_gating_top_k_softmax import GatingV2

_TYPE = "MoeGatingTopKSoftmaxV2"
_FLOATS = "DT_FLOAT, DT_FLOAT16, DT_BF16"


def convert(arguments: Mapping[str, Any], problem: GatingV2) -> tuple[Tensor, ...]:
    """Add the node to the graph that TorchAIR is building.

    Args:
        arguments: those of the operator, by name, as GE tensors.
        problem: the same call, checked.

    Returns:
        The GE tensors of the node's three outputs.
    """
    outputs: tuple[Tensor, ...] = ge_op(
        op_type=_TYPE,
        inputs={"x": arguments["x"], "finished": arguments["finished"]},
        attrs={
            "k": attr.Int(problem.gating.k),
            "renorm": attr.Int(int(problem.is_of_chosen)),
            "output_softmax_result_flag": attr.Bool(problem.gives_scores),
        },
        outputs=["y", "expert_idx", "softmax_result"],
        ir=IrDef(_TYPE)
        .input("x", _FLOATS)
        .optional_input("finished", "DT_BOOL")
        .required_attr("k", attr.Int)
        .attr("renorm", attr.Int(0))
        .attr("output_softmax_result_flag", attr.Bool(False))
        .output("y", _FLOATS)
        .output("expert_idx", "DT_INT32")
        .output("softmax_result", "DT_FLOAT"),
    )
    return outputs
