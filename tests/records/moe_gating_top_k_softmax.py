"""npu_moe_gating_top_k_softmax, token by token."""

import torch
from errors import Bad
from operators import Tested


def call(shape=(6, 8), k=2, dtype=torch.float32, finished=False, ties=False):
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(shape, generator=generator)
    if ties:
        x = x.round()
    made = {"x": x.to(dtype), "k": k}
    if finished:
        made["finished"] = torch.rand(shape[:-1], generator=generator) < 0.5
    return made


def oracle(x, finished=None, k=1):
    experts = x.shape[-1]
    tokens = x.shape[:-1].numel()
    weights, ids, slots = [], [], []
    flags = None if finished is None else finished.reshape(-1)
    for i, row in enumerate(x.float().reshape(-1, experts)):
        scores = torch.nn.functional.softmax(row, 0).tolist()
        chosen = sorted(range(experts), key=lambda e, scores=scores: (-scores[e], e))[:k]
        weights.append([scores[e] for e in chosen])
        gone = flags is not None and bool(flags[i])
        ids.append([experts] * k if gone else chosen)
        slots.append([j * tokens + i for j in range(k)])
    shape = (*x.shape[:-1], k)

    def table(rows, dtype):
        return torch.tensor(rows, dtype=dtype).reshape(shape)

    return (
        table(weights, torch.float32).to(x.dtype),
        table(ids, torch.int32),
        table(slots, torch.int32),
    )


TESTED = [
    Tested(
        name="npu_moe_gating_top_k_softmax",
        samples={
            "float32": call,
            "bfloat16": lambda: call(dtype=torch.bfloat16),
            "float16": lambda: call(dtype=torch.float16),
            "three_axes": lambda: call(shape=(2, 3, 8)),
            "finished": lambda: call(finished=True),
            "equal_scores": lambda: call(ties=True, k=5),
            "all_experts": lambda: call(k=8),
            "one_token": lambda: call(shape=(1, 8)),
            "no_tokens": lambda: call(shape=(0, 8)),
            "large": lambda: call(shape=(100, 256), k=8),
        },
        decomposed=False,
        oracle=oracle,
        node="MoeGatingTopKSoftmax",
        attributes=lambda case: {"k": case["k"]},
        tolerance=2**-20,
        why="softmax over one row and over many take their sums in different orders",
        errors={
            "dtype": Bad(
                {"x": torch.zeros(6, 8, dtype=torch.int32)},
                TypeError,
                "x must be float16 or bfloat16 or float32, got int32",
                call,
            ),
            "rank": Bad(
                {"x": torch.zeros(8)},
                ValueError,
                "x must be 2-D or 3-D (..., experts), got shape (8,)",
                call,
            ),
            "k_large": Bad(
                {"k": 9}, ValueError, "k must lie in [1, experts] = [1, 8], got 9", call
            ),
            "k_zero": Bad({"k": 0}, ValueError, "k must lie in [1, experts] = [1, 8], got 0", call),
            "finished_dtype": Bad(
                {"finished": torch.zeros(6)}, TypeError, "finished must be bool, got float32", call
            ),
            "finished_shape": Bad(
                {"finished": torch.zeros(5, dtype=torch.bool)},
                ValueError,
                "finished must be x without its last axis = (6,), got shape (5,)",
                call,
            ),
        },
    )
]
