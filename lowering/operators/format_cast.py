"""npu_format_cast off the device: the logical tensor, whose storage has one format only."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_lowering.operators.grouped_matmul_finalize_routing import schema

_FORMATS = {schema.ND: "ND", schema.FRACTAL_NZ: "FRACTAL_NZ"}


def run(
    input: Tensor,  # noqa: A002 -- the schema's own name
    acl_format: int,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> Tensor:
    """A contiguous copy: on a device, too, the cast changes the storage and not the shape.

    customize_dtype is positional in some releases of torch_npu and keyword-only in others.
    """
    torch._check_value(
        acl_format in _FORMATS,
        lambda: (
            "acl_format must be one of "
            + ", ".join(f"{code} ({name})" for code, name in _FORMATS.items())
            + f", got {acl_format}"
        ),
    )
    for name, value in (("customize_dtype", customize_dtype), ("input_dtype", input_dtype)):
        if value is not None:
            raise NotImplementedError(f"{name} must be None on CPU, got {value}")
    torch._check_value(
        acl_format == schema.ND or input.dim() >= 2,
        lambda: f"input must be at least 2-D for FRACTAL_NZ, got shape {tuple(input.shape)}",
    )
    return input.clone(memory_format=torch.contiguous_format)
