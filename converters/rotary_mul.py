"""npu_rotary_mul as one RotaryMul or RotaryPositionEmbedding node of a GE graph.

TorchAIR's own converter makes a RotaryMul of every call without a matrix on A2 and A3, which has no
mode: a call in interleave mode then computes the other one, without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchair._ge_concrete_graph import ge_apis as ge
from torchair.ge._ge_graph import Tensor, torch_type_to_ge_type

from npu_lowering.operators.rope import HALF, INTERLEAVE, RotaryMul

_MODES = {HALF: 0, INTERLEAVE: 1}


def convert(arguments: Mapping[str, Any], problem: RotaryMul) -> Tensor:
    """Add the node to the graph that TorchAIR is building.

    Args:
        arguments: those of the operator, by name, as GE tensors. r1 and r2 are cast to the dtype
            of input, as torch_npu does eagerly.
        problem: the same call, checked.

    Returns:
        The GE tensor of the node's only output.
    """
    x = arguments["input"]
    cos, sin = (_cast(arguments[name], problem.x.dtype) for name in ("r1", "r2"))
    if problem.mode == HALF and problem.rotate is None:
        return ge.RotaryMul(x, cos, sin)
    # Older builders have no rotate.
    matrix = {} if problem.rotate is None else {"rotate": arguments["rotate"]}
    return ge.RotaryPositionEmbedding(x, cos, sin, mode=_MODES[problem.mode], **matrix)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.meta.dtype == dtype:
        return tensor
    return ge.Cast(tensor, dst_type=torch_type_to_ge_type(dtype))
