"""npu_moe_re_routing, row by row."""

import torch
from errors import Bad
from operators import Tested


def call(counts=((2, 0, 1), (1, 3, 0)), h=4, dtype=torch.int8, counted=torch.int32, scales=True):
    counts = torch.tensor(counts, dtype=counted)
    rows = int(counts.sum())
    tokens = torch.arange(rows * h).reshape(rows, h) % 100
    made = {"tokens": tokens.to(dtype), "expert_token_num_per_rank": counts}
    if scales:
        made["per_token_scales"] = torch.linspace(0.5, 1, rows)
    return made


def oracle(
    tokens,
    expert_token_num_per_rank,
    per_token_scales=None,
    expert_token_num_type=1,
    idx_type=0,
    tokens_dtype=None,
):
    del expert_token_num_type, idx_type, tokens_dtype
    counts = expert_token_num_per_rank.tolist()
    start, starts = 0, {}
    for rank, row in enumerate(counts):
        for expert, count in enumerate(row):
            starts[rank, expert] = start
            start += count
    was = [
        starts[rank, expert] + i
        for expert in range(len(counts[0]))
        for rank in range(len(counts))
        for i in range(counts[rank][expert])
    ]
    given = torch.zeros(len(was)) if per_token_scales is None else per_token_scales
    rows = torch.stack([tokens[row] for row in was]) if was else tokens.clone()
    return (
        rows,
        torch.stack([given[row] for row in was]) if was else given.clone(),
        torch.tensor(was, dtype=torch.int32),
        torch.tensor([sum(each) for each in zip(*counts)], dtype=expert_token_num_per_rank.dtype),
    )


TESTED = [
    Tested(
        name="npu_moe_re_routing",
        samples={
            "int8": call,
            "bfloat16": lambda: call(dtype=torch.bfloat16, scales=False),
            "float16": lambda: call(dtype=torch.float16, counted=torch.int64),
            "one_rank": lambda: call(counts=((2, 1, 3),)),
            "one_expert": lambda: call(counts=((2,), (3,))),
            "one_row": lambda: call(counts=((0, 1), (0, 0))),
            "no_rows": lambda: call(counts=((0, 0), (0, 0))),
            "large": lambda: call(
                counts=[[(7 * i + 3 * j) % 5 for j in range(16)] for i in range(8)], h=64
            ),
        },
        decomposed=False,
        oracle=oracle,
        node="MoeReRouting",
        errors={
            "dtype": Bad(
                {"tokens": torch.zeros(7, 4)},
                TypeError,
                "tokens must be float16 or bfloat16 or int8, got float32",
                call,
            ),
            "rank": Bad(
                {"tokens": torch.zeros(7).bfloat16()},
                ValueError,
                "tokens must be 2-D (rows, h), got shape (7,)",
                call,
            ),
            "counts_rank": Bad(
                {"expert_token_num_per_rank": torch.zeros(6).int()},
                ValueError,
                "expert_token_num_per_rank must be 2-D (ranks, experts), got shape (6,)",
                call,
            ),
            "counts_dtype": Bad(
                {"expert_token_num_per_rank": torch.zeros(2, 3)},
                TypeError,
                "expert_token_num_per_rank must be int32 or int64, got float32",
                call,
            ),
            "scales_shape": Bad(
                {"per_token_scales": torch.zeros(6)},
                ValueError,
                "per_token_scales must be (rows,) = (7,), got shape (6,)",
                call,
            ),
            "scales_dtype": Bad(
                {"per_token_scales": torch.zeros(7).half()},
                TypeError,
                "per_token_scales must be float32, got float16",
                call,
            ),
            "num_type": Bad(
                {"expert_token_num_type": 0},
                ValueError,
                "expert_token_num_type must be 1 (counts), got 0",
                call,
            ),
            "idx_type": Bad(
                {"idx_type": 1}, ValueError, "idx_type must be 0 (gather), got 1", call
            ),
        },
        value_errors={
            "negative": Bad(
                {"expert_token_num_per_rank": torch.tensor([[2, 0, 1], [1, 4, -1]])},
                ValueError,
                "expert_token_num_per_rank must not be negative, got "
                "expert_token_num_per_rank[1, 2] = -1",
                call,
            ),
            "too_many": Bad(
                {"expert_token_num_per_rank": torch.full((2, 3), 2)},
                ValueError,
                "expert_token_num_per_rank must add up to the rows of tokens, 7, got 12",
                call,
            ),
        },
    )
]
