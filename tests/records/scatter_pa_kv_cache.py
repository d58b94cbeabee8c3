"""npu_scatter_pa_kv_cache, token by token."""

import torch
from errors import Bad
from operators import Tested

PAGES, SIZE = 3, 4


def numbers(shape, dtype, seed):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 20
    return made.to(dtype)


def call(mode="PA_NZ", tokens=5, heads=2, d=16, d_v=32, c0=16, dtype=torch.float16, **kwargs):
    made = {}
    for seed, (name, width) in enumerate({"key": d, "value": d_v}.items()):
        made[name] = numbers((tokens, heads, width), dtype, seed)
    for seed, (name, width) in enumerate({"key": d, "value": d_v}.items()):
        is_nz = mode == "PA_NZ"
        tail = (heads * width // c0, SIZE, c0) if is_nz else (SIZE, heads, width)
        made[f"{name}_cache"] = numbers((PAGES, *tail), dtype, seed + 2)
    order = torch.randperm(PAGES * SIZE, generator=torch.Generator().manual_seed(4))
    return {**made, "slot_mapping": order[:tokens].int(), "cache_mode": mode, **kwargs}


def skipping():
    made = call()
    made["slot_mapping"][2] = -1
    return made


def oracle(key, value, key_cache, value_cache, slot_mapping, cache_mode="PA_NZ"):
    for i, slot in enumerate(slot_mapping.tolist()):
        if slot < 0:
            continue
        page, row = divmod(slot, SIZE)
        for cache, rows in ((key_cache, key), (value_cache, value)):
            if cache_mode != "PA_NZ":
                cache[page, row] = rows[i]
                continue
            for place, element in enumerate(rows[i].reshape(-1)):
                column, rest = divmod(place, cache.shape[3])
                cache[page, column, row, rest] = element
    return key_cache, value_cache


TESTED = [
    Tested(
        name="npu_scatter_pa_kv_cache",
        samples={
            "float16": call,
            "bfloat16": lambda: call(dtype=torch.bfloat16),
            "int8": lambda: call(dtype=torch.int8, c0=32),
            "by_rows": lambda: call("Norm"),
            "by_rows_None": lambda: call(None),
            "int64_slots": lambda: {**call(), "slot_mapping": torch.tensor([3, 11, 0, 1, 7])},
            "skipped": skipping,
            "no_tokens": lambda: call(tokens=0),
            "one_token": lambda: call(tokens=1, heads=1),
        },
        oracle=oracle,
        # TorchAIR's converter takes no None for the mode.
        node=lambda case: "ScatterPaKvCache" if case["cache_mode"] else None,
        decomposed=False,
        written=("key_cache", "value_cache"),
        errors={
            "mode": Bad(
                {"cache_mode": "PA"},
                ValueError,
                "cache_mode must be 'PA_NZ' (pages in tiles) or 'Norm' (pages by rows), got 'PA'",
                call,
            ),
            "four_axes": Bad(
                {"key": torch.zeros(1, 5, 2, 16).half()},
                NotImplementedError,
                "key of shape (1, 5, 2, 16) is not supported yet; supported is one slot for each",
                call,
            ),
            "compressed": Bad(
                {"seq_lens": torch.zeros(5).int()},
                NotImplementedError,
                "seq_lens is not supported yet and must be None, got a tensor of shape (5,); ",
                call,
            ),
            "value_tokens": Bad(
                {"value": torch.zeros(4, 2, 32).half()},
                ValueError,
                "value must be (tokens, heads, d_v) = (5, 2, 32), got shape (4, 2, 32)",
                call,
            ),
            "slots_shape": Bad(
                {"slot_mapping": torch.zeros(4).int()},
                ValueError,
                "slot_mapping must be (tokens,) = (5,), got shape (4,)",
                call,
            ),
            "cache_dtype": Bad(
                {"value_cache": torch.zeros(3, 4, 4, 16)},
                TypeError,
                "value_cache must be float16, got float32",
                call,
            ),
            "cache_shape": Bad(
                {"key_cache": torch.zeros(3, 4, 2, 15).half()},
                ValueError,
                "key_cache must be (pages, page_size, heads, d) = (3, 4, 2, 16), "
                "got shape (3, 4, 2, 15)",
                lambda: call("Norm"),
            ),
            "tiles": Bad(
                {"key_cache": torch.zeros(3, 3, 4, 9).half()},
                ValueError,
                "key_cache must have in its last axis a divisor of heads * d = 32, got 9",
                call,
            ),
        },
        value_errors={
            "beyond": Bad(
                {"slot_mapping": torch.tensor([0, 12, 1, 2, 3]).int()},
                IndexError,
                "slot_mapping must be less than 12, got slot_mapping[1] = 12 (counted in the flat",
                call,
            )
        },
    )
]
