"""npu_kv_rmsnorm_rope_cache, token by token; the caches' memory element by element."""

import math

import torch
from errors import Bad
from operators import Tested

PAGES, SIZE = 5, 4


def numbers(shape, seed, dtype=torch.bfloat16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def call(
    mode="PA", b=2, s=3, rms=32, rope=32, dtype=torch.bfloat16, int8=False, width=None, **kwargs
):
    """With v where its width is given."""
    d = rms + rope if width is None else rms
    made = {
        "kv": numbers((b, 1, s, d), 0, dtype),
        "gamma": numbers((rms,), 1, dtype),
        "cos": numbers((b, 1, s, rope), 2, dtype),
        "sin": numbers((b, 1, s, rope), 3, dtype),
    }
    order = torch.randperm(PAGES * SIZE, generator=torch.Generator().manual_seed(4))
    if mode == "Norm":
        made["index"] = order[: 2 * s].argsort()[:s].repeat(b, 1)
        lead = (b, 1, 2 * s)
    elif "BLK" in mode:
        blocks = math.ceil(s / SIZE)
        made["index"] = torch.arange(PAGES).flip(0)[: b * blocks] * SIZE
        lead = (PAGES, SIZE, 1)
    else:
        made["index"] = order[: b * s].clone()
        lead = (PAGES, SIZE, 1)
    widths = (rope, rms) if width is None else (d, width)
    for seed, name, each in zip((5, 6), ("k_cache", "ckv_cache"), widths):
        cache = numbers((*lead, each), seed, torch.float32) * 20
        made[name] = cache.to(torch.int8 if int8 else dtype)
    if int8:
        made["k_rope_scale"] = torch.linspace(1, 90, widths[0])
        made["c_kv_scale"] = torch.linspace(90, 1, widths[1])
    if width is not None:
        made["v"] = numbers((b, 1, s, width), 7, dtype)
    return {**made, "cache_mode": mode, **kwargs}


def skipping(**kwargs):
    made = call(**kwargs)
    made["index"].view(-1)[0] = -1
    return made


def embedded(row, cos, sin):
    half = len(row) // 2
    q = torch.cat([row[::2], row[1::2]])
    return q * cos + torch.cat([-q[half:], q[:half]]) * sin


def oracle(
    kv, gamma, cos, sin, index, k_cache, ckv_cache, k_rope_scale=None, c_kv_scale=None, v=None, *,
    epsilon=1e-5, cache_mode="Norm", is_output_kv=False,
):  # fmt: skip
    b, _, s, _ = kv.shape
    rms, rope = len(gamma), cos.shape[3]
    k_out, y_out = [], []
    for i in range(b):
        for t in range(s):
            row = kv[i, 0, t].double()
            angles = cos[i, 0, t].double(), sin[i, 0, t].double()
            y = row[:rms] / (row[:rms].square().sum() / rms + epsilon) ** 0.5 * gamma.double()
            if v is None:
                k = embedded(row[rms:], *angles)
            else:
                k = torch.cat([embedded(y[:rope], *angles), y[rope:]])
                y = v[i, 0, t].double()
            k_out.append(k)
            y_out.append(y)
            for cache, new, scale in ((k_cache, k, k_rope_scale), (ckv_cache, y, c_kv_scale)):
                if scale is not None:
                    new = torch.round(new * scale).clamp(-128, 127)
                write(cache, new.to(cache.dtype), index, i, t, s, cache_mode)
    shape = (b, 1, s, -1)
    given = [torch.stack(rows).to(kv.dtype).reshape(shape) for rows in (k_out, y_out)]
    if not is_output_kv:
        given = [torch.zeros_like(rows) for rows in given]
    return k_cache, ckv_cache, *given, k_cache, ckv_cache


def write(cache, row, index, i, t, s, mode):
    """One token's row."""
    if mode == "Norm":
        if index[i, t] >= 0:
            cache[i, 0, index[i, t]] = row
        return
    size = cache.shape[1]
    if "BLK" in mode:
        first = int(index[i * math.ceil(s / size) + t // size])
        slot = first + t % size if first >= 0 else -1
    else:
        slot = int(index[i * s + t])
    if slot < 0:
        return
    page, offset = divmod(slot, size)
    if not mode.endswith("NZ"):
        cache[page, offset, 0] = row
        return
    c0 = 32 // cache.element_size()
    memory = cache.view(-1)
    for place, value in enumerate(row):
        column, rest = divmod(place, c0)
        memory[page * size * len(row) + column * size * c0 + offset * c0 + rest] = value


def defined(case, values):
    """All but the rows that were not asked for."""
    return values if case.get("is_output_kv") else (*values[:2], *values[4:])


TESTED = [
    Tested(
        name="npu_kv_rmsnorm_rope_cache",
        samples={
            **{
                mode: lambda mode=mode: call(mode)
                for mode in ("Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ")
            },
            "float16": lambda: call(dtype=torch.float16),
            "rows_given": lambda: call(is_output_kv=True),
            "epsilon": lambda: call(epsilon=0.5, is_output_kv=True),
            "int8": lambda: call(int8=True, is_output_kv=True),
            "int8_NZ": lambda: call("PA_NZ", int8=True),
            "long": lambda: call("PA_BLK_NZ", s=7),
            "skipped": lambda: skipping(),
            "skipped_Norm": lambda: skipping(mode="Norm"),
            "skipped_BLK": lambda: skipping(mode="PA_BLK_BNSD", s=7),
            "v": lambda: call(rms=48, rope=16, width=32, is_output_kv=True),
            "decode": lambda: call(b=6, s=1),
            "one_token": lambda: call(b=1, s=1),
            "large": lambda: call(b=2, s=8, rms=512, rope=64),
        },
        oracle=oracle,
        node="KvRmsNormRopeCache",
        decomposed=False,
        attributes=lambda case: {"cache_mode": case["cache_mode"]},
        written=("k_cache", "ckv_cache"),
        undefined=defined,
        tolerance=2**-7,
        why="the oracle sums in float64, the kernel in float32, so that a rounding may differ",
        errors={
            "mode": Bad(
                {"cache_mode": "PA_ND"},
                ValueError,
                "cache_mode must be 'Norm' (an offset in the batch for each token), ",
                call,
            ),
            "kv_dtype": Bad(
                {"kv": torch.zeros(2, 1, 3, 64)},
                TypeError,
                "kv must be float16 or bfloat16, got float32",
                call,
            ),
            "kv_width": Bad(
                {"kv": torch.zeros(2, 1, 3, 63).bfloat16()},
                ValueError,
                "kv must be (b, 1, s, rms + rope) = (2, 1, 3, 64), got shape (2, 1, 3, 63)",
                call,
            ),
            "cos_shape": Bad(
                {"cos": torch.zeros(2, 1, 1, 32).bfloat16()},
                ValueError,
                "cos must be (b, 1, s, rope) = (2, 1, 3, 32), got shape (2, 1, 1, 32)",
                call,
            ),
            "index_dtype": Bad(
                {"index": torch.zeros(6, dtype=torch.int32)},
                TypeError,
                "index must be int64, got int32",
                call,
            ),
            "index_shape": Bad(
                {"index": torch.zeros(5, dtype=torch.int64)},
                ValueError,
                "index must be (b * s,) = (6,), got shape (5,)",
                call,
            ),
            "index_of_pages": Bad(
                {"index": torch.zeros(3, dtype=torch.int64)},
                ValueError,
                "index must be (b * ceil(s / page_size),) = (2,), got shape (3,)",
                lambda: call("PA_BLK_NZ"),
            ),
            "cache_dtype": Bad(
                {"k_cache": torch.zeros(5, 4, 1, 32)},
                TypeError,
                "k_cache must be bfloat16, got float32",
                call,
            ),
            "cache_width": Bad(
                {"ckv_cache": torch.zeros(5, 4, 1, 31).bfloat16()},
                ValueError,
                "ckv_cache must be (pages, page_size, 1, width) = (5, 4, 1, 32), "
                "got shape (5, 4, 1, 31)",
                call,
            ),
            "tiles": Bad(
                {},
                ValueError,
                "k_cache must have a multiple of 16 in its last axis for cache_mode PA_NZ, got 24",
                lambda: call("PA_NZ", rope=24),
            ),
            "one_scale": Bad(
                {"k_rope_scale": torch.zeros(32)},
                ValueError,
                "c_kv_scale is required with k_rope_scale: expected both or neither, got None",
                call,
            ),
            "offset": Bad(
                {"c_kv_offset": torch.zeros(32)},
                NotImplementedError,
                "c_kv_offset is not supported yet and must be None, got a tensor of shape (32,); "
                "supported is symmetric quantisation",
                call,
            ),
        },
        value_errors={
            "beyond": Bad(
                {"index": torch.tensor([0, 1, 2, 20, 4, 5])},
                IndexError,
                "index must be less than 20, got index[3] = 20 (counted in the flat tensor)",
                call,
            ),
            "beyond_Norm": Bad(
                {"index": torch.tensor([[0, 1, 2], [-1, 6, 5]])},
                IndexError,
                "index must be less than 6, got index[4] = 6 (counted in the flat tensor)",
                lambda: call("Norm"),
            ),
        },
    ),
]
