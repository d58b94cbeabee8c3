"""npu_moe_token_permute and npu_moe_token_unpermute, slot by slot."""

import torch
from errors import Bad
from operators import Tested

int32 = torch.int32


def call(tokens=6, h=4, k=2, experts=3, dtype=torch.bfloat16, counted=int32, **kwargs):
    generator = torch.Generator().manual_seed(29)
    shape = (tokens,) if k is None else (tokens, k)
    return {
        "tokens": (torch.randn(tokens, h, generator=generator) * 9).to(dtype),
        "indices": torch.randint(0, experts, shape, generator=generator, dtype=counted),
        **kwargs,
    }


def oracle(tokens, indices, num_out_tokens=None, padded_mode=False, compute=None):
    del padded_mode, compute
    k = indices.numel() // max(len(indices), 1)
    experts = indices.reshape(-1).tolist()
    slots = sorted(range(len(experts)), key=lambda slot: (experts[slot], slot))
    place = torch.zeros(len(slots), dtype=int32)
    for row, slot in enumerate(slots):
        place[slot] = row
    rows = [tokens[slot // k] for slot in (slots[:num_out_tokens] if num_out_tokens else slots)]
    return torch.stack(rows) if rows else tokens[:0], place


def back(tokens=6, h=4, k=2, rows=None, dtype=torch.bfloat16, weighed=torch.float32):
    generator = torch.Generator().manual_seed(31)
    slots = tokens * (k or 1)
    made = {
        "permuted_tokens": torch.randn(slots, h, generator=generator).to(dtype)[:rows],
        "sorted_indices": torch.randperm(slots, generator=generator).to(int32),
    }
    if k is not None:
        made["probs"] = torch.rand(tokens, k, generator=generator).to(weighed)
    return made


def zero_probs():
    """Rows of infinities whose weight is zero."""
    made = back(dtype=torch.float32)
    made["probs"][1, 0] = made["probs"][4, 1] = 0
    made["permuted_tokens"][int(made["sorted_indices"][2])] = torch.inf
    made["permuted_tokens"][int(made["sorted_indices"][9])] = torch.nan
    return made


def oracle_back(
    permuted_tokens,
    sorted_indices,
    probs=None,
    padded_mode=False,
    restore_shape=None,
    compute=torch.float32,
):
    del padded_mode, restore_shape
    k = 1 if probs is None else probs.shape[1]
    out = []
    for token in range(len(sorted_indices) // k):
        total = torch.zeros(permuted_tokens.shape[1], dtype=compute)
        for j in range(k):
            row = int(sorted_indices[token * k + j])
            if row >= len(permuted_tokens):
                continue
            given = permuted_tokens[row].to(compute)
            if probs is None:
                total = total + given
            elif probs[token, j] != 0:
                total = total + given * probs[token, j].to(compute)
        out.append(total)
    result = torch.stack(out) if out else permuted_tokens.new_zeros(0, permuted_tokens.shape[1])
    return result if compute == torch.float64 else result.to(permuted_tokens.dtype)


TESTED = [
    Tested(
        name="npu_moe_token_permute",
        samples={
            "bfloat16": call,
            "float32": lambda: call(dtype=torch.float32, counted=torch.int64),
            "float16": lambda: call(dtype=torch.float16, k=3),
            "int8": lambda: call(dtype=torch.int8),
            "one_slot": lambda: call(k=None),
            "some_rows": lambda: call(num_out_tokens=7),
            "more_than_all": lambda: call(num_out_tokens=99),
            "none_left_out": lambda: call(num_out_tokens=0),
            "all_but_some": lambda: call(num_out_tokens=-3),
            "one_token": lambda: call(tokens=1),
            "no_tokens": lambda: call(tokens=0),
            "large": lambda: call(tokens=200, h=32, k=8, experts=40),
        },
        decomposed=False,
        oracle=oracle,
        reference=oracle,
        differentiable=("tokens",),
        node=None,  # TorchAIR has no converter of it, and no builder of CANN's node
        errors={
            "dtype": Bad(
                {"tokens": torch.zeros(6, 4, dtype=int32)},
                TypeError,
                "tokens must be float16 or bfloat16 or float32 or int8, got int32",
                call,
            ),
            "rank": Bad(
                {"tokens": torch.zeros(6)},
                ValueError,
                "tokens must be 2-D (tokens, h), got shape (6,)",
                call,
            ),
            "indices_dtype": Bad(
                {"indices": torch.zeros(6, 2)},
                TypeError,
                "indices must be int32 or int64, got float32",
                call,
            ),
            "indices_rank": Bad(
                {"indices": torch.zeros(6, 2, 1, dtype=int32)},
                ValueError,
                "indices must be (tokens,) or (tokens, k), got shape (6, 2, 1)",
                call,
            ),
            "indices_shape": Bad(
                {"indices": torch.zeros(5, 2, dtype=int32)},
                ValueError,
                "indices must have a row for each of the 6 tokens, got shape (5, 2)",
                call,
            ),
            "no_choice": Bad(
                {"indices": torch.zeros(6, 0, dtype=int32)},
                ValueError,
                "indices must have k >= 1, got (6, 0)",
                call,
            ),
            "num_out_tokens": Bad(
                {"num_out_tokens": -13},
                ValueError,
                "num_out_tokens must be >= -tokens * k = -12, got -13",
                call,
            ),
            "padded_mode": Bad(
                {"padded_mode": True},
                NotImplementedError,
                "padded_mode must be False, got True; no device has it either",
                call,
            ),
        },
    ),
    Tested(
        name="npu_moe_token_unpermute",
        samples={
            "bfloat16": back,
            "float32": lambda: back(dtype=torch.float32),
            "float16": lambda: back(dtype=torch.float16, weighed=torch.float16),
            "bfloat16_probs": lambda: back(weighed=torch.bfloat16, k=3),
            "no_probs": lambda: back(k=None),
            "no_probs_left_out": lambda: back(k=None, rows=4, dtype=torch.float32),
            "left_out": lambda: back(rows=7),
            "left_out_float32": lambda: back(rows=7, dtype=torch.float32, k=3),
            "restore_shape": lambda: {**back(), "restore_shape": [6, 4]},
            "infinite_of_no_weight": zero_probs,
            "one_token": lambda: back(tokens=1),
            "no_tokens": lambda: back(tokens=0),
            "large": lambda: back(tokens=200, h=32, k=8),
        },
        decomposed=False,
        oracle=oracle_back,
        reference=oracle_back,
        differentiable=("permuted_tokens", "probs"),
        node=None,
        errors={
            "dtype": Bad(
                {"permuted_tokens": torch.zeros(12, 4, dtype=torch.int8)},
                TypeError,
                "permuted_tokens must be float16 or bfloat16 or float32, got int8",
                back,
            ),
            "rank": Bad(
                {"permuted_tokens": torch.zeros(12)},
                ValueError,
                "permuted_tokens must be 2-D (rows, h), got shape (12,)",
                back,
            ),
            "indices_dtype": Bad(
                {"sorted_indices": torch.zeros(12).long()},
                TypeError,
                "sorted_indices must be int32, got int64",
                back,
            ),
            "indices_shape": Bad(
                {"sorted_indices": torch.zeros(11, dtype=int32)},
                ValueError,
                "sorted_indices must be (tokens * k,) = (12,), got shape (11,)",
                back,
            ),
            "probs_rank": Bad(
                {"probs": torch.zeros(12)},
                ValueError,
                "probs must be 2-D (tokens, k), got shape (12,)",
                back,
            ),
            "padded_mode": Bad(
                {"padded_mode": True},
                NotImplementedError,
                "padded_mode must be False, got True; no device has it either",
                back,
            ),
        },
        value_errors={
            "negative": Bad(
                {"sorted_indices": torch.tensor([0, -1] * 6, dtype=int32)},
                IndexError,
                "sorted_indices must not be negative, got sorted_indices[1] = -1",
                back,
            ),
        },
    ),
]
