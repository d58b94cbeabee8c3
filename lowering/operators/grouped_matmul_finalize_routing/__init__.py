"""npu_grouped_matmul_finalize_routing, a module a stage."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import is_symbolic
from npu_lowering.operators.grouped_matmul_finalize_routing import (
    autograd,
    contract,
    cpu,
    decomposition,
    device_limits,
    fake,
    portable,
)
from npu_lowering.operators.operator import (
    OWN_NAMESPACE,
    GENode,
    NodeCall,
    Operator,
    public,
)
from npu_lowering.torch_internals import is_tracing

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


def _of_torch_npu(*args: Any, **kwargs: Any) -> contract.Problem:
    return contract.check(*args, **kwargs)


# torch_npu's schema knows no symbols and no bound.
_of_torch_npu.__doc__ = contract.check.__doc__
vars(_of_torch_npu)["__signature__"] = inspect.Signature(
    [
        parameter.replace(annotation=str(parameter.annotation).replace("SymInt", "int"))
        for parameter in inspect.signature(contract.check).parameters.values()
        if parameter.name != "max_output_bs"
    ]
)

OPERATOR = Operator(
    name=NAME,
    check=_of_torch_npu,
    function="",
    returns="Tensor",
    fake=fake.run,
    cpu=cpu.run,
    portable=portable.run,
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


def _by_torch_npus(problem: contract.Problem) -> Tensor:
    """The same by torch_npu's operator, whatever the device: here sizes are numbers."""
    return OPERATOR.overload(  # type: ignore[no-any-return]
        problem.x,
        problem.w,
        problem.group_list,
        scale=problem.scale,
        bias=problem.bias,
        pertoken_scale=problem.pertoken_scale,
        shared_input=problem.shared_input,
        logit=problem.logit,
        row_index=problem.row_index,
        shared_input_weight=problem.shared_input_weight,
        shared_input_offset=int(problem.shared_input_offset),
        output_bs=int(problem.output_bs),
        group_list_type=problem.group_list_type,
    )


TRACED = dataclasses.replace(
    OPERATOR,
    namespace=OWN_NAMESPACE,
    name="grouped_matmul_finalize_routing",
    function=NAME,
    check=contract.check,
    cpu=_by_torch_npus,
    portable=_by_torch_npus,
    covers=None,
    nodes=(),
    summary="the same, with sizes that stay symbols while they are traced: one graph for all",
)
"""What is in a graph where sizes are symbols; its kernel calls torch_npu's operator."""


def _choose(given: dict[str, Any]) -> Any:
    """While a size may be a symbol ours, which keeps it one; else torch_npu's."""
    sizes = (given.get("output_bs"), given.get("shared_input_offset"))
    if is_tracing() or given.get("max_output_bs") or any(is_symbolic(size) for size in sizes):
        return torch.ops.npu_lowering.grouped_matmul_finalize_routing
    given.pop("max_output_bs", None)
    return torch.ops.npu.npu_grouped_matmul_finalize_routing


npu_grouped_matmul_finalize_routing = public(contract.check, NAME, Tensor, _choose)
