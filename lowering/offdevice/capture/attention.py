"""What captures call around attention: its form with ``out=``, and the memory that it asks for.

Upstream takes the form with ``out=`` while it captures, since a task that is updated later has to
write where the graph reads. No release of torch_npu has shapes for these operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_OPERATORS = ("npu_fused_infer_attention_score", "npu_fused_infer_attention_score_v2")
_kernels: list[Any] = []  # what they registered goes when they go

ALLOCATING = {
    f"npu::_{name}_{what}" for name in _OPERATORS for what in ("get_max_workspace", "infer_output")
}
"""Operators that only give memory."""


def play() -> None:
    """Register kernels and shapes, as far as this torch_npu has the operators."""
    library = torch.library.Library("npu", "IMPL")
    _kernels.append(library)
    for name in _OPERATORS:
        packet = getattr(torch.ops.npu, name, None)
        if packet is None or "out" not in packet.overloads():
            continue
        library.impl(f"{name}.out", _into_out(packet), "CPU")
        for key in ("CPU", "Meta"):
            library.impl(f"_{name}_get_max_workspace", _workspace, key)
            library.impl(f"_{name}_infer_output", _memory_for(packet), key)


def _into_out(packet: Any) -> Callable[..., Any]:
    def compute(*args: Any, out: Any, workspace: Any = None, **kwargs: Any) -> Any:
        del workspace
        for given, result in zip(out, packet.default(*args, **kwargs)):
            # Without softmax_lse_flag the second has no defined values, and may have no memory.
            if given.shape == result.shape:
                given.copy_(result)
        return tuple(out)  # its schema says that they are new, which they are not on a device

    return compute


def _workspace(query: Any, *_: Any, **__: Any) -> Any:
    return torch.empty(0, dtype=torch.uint8, device=query.device)


def _memory_for(packet: Any) -> Callable[..., Any]:
    def allocate(query: Any, value: Any, **kwargs: Any) -> Any:
        # Neither shape depends on the keys.
        shapes = packet.default(query.to("meta"), value.to("meta"), value.to("meta"), **kwargs)
        return tuple(torch.empty_like(shape, device=query.device) for shape in shapes)

    return allocate
