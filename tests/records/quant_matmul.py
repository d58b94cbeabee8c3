"""npu_quant_matmul, element by element in float32."""

import contextlib

import torch
from errors import Bad
from operators import Tested
from records.grouped_matmul import int64_scale, made, positive
from records.grouped_matmul_finalize_routing import without_compiler, without_int_mm

INT8, INT32, FLOAT16, BFLOAT16 = 1, 3, 5, 15
CODES = {
    None: torch.int8,
    INT8: torch.int8,
    INT32: torch.int32,
    FLOAT16: torch.float16,
    BFLOAT16: torch.bfloat16,
}


def call(m=4, k=8, n=5, **kwargs):
    case = {"x1": made(m, k), "x2": made(k, n), "scale": positive(n) / 10}
    return {**case, **kwargs}


def per_token(dtype=BFLOAT16, **kwargs):
    return call(pertoken_scale=positive(4) * 100, output_dtype=dtype, **kwargs)


def batched(**kwargs):
    return call(**{"x1": made(3, 4, 8), "x2": made(3, 8, 5), **kwargs})


def oracle(
    x1, x2, scale, offset=None, pertoken_scale=None, bias=None, output_dtype=None, group_sizes=None
):
    del group_sizes
    acc = torch.matmul(x1.long(), x2.long())
    dtype = CODES[output_dtype]
    if bias is not None and bias.dtype == torch.int32:
        acc = acc + bias
    if dtype == torch.int32:
        return acc.int()
    if scale.dtype == torch.int64:
        scale = torch.frombuffer(bytearray(scale.numpy().tobytes()), dtype=torch.float32)[::2]
    y = acc.float() * scale.float()
    if pertoken_scale is not None:
        y = y * pertoken_scale[:, None]
    if bias is not None and bias.dtype != torch.int32:
        y = y + bias.float()
    if dtype != torch.int8:
        return y.to(dtype)
    y = y if offset is None else y + offset
    rounded = [max(-128, min(127, round(value))) for value in y.flatten().tolist()]
    return torch.tensor(rounded, dtype=torch.int8).reshape(y.shape)


def bad(change, error, message, base=call):
    return Bad(change, error, message, base)


