"""npu_format_cast off the device: a copy, since one storage holds every format's values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators import huge_pages, storage_format
from npu_lowering.operators.checking import check_choice
from npu_lowering.operators.operator import Derivative, Operator, public

ND = 2
FRACTAL_NZ = 29

# torch_npu's Format, and the fewest dimensions of a tensor that can be held in each. The layouts of
# images are those of 4-D and 5-D tensors; a device pads a tensor of fewer with axes of one.
_FORMATS: dict[object, str] = {
    -1: "UNDEFINED",
    0: "NCHW",
    1: "NHWC",
    ND: "ND",
    3: "NC1HWC0",
    4: "FRACTAL_Z",
    12: "NC1HWC0_C04",
    16: "HWCN",
    27: "NDHWC",
    FRACTAL_NZ: "FRACTAL_NZ",
    30: "NCDHW",
    32: "NDC1HWC0",
    33: "FRACTAL_Z_3D",
    35: "NC",
    47: "NCL",
    50: "FRACTAL_NZ_C0_16",
    51: "FRACTAL_NZ_C0_32",
    52: "FRACTAL_NZ_C0_2",
    53: "FRACTAL_NZ_C0_4",
    54: "FRACTAL_NZ_C0_8",
}


@dataclass(frozen=True)
class FormatCast:
    """A checked cast.

    Attributes:
        input: any shape and dtype.
        acl_format: the format that the copy is to have.
    """

    input: Tensor
    acl_format: int


def check(
    input: Tensor,  # noqa: A002 -- the schema's own name
    acl_format: int,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> FormatCast:
    """Cast a tensor to a storage format of the device.

    The logical shape, the dtype and the values stay, here as on a device, where only the storage
    changes. ``torch_npu.get_npu_format`` tells the format of the copy.

    Args:
        input: any shape and dtype; at least 2-D for the FRACTAL_NZ formats.
        acl_format: a number of ``torch_npu.Format``: 2 (ND), 29 (FRACTAL_NZ), and others.
        customize_dtype: the dtype that sizes the tiles on a device; changes nothing here.
        input_dtype: the dtype that a device reads the input as; None, since no CPU kernel has the
            narrow floats that it is for.

    Returns:
        A fresh tensor of the same shape, dtype and values. Its strides are those of input where
        that is dense, and contiguous otherwise.

    Raises:
        ValueError: acl_format is none of the formats, or input has too few dimensions for it.
        NotImplementedError: input_dtype is given.

    Source: torch_npu's ``npu_format_cast``, whose Meta function returns the shape unchanged, and
    its ``Format``.
    """
    del customize_dtype
    check_choice("acl_format", acl_format, _FORMATS)
    if input_dtype is not None:
        raise NotImplementedError(f"input_dtype must be None on CPU, got {input_dtype}")
    name = _FORMATS[acl_format]
    torch._check_value(
        not name.startswith("FRACTAL_NZ") or input.dim() >= 2,
        lambda: f"input must be at least 2-D for {name}, got shape {tuple(input.shape)}",
    )
    return FormatCast(input, acl_format)


def fake(cast: FormatCast) -> Tensor:
    """The copy without its values."""
    return _noted(torch.empty_like(cast.input), cast)


def run(cast: FormatCast) -> Tensor:
    """The copy."""
    return _noted(cast.input.clone(), cast)


def _noted(copy: Tensor, cast: FormatCast) -> Tensor:
    storage_format.remember(copy, cast.acl_format)
    return copy


def _decomposed(cast: FormatCast) -> Tensor:
    return cast.input.clone()


def on_cpu(cast: FormatCast) -> Tensor:
    """The copy, on huge pages where the system has them: it is of weights, as a rule."""
    like = torch.empty_like(cast.input, device="meta")
    copy = huge_pages.empty_strided(like.size(), like.stride(), dtype=like.dtype)
    return _noted(copy.copy_(cast.input), cast)


def _backward(
    op: Any,  # noqa: ARG001 -- a formula's signature
    cast: FormatCast,  # noqa: ARG001
    grads: tuple[Any, ...],
    wanted: frozenset[str],
) -> Mapping[str, Tensor]:
    (grad,) = grads
    return dict.fromkeys(wanted, grad)


OPERATOR = Operator(
    name="npu_format_cast",
    check=check,
    returns="Tensor",
    fake=fake,
    cpu=on_cpu,
    portable=run,
    decomposition=_decomposed,
    derivative=Derivative(inputs=("input",), backward=_backward),
    summary="a copy in another storage format of the device",
    unsupported="input_dtype",
    exactness="exact",
    source="torch_npu's npu_format_cast and Format",
)


def check_like(
    input: Tensor,  # noqa: A002 -- the schema's own name
    dst: Tensor,
    *,
    customize_dtype: int | None = None,
    input_dtype: int | None = None,
) -> FormatCast:
    """Cast a tensor to the storage format that another has.

    Args:
        input: any shape and dtype; at least 2-D where dst is in a FRACTAL_NZ format.
        dst: of which the format counts, and nothing else.
        customize_dtype: as in ``npu_format_cast``.
        input_dtype: as in ``npu_format_cast``.

    Returns:
        A fresh tensor, as of ``npu_format_cast``.

    Raises:
        ValueError: input has too few dimensions for the format.
        NotImplementedError: input_dtype is given.

    Source: torch_npu's interface document of ``npu_format_cast_``, whose ``src`` is this ``dst``.
    """
    return check(
        input,
        storage_format.format_of(dst),
        customize_dtype=customize_dtype,
        input_dtype=input_dtype,
    )


LIKE = dataclasses.replace(
    OPERATOR,
    name="npu_format_cast.Tensor",
    check=check_like,
    summary="a copy in the storage format of another tensor",
)

npu_format_cast = public(check, "npu_format_cast", Tensor)
