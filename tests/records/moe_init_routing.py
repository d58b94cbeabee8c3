"""npu_moe_init_routing and npu_moe_compute_expert_tokens, slot by slot."""

import torch
from errors import Bad
from operators import Tested

int32 = torch.int32


def call(tokens=5, h=4, k=2, experts=3, active_num=99, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(7)
    row_idx = torch.arange(tokens * k, dtype=int32).reshape(k, tokens).t().contiguous()
    return {
        "x": torch.randn(tokens, h, generator=generator).to(dtype),
        "row_idx": row_idx,
        "expert_idx": torch.randint(0, experts, (tokens, k), generator=generator, dtype=int32),
        "active_num": active_num,
    }


def oracle(x, row_idx, expert_idx, active_num):
    tokens, k = row_idx.shape
    slots = [
        (int(expert_idx[i, j]), place, int(row_idx[i, j]))
        for place, (i, j) in enumerate((i, j) for i in range(tokens) for j in range(k))
    ]
    slots.sort()
    went_to = torch.zeros(tokens * k, dtype=int32)
    rows = []
    for row, (_, _, flat) in enumerate(slots):
        went_to[flat] = row
        if row < min(tokens, active_num) * k:
            rows.append(x[flat % tokens])
    experts = torch.tensor([slot[0] for slot in slots], dtype=int32)
    return torch.stack(rows) if rows else x[:0], went_to, experts


def expert_tokens(num_expert=4, rows=(0, 0, 1, 3, 3)):
    return {
        "sorted_expert_for_source_row": torch.tensor(rows, dtype=int32),
        "num_expert": num_expert,
    }


def expert_tokens_oracle(sorted_expert_for_source_row, num_expert):
    rows = sorted_expert_for_source_row.tolist()
    totals = [sum(row <= expert for row in rows) for expert in range(num_expert)]
    return torch.tensor(totals, dtype=int32)


TESTED = [
    Tested(
        name="npu_moe_init_routing",
        samples={
            "bfloat16": call,
            "float16": lambda: call(dtype=torch.float16),
            "float32": lambda: call(dtype=torch.float32),
            "some_active": lambda: call(active_num=3),
            "none_active": lambda: call(active_num=0),
            "one_token": lambda: call(tokens=1, k=3),
            "one_slot": lambda: call(k=1),
            "one_expert": lambda: call(experts=1),
            "large": lambda: call(tokens=200, h=64, k=8, experts=40),
        },
        decomposed=False,
        oracle=oracle,
        node="MoeInitRouting",
        attributes=lambda case: {"active_num": case["active_num"]},
        errors={
            "x_dtype": Bad(
                {"x": torch.zeros(5, 4, dtype=torch.int8)},
                TypeError,
                "x must be float16 or bfloat16 or float32, got int8",
                call,
            ),
            "x_rank": Bad(
                {"x": torch.zeros(5)}, ValueError, "x must be 2-D (tokens, h), got shape (5,)", call
            ),
            "row_idx_dtype": Bad(
                {"row_idx": torch.zeros(5, 2, dtype=torch.int64)},
                TypeError,
                "row_idx must be int32, got int64",
                call,
            ),
            "row_idx_shape": Bad(
                {"row_idx": torch.zeros(4, 2, dtype=int32)},
                ValueError,
                "row_idx must be (tokens, k) = (5, 2), got shape (4, 2)",
                call,
            ),
            "expert_idx_shape": Bad(
                {"expert_idx": torch.zeros(5, 3, dtype=int32)},
                ValueError,
                "expert_idx must be (tokens, k) = (5, 2), got shape (5, 3)",
                call,
            ),
            "active_num": Bad(
                {"active_num": -1}, ValueError, "active_num must be >= 0, got -1", call
            ),
        },
        value_errors={
            "row_idx": Bad(
                {"row_idx": torch.full((5, 2), 10, dtype=int32)},
                IndexError,
                "row_idx must lie in [0, tokens * k) = [0, 10), got row_idx[0] = 10",
                call,
            ),
        },
    ),
    Tested(
        name="npu_moe_compute_expert_tokens",
        samples={
            "some": expert_tokens,
            "more_experts": lambda: expert_tokens(num_expert=9),
            "one_expert": lambda: expert_tokens(num_expert=1, rows=(0,)),
            "no_rows": lambda: expert_tokens(rows=()),
            "large": lambda: expert_tokens(num_expert=64, rows=sorted(i % 61 for i in range(999))),
        },
        decomposed=False,
        oracle=expert_tokens_oracle,
        node="MoeComputeExpertTokens",
        attributes=lambda case: {"num_experts": case["num_expert"]},
        errors={
            "dtype": Bad(
                {"sorted_expert_for_source_row": torch.zeros(3, dtype=torch.int64)},
                TypeError,
                "sorted_expert_for_source_row must be int32, got int64",
                expert_tokens,
            ),
            "rank": Bad(
                {"sorted_expert_for_source_row": torch.zeros(3, 1, dtype=int32)},
                ValueError,
                "sorted_expert_for_source_row must be 1-D (rows,), got shape (3, 1)",
                expert_tokens,
            ),
            "num_expert": Bad(
                {"num_expert": 0}, ValueError, "num_expert must be >= 1, got 0", expert_tokens
            ),
        },
    ),
]
