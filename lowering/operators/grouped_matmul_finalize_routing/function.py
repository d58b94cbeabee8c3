"""The operators as Python functions: the dispatcher's, with names, types and documentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from npu_lowering.operators.grouped_matmul_finalize_routing import schema


def npu_grouped_matmul_finalize_routing(
    x: Tensor,
    w: Tensor,
    group_list: Tensor,
    *,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    offset: Tensor | None = None,
    pertoken_scale: Tensor | None = None,
    shared_input: Tensor | None = None,
    logit: Tensor | None = None,
    row_index: Tensor | None = None,
    dtype: torch.dtype | None = None,
    shared_input_weight: float | None = schema.SHARED_INPUT_WEIGHT,
    shared_input_offset: int | None = schema.SHARED_INPUT_OFFSET,
    output_bs: int | None = schema.OUTPUT_BS,
    group_list_type: int | None = schema.GROUP_LIST_TYPE,
    tuning_config: Sequence[int] | None = None,
    x_dtype: int | None = None,
    w_dtype: int | None = None,
    scale_dtype: int | None = None,
    pertoken_scale_dtype: int | None = None,
) -> Tensor:
    """Multiply by the experts' weights, dequantise, weigh, and add each row to its token.

    The same as ``torch.ops.npu.npu_grouped_matmul_finalize_routing``, and as
    ``torch_npu.npu_grouped_matmul_finalize_routing`` where there is a torch_npu. For group g and
    its rows r, consecutive rows of x, in float32 and in this order::

        acc = x[r] @ w[g]                              exact int32
        y   = acc * scale[g] * (pertoken_scale[r] * logit[r]) + logit[r] * bias[g]
        out = 0, with shared_input * shared_input_weight from row shared_input_offset on
        out[row_index[r]] += y                         in ascending r

    Rows past the last group's end are not read, in any tensor. On CPU the result is deterministic,
    bit for bit, for any number of threads.

    Args:
        x: ``(m, k)`` int8, the rows of all experts, sorted by expert.
        w: ``(e, k, n)`` int8, which is also what a tensor cast to FRACTAL_NZ looks like; or that
            format spelled out, ``(e, n/32, ceil(k/16), 16, 32)``, see :func:`to_fractal_nz`.
        group_list: ``(e,)`` int64, counts of rows or their running totals, see group_list_type.
        scale: ``(e, n)`` float32 or bfloat16; required.
        bias: ``(e, n)`` float32 or bfloat16. A GE graph takes bfloat16 only.
        offset: not supported yet; None.
        pertoken_scale: ``(m,)`` or ``(m, 1)`` float32; None counts as ones.
        shared_input: ``(rows, n)`` bfloat16, the shared expert's output; needs logit.
        logit: ``(m,)`` float32, the routing weight of each row; None counts as ones.
        row_index: ``(m,)`` int64 or int32, the output row that each row is added to; required.
        dtype: None or torch.float32, the dtype of the result.
        shared_input_weight: factor of shared_input; None means 1.
        shared_input_offset: first output row that shared_input is added to; None means 0. It does
            not move row_index.
        output_bs: rows of the result, at most m; 0 or None means m.
        group_list_type: 1, or None, where group_list holds counts; 0 where it holds totals.
        tuning_config: a hint to the device's tiling; never changes the result.
        x_dtype: not supported yet; None.
        w_dtype: not supported yet; None.
        scale_dtype: not supported yet; None.
        pertoken_scale_dtype: not supported yet; None.

    Returns:
        ``(output_bs, n)`` float32, contiguous, fresh.

    Raises:
        TypeError: a dtype is wrong, or a required tensor is None.
        ValueError: a shape, a size or a scalar is wrong; on CPU also for values of group_list.
        IndexError: on CPU, a row_index that counts lies outside ``[0, output_bs)``.
        NotImplementedError: an argument of the int4, float8 or float4 forms is given.

    Source: the interface document of torch_npu, and the schemas of its releases.
    """
    later = {
        "offset": offset,
        "tuning_config": tuning_config,
        "x_dtype": x_dtype,
        "w_dtype": w_dtype,
        "scale_dtype": scale_dtype,
        "pertoken_scale_dtype": pertoken_scale_dtype,
    }
    op = torch.ops.npu.npu_grouped_matmul_finalize_routing
    result: Tensor = op(
        x,
        w,
        group_list,
        scale=scale,
        bias=bias,
        pertoken_scale=pertoken_scale,
        shared_input=shared_input,
        logit=logit,
        row_index=row_index,
        dtype=dtype,
        shared_input_weight=shared_input_weight,
        shared_input_offset=shared_input_offset,
        output_bs=output_bs,
        group_list_type=group_list_type,
        # An older torch_npu's schema has not all of these; None is the default where it has.
        **{name: value for name, value in later.items() if value is not None},
    )
    return result


def npu_format_cast(tensor: Tensor, acl_format: int) -> Tensor:
    """Cast a tensor to a storage format of the device.

    The same as ``torch.ops.npu.npu_format_cast``. The logical shape, the dtype and the values stay,
    here as on a device, where only the storage changes; off the device there is one storage format,
    so the result is a contiguous copy.

    Args:
        tensor: any shape and dtype; at least 2-D for FRACTAL_NZ.
        acl_format: 2 (ND) or 29 (FRACTAL_NZ).

    Returns:
        A fresh contiguous tensor of the same shape, dtype and values.

    Raises:
        ValueError: another acl_format, or too few dimensions for it.

    Source: torch_npu's ``npu_format_cast``; its Meta function returns the shape unchanged, too.
    """
    result: Tensor = torch.ops.npu.npu_format_cast(tensor, acl_format)
    return result
