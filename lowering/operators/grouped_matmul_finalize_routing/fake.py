"""The operator's result without its numbers: what fake and meta tensors get."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_lowering.operators.grouped_matmul_finalize_routing.contract import Problem


def run(problem: Problem) -> Tensor:
    """An empty contiguous float32 ``(output_bs, n)`` on the device of x."""
    return torch.empty((problem.output_bs, problem.n), dtype=torch.float32, device=problem.x.device)
