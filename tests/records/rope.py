"""Rotary position embedding, pair by pair in Python's floats."""

import torch
from errors import Bad
from operators import Tested


def numbers(shape, dtype, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def call(shape=(2, 3, 4, 8), angles=None, dtype=torch.bfloat16, angle_dtype=None, **kwargs):
    angles = (1, 3, 1, shape[-1]) if angles is None else angles
    return {
        "input": numbers(shape, dtype, 0),
        "r1": numbers(angles, angle_dtype or dtype, 1),
        "r2": numbers(angles, angle_dtype or dtype, 2),
        **kwargs,
    }


def turn(d):
    """The matrix of half mode."""
    matrix = torch.zeros(d, d)
    for i in range(d // 2):
        matrix[i, i + d // 2], matrix[i + d // 2, i] = 1, -1
    return matrix.bfloat16()


def partner(i, d, mode):
    """The other element of a pair, and its sign."""
    if mode == "half":
        return (i + d // 2, -1) if i < d // 2 else (i - d // 2, 1)
    if mode == "interleave":
        return (i + 1, -1) if i % 2 == 0 else (i - 1, 1)
    other, sign = partner(i % (d // 2), d // 2, "half")
    return other + (d // 2 if i >= d // 2 else 0), sign


def turned(x, mode):
    d = x.shape[-1]
    columns = [x[..., other] * sign for other, sign in (partner(i, d, mode) for i in range(d))]
    return torch.stack(columns, -1) if columns else x.clone()


def embed(x, cos, sin, other, compute):
    """float16 and float32 round at every step, bfloat16 once."""
    wide = compute or (torch.float32 if x.dtype == torch.bfloat16 else x.dtype)
    first, second = x.to(wide) * cos.to(wide), other.to(wide) * sin.to(wide)
    return (first + second).to(compute or x.dtype)


def oracle(input, r1, r2, rotary_mode="half", rotate=None, compute=None):  # noqa: A002
    r1, r2 = (r if compute else r.to(input.dtype) for r in (r1, r2))
    if rotate is None:
        other = turned(input, rotary_mode)
    elif compute:
        other = input @ rotate.to(compute)
    else:
        other = (input.double() @ rotate.double()).to(input.dtype)
    return embed(input, r1, r2, other, compute)


def call_interleave(shape=(2, 3, 4, 64), s=None, dtype=torch.bfloat16):
    b, _, rows, d = shape
    angles = (b, 1, rows if s is None else s, d)
    names = {"x": shape, "cos": angles, "sin": angles}
    return {name: numbers(size, dtype, seed) for seed, (name, size) in enumerate(names.items())}


def oracle_interleave(x, cos, sin):
    d = x.shape[-1]
    order = [*range(0, d, 2), *range(1, d, 2)]
    q = x[..., order].float()
    return (q * cos.float() + turned(q, "half") * sin.float()).to(x.dtype)


def call_apply(shape=(2, 3, 4, 8), heads=2, axis=2, dtype=torch.bfloat16, **kwargs):
    key, angles = list(shape), list(shape)
    key[axis], angles[axis] = heads, 1
    sizes = {"query": shape, "key": key, "cos": angles, "sin": angles}
    made = {name: numbers(size, dtype, seed) for seed, (name, size) in enumerate(sizes.items())}
    return {**made, **kwargs}


def oracle_apply(query, key, cos, sin, layout="BSND", rotary_mode="half"):
    del layout
    both = [embed(x, cos, sin, turned(x, rotary_mode), None) for x in (query, key)]
    return (*both, *both)


MATRIX = turn(8)

TESTED = [
    Tested(
        name="npu_rotary_mul",
        samples={
            "bfloat16": call,
            "float16": lambda: call(dtype=torch.float16),
            "float32": lambda: call(dtype=torch.float32),
            "interleave": lambda: call(rotary_mode="interleave"),
            "interleave_float16": lambda: call(dtype=torch.float16, rotary_mode="interleave"),
            "three_axes": lambda: call((5, 4, 8), (5, 1, 8)),
            "no_broadcast": lambda: call((2, 3, 4, 8), (2, 3, 4, 8)),
            "one_row": lambda: call((1, 1, 1, 2), (1, 1, 1, 2)),
            "no_rows": lambda: call((0, 3, 4, 8)),
            "other_dtype_of_angles": lambda: call(angle_dtype=torch.float32),
            "matrix": lambda: call(rotate=MATRIX),
            "large": lambda: call((2, 64, 8, 128), (1, 64, 1, 128)),
        },
        oracle=oracle,
        node=lambda case: (
            "RotaryPositionEmbedding"
            if case.get("rotary_mode", "half") == "interleave" or case.get("rotate") is not None
            else "RotaryMul"
        ),
        attributes=lambda case: (
            {"mode": 1} if case.get("rotary_mode", "half") == "interleave" else {}
        ),
        differentiable=("input", "r1", "r2", "rotate"),
        reference=oracle,
        errors={
            "mode": Bad(
                {"rotary_mode": "quarter"},
                ValueError,
                "rotary_mode must be 'half' (the second half of a row turns into the first) or "
                "'interleave' (neighbours turn into each other), got 'quarter'",
                call,
            ),
            "rank": Bad(
                {"input": torch.zeros(3, 8)},
                ValueError,
                "input must be 3-D or 4-D, got shape (3, 8)",
                call,
            ),
            "odd": Bad(
                {"input": torch.zeros(1, 3, 7)},
                ValueError,
                "input must be even in its last axis, got shape (1, 3, 7)",
                call,
            ),
            "dtype": Bad(
                {"input": torch.zeros(2, 3, 4, 8, dtype=torch.int8)},
                TypeError,
                "input must be float16 or bfloat16 or float32, got int8",
                call,
            ),
            "r1_shape": Bad(
                {"r1": torch.zeros(1, 2, 1, 8)},
                ValueError,
                "r1 must have the rank of input, its last axis, and in each other axis its size or "
                "one, where input is (2, 3, 4, 8), got shape (1, 2, 1, 8)",
                call,
            ),
            "r1_rank": Bad({"r1": torch.zeros(8)}, ValueError, "r1 must have the rank of", call),
            "r2_shape": Bad(
                {"r2": torch.zeros(1, 1, 1, 8)},
                ValueError,
                "r2 must be of the shape of r1 = (1, 3, 1, 8), got shape (1, 1, 1, 8)",
                call,
            ),
            "rotate_shape": Bad(
                {"rotate": torch.zeros(8, 4)},
                ValueError,
                "rotate must be (d, d) = (8, 8), got shape (8, 4)",
                call,
            ),
        },
    ),
    Tested(
        name="npu_interleave_rope",
        samples={
            "bfloat16": call_interleave,
            "float16": lambda: call_interleave(dtype=torch.float16),
            "one_position_for_all": lambda: call_interleave(s=1),
            "decode": lambda: call_interleave((8, 4, 1, 64)),
            "no_rows": lambda: call_interleave((0, 3, 4, 64)),
            "one_row": lambda: call_interleave((1, 1, 1, 64)),
            "small_d": lambda: call_interleave((2, 3, 4, 6)),
            "large": lambda: call_interleave((32, 32, 4, 64)),
        },
        oracle=oracle_interleave,
        node="InterleaveRope",
        errors={
            "dtype": Bad(
                {"x": torch.zeros(2, 3, 4, 64)},
                TypeError,
                "x must be float16 or bfloat16, got float32",
                call_interleave,
            ),
            "rank": Bad(
                {"x": torch.zeros(2, 3, 64).bfloat16()},
                ValueError,
                "x must be 4-D (b, n, s, d), got shape (2, 3, 64)",
                call_interleave,
            ),
            "odd": Bad(
                {"x": torch.zeros(2, 3, 4, 63).bfloat16()},
                ValueError,
                "x must be even in its last axis, got shape (2, 3, 4, 63)",
                call_interleave,
            ),
            "cos_heads": Bad(
                {"cos": torch.zeros(2, 3, 4, 64).bfloat16()},
                ValueError,
                "cos must be (b, 1, s, d) = (2, 1, 4, 64), got shape (2, 3, 4, 64)",
                call_interleave,
            ),
            "cos_batch": Bad(
                {"cos": torch.zeros(1, 1, 1, 64).bfloat16()},
                ValueError,
                "cos must be (b, 1, 1, d) = (2, 1, 1, 64), got shape (1, 1, 1, 64)",
                call_interleave,
            ),
            "sin_dtype": Bad(
                {"sin": torch.zeros(2, 1, 4, 64)},
                TypeError,
                "sin must be bfloat16, got float32",
                call_interleave,
            ),
            "sin_shape": Bad(
                {"sin": torch.zeros(2, 1, 1, 64).bfloat16()},
                ValueError,
                "sin must be of the shape of cos = (2, 1, 4, 64), got shape (2, 1, 1, 64)",
                call_interleave,
            ),
        },
    ),
    Tested(
        name="npu_apply_rotary_pos_emb",
        samples={
            "bfloat16": call_apply,
            "float16": lambda: call_apply(dtype=torch.float16),
            "float32": lambda: call_apply(dtype=torch.float32),
            "BNSD": lambda: call_apply(axis=1, layout="BNSD"),
            "SBND": lambda: call_apply(layout="SBND"),
            "TND": lambda: call_apply((5, 4, 8), axis=1, layout="TND"),
            "interleave": lambda: call_apply(rotary_mode="interleave"),
            "quarter": lambda: call_apply(rotary_mode="quarter"),
            "no_rows": lambda: call_apply((0, 3, 4, 8)),
            "one_row": lambda: call_apply((1, 1, 1, 4), heads=1),
            "large": lambda: call_apply((2, 64, 8, 128)),
        },
        oracle=oracle_apply,
        node="ApplyRotaryPosEmb",
        decomposed=False,
        attributes=lambda case: {
            "layout": {"SBND": 2, "BNSD": 3, "TND": 4}.get(case.get("layout"), 1),
            "rotary_mode": case.get("rotary_mode", "half"),
        },
        written=("query", "key"),
        written_lowered=False,
        errors={
            "layout": Bad(
                {"layout": "BNDS"},
                ValueError,
                "layout must be 'BSND', 'BSH', 'SBND', 'BNSD' or 'TND', got 'BNDS'",
                call_apply,
            ),
            "key_shape": Bad(
                {"key": torch.zeros(2, 4, 2, 8).bfloat16()},
                ValueError,
                "key must be the shape of query, its own heads aside, = (2, 3, 2, 8), "
                "got shape (2, 4, 2, 8)",
                call_apply,
            ),
            "key_dtype": Bad(
                {"key": torch.zeros(2, 3, 2, 8)},
                TypeError,
                "key must be bfloat16, got float32",
                call_apply,
            ),
            "rank": Bad(
                {"layout": "TND"},
                ValueError,
                "query must be 3-D in layout TND, got shape (2, 3, 4, 8)",
                call_apply,
            ),
            "quarter": Bad(
                {"rotary_mode": "quarter", "query": torch.zeros(2, 3, 4, 6).bfloat16()},
                ValueError,
                "query must be divisible by 4 in its last axis, got shape (2, 3, 4, 6)",
                call_apply,
            ),
            "cos_heads": Bad(
                {"cos": torch.zeros(2, 3, 4, 8).bfloat16()},
                ValueError,
                "cos must be the shape of query with one head = (2, 3, 1, 8), "
                "got shape (2, 3, 4, 8)",
                call_apply,
            ),
        },
    ),
]