TESTED = [
    Tested(
        name="npu_quant_matmul",
        samples={
            "int8": call,
            "offset": lambda: call(offset=positive(5) * 3000),
            "offset_number": lambda: call(scale=positive(1) / 10, offset=positive(1)),
            "int64_scale": lambda: call(scale=int64_scale(positive(5) / 10), output_dtype=INT8),
            "int64_scale_float16": lambda: call(
                scale=int64_scale(-positive(1)), output_dtype=FLOAT16
            ),
            "float16": lambda: call(output_dtype=FLOAT16),
            "bfloat16": lambda: call(output_dtype=BFLOAT16),
            "scale_bfloat16": lambda: call(scale=positive(5).bfloat16(), output_dtype=BFLOAT16),
            "int32": lambda: call(output_dtype=INT32, bias=made(5, dtype=torch.int32)),
            "bias_int32": lambda: call(bias=made(5, dtype=torch.int32)),
            "bias_row": lambda: call(bias=made(1, 5, dtype=torch.int32)),
            "bias_bfloat16": lambda: call(
                bias=made(5, dtype=torch.bfloat16), output_dtype=BFLOAT16
            ),
            "per_token": per_token,
            "per_token_float16": lambda: per_token(FLOAT16, bias=made(5, dtype=torch.float16)),
            "per_token_bias_float32": lambda: per_token(bias=made(5, dtype=torch.float32)),
            "per_token_bias_int32": lambda: per_token(bias=made(5, dtype=torch.int32)),
            "batched": batched,
            "batched_bias": lambda: batched(bias=made(3, 1, 5, dtype=torch.int32)),
            "broadcast": lambda: batched(x1=made(1, 4, 8), output_dtype=FLOAT16),
            "one_matrix": lambda: batched(x2=made(8, 5), output_dtype=FLOAT16),
            "one_x1": lambda: batched(x1=made(4, 8), output_dtype=FLOAT16),
            "four_axes": lambda: call(x1=made(2, 1, 4, 8), x2=made(3, 8, 5), output_dtype=INT32),
            "no_rows": lambda: call(m=0),
            "one_row": lambda: call(m=1, n=1),
            "long_k": lambda: call(k=3000, output_dtype=INT32),
            "large": lambda: per_token(x1=made(4, 512), x2=made(512, 256), scale=positive(256)),
            "group_sizes": lambda: call(group_sizes=[0, 0, 0]),
        },
        oracle=oracle,
        decomposed=False,
        node="QuantBatchMatmulV3",
        paths={
            "compiled": contextlib.nullcontext,
            "int_mm": without_compiler,
            "float32": without_int_mm,
        },
        errors={
            "x1_dtype": bad(
                {"x1": torch.zeros(4, 1, dtype=torch.int32)},
                NotImplementedError,
                "x1 must be int8, got torch.int32; npu_quant_matmul is computed for int8",
            ),
            "rank": bad(
                {"x1": torch.zeros(8, dtype=torch.int8)},
                ValueError,
                "x1 must be 2-D to 6-D, got shape (8,)",
            ),
            "k": bad(
                {"x1": torch.zeros(4, 7, dtype=torch.int8)},
                ValueError,
                "x2 must be (..., k, n) with the k of x1, 7, got shape (8, 5)",
            ),
            "k_large": bad(
                {
                    "x1": torch.zeros(1, 1 << 17, dtype=torch.int8),
                    "x2": torch.zeros(1 << 17, 5, dtype=torch.int8),
                },
                ValueError,
                "x1 must have k < 131072, got shape (1, 131072)",
            ),
            "batch": bad(
                {"x1": torch.zeros(2, 4, 8, dtype=torch.int8)},
                ValueError,
                "x1 and x2 must have axes before the last two that can be broadcast, got shapes "
                "(2, 4, 8) and (3, 8, 5)",
                batched,
            ),
            "scale_dtype": bad(
                {"scale": torch.zeros(5).bfloat16()},
                TypeError,
                "scale must be float32 or int64, got bfloat16",
            ),
            "scale_int64_per_token": bad(
                {"scale": torch.zeros(5, dtype=torch.int64)},
                TypeError,
                "scale must be float32 or bfloat16, got int64",
                per_token,
            ),
            "scale_shape": bad(
                {"scale": torch.zeros(4)},
                ValueError,
                "scale must be (1,) or (n,) = (5,), got shape (4,)",
            ),
            "scale_rank": bad(
                {"scale": torch.zeros(1, 5)},
                ValueError,
                "scale must be 1-D (1,) or (n,), got shape (1, 5)",
            ),
            "offset_of_floats": bad(
                {"offset": torch.zeros(5), "output_dtype": FLOAT16},
                ValueError,
                "offset must be None but for an int8 result, got a tensor of shape (5,)",
            ),
            "per_token_of_int8": bad(
                {"pertoken_scale": torch.zeros(4)},
                ValueError,
                "pertoken_scale must be None but for a float16 or bfloat16 result, got a tensor",
            ),
            "per_token_shape": bad(
                {"pertoken_scale": torch.zeros(4, 1)},
                ValueError,
                "pertoken_scale must be (m,) = (4,), got shape (4, 1)",
                per_token,
            ),
            "bias_dtype": bad(
                {"bias": torch.zeros(5)}, TypeError, "bias must be int32, got float32"
            ),
            "bias_shape": bad(
                {"bias": torch.zeros(4, dtype=torch.int32)},
                ValueError,
                "bias must be (n,) = (5,), got shape (4,)",
            ),
            "bias_batch": bad(
                {"bias": torch.zeros(2, 1, 5, dtype=torch.int32)},
                ValueError,
                "bias must be (batch, 1, n) = (3, 1, 5), got shape (2, 1, 5)",
                batched,
            ),
            "output_dtype": bad(
                {"output_dtype": 6},
                TypeError,
                "output_dtype must be torch.int8 or torch.float16 or torch.bfloat16 or "
                "torch.int32, got torch.float32",
            ),
            "group_sizes": bad(
                {"group_sizes": [1, 128, 128]},
                NotImplementedError,
                "group_sizes is not supported yet and must be None, got [1, 128, 128];",
            ),
            "y_scale": bad(
                {"y_scale": torch.zeros(5)},
                NotImplementedError,
                "y_scale is not supported yet and must be None, got a tensor of shape (5,);",
            ),
        },
    )
]
