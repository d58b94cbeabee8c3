"""npu_format_cast: the copy is the tensor."""

import torch
from errors import Bad
from operators import Tested


def call(shape=(3, 4, 5), dtype=torch.float32, acl_format=29, **kwargs):
    numbers = torch.arange(torch.Size(shape).numel()) % 100
    return {"input": numbers.reshape(shape).to(dtype), "acl_format": acl_format, **kwargs}


def oracle(input, acl_format, customize_dtype=None, input_dtype=None, compute=None):  # noqa: A002
    del acl_format, customize_dtype, input_dtype, compute
    return torch.stack([*input.clone()]) if input.dim() and len(input) else input.clone()


def transposed():
    """A checkpoint's weight, whose k lies contiguous: its strides stay."""
    made = call(dtype=torch.int8)
    return {**made, "input": made["input"].transpose(1, 2)}


def like(acl_format=29, **kwargs):
    made = call(**kwargs)
    del made["acl_format"]
    return {**made, "dst": torch.ops.npu.npu_format_cast(torch.zeros(2, 2), acl_format)}


def oracle_like(input, dst, customize_dtype=None, input_dtype=None, compute=None):  # noqa: A002
    del dst, customize_dtype, input_dtype, compute
    return torch.stack([*input.clone()]) if input.dim() and len(input) else input.clone()


TESTED = [
    Tested(
        name="npu_format_cast",
        samples={
            "float32": call,
            "int8": lambda: call(dtype=torch.int8),
            "bfloat16_nd": lambda: call(dtype=torch.bfloat16, acl_format=2),
            "empty": lambda: call(shape=(0, 4)),
            "scalar": lambda: call(shape=(), acl_format=2),
            "one_row": lambda: call(shape=(1, 7)),
            "nchw": lambda: call(shape=(2, 3, 4, 5), acl_format=0),
            "nc1hwc0": lambda: call(shape=(2, 3, 4, 5), acl_format=3),
            "undefined": lambda: call(acl_format=-1),
            "tiles_of_16": lambda: call(acl_format=50),
            "customize_dtype": lambda: call(customize_dtype=1),
            "k_contiguous": transposed,
            "large": lambda: call(shape=(4, 256, 256), dtype=torch.int8),
        },
        oracle=oracle,
        node=None,  # TorchAIR has no converter of it, and GE no such node
        errors={
            "unknown_format": Bad(
                {"acl_format": 5}, ValueError, "acl_format must be -1 (UNDEFINED), 0 (NCHW),", call
            ),
            "nz_of_one_axis": Bad(
                {"input": torch.zeros(3)},
                ValueError,
                "input must be at least 2-D for FRACTAL_NZ, got shape (3,)",
                call,
            ),
            "input_dtype": Bad(
                {"input_dtype": 290}, NotImplementedError, "input_dtype must be None on CPU", call
            ),
        },
        differentiable=("input",),
        reference=oracle,
    ),
    Tested(
        name="npu_format_cast.Tensor",
        samples={
            "float32": like,
            "int8": lambda: like(dtype=torch.int8),
            "nd": lambda: like(acl_format=2, dtype=torch.bfloat16),
            "scalar": lambda: like(acl_format=2, shape=()),
            "empty": lambda: like(shape=(0, 4)),
            "customize_dtype": lambda: like(customize_dtype=1),
        },
        oracle=oracle_like,
        node=None,  # as above
        errors={
            "input_dtype": Bad(
                {"input_dtype": 290}, NotImplementedError, "input_dtype must be None on CPU", like
            ),
        },
        # What a storage is noted for does not come along to another device.
        value_errors={
            "nz_of_one_axis": Bad(
                {"input": torch.zeros(3)},
                ValueError,
                "input must be at least 2-D for FRACTAL_NZ, got shape (3,)",
                like,
            ),
        },
        differentiable=("input",),
        reference=oracle_like,
    ),
]
