"""npu_moe_gating_top_k_softmax and its v2, token by token."""

import math

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


def v2(renorm=0, output_softmax=False, **kwargs):
    return {**call(**kwargs), "renorm": renorm, "output_softmax": output_softmax}


def oracle_v2(x, k=1, finished=None, renorm=0, output_softmax=False):
    if renorm != 1:
        weights, ids, _ = oracle(x, finished, k)
        scores = torch.nn.functional.softmax(x.float(), -1) if output_softmax else torch.empty(0)
        return weights, ids, scores
    experts = x.shape[-1]
    weights, ids = [], []
    flags = None if finished is None else finished.reshape(-1)
    for i, row in enumerate(x.float().reshape(-1, experts).tolist()):
        chosen = sorted(range(experts), key=lambda e, row=row: (-row[e], e))[:k]
        powers = [math.exp(row[e] - row[chosen[0]]) for e in chosen]
        weights.append([power / sum(powers) for power in powers])
        ids.append([experts] * k if flags is not None and bool(flags[i]) else chosen)
    shape = (*x.shape[:-1], k)
    weights = torch.tensor(weights, dtype=torch.float32).reshape(shape).to(x.dtype)
    return weights, torch.tensor(ids, dtype=torch.int32).reshape(shape), torch.empty(0)


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
    ),
    Tested(
        name="npu_moe_gating_top_k_softmax_v2",
        samples={
            "scores": lambda: v2(output_softmax=True),
            "renorm": lambda: v2(renorm=1, k=3),
            "no_scores": v2,
            "none": lambda: v2(renorm=None, output_softmax=None),
            "renorm_gives_no_scores": lambda: v2(renorm=1, output_softmax=True),
            "bfloat16": lambda: v2(dtype=torch.bfloat16, renorm=1),
            "float16": lambda: v2(dtype=torch.float16, output_softmax=True),
            "three_axes": lambda: v2(shape=(2, 3, 8), output_softmax=True),
            "three_axes_renorm": lambda: v2(shape=(2, 3, 8), renorm=1, finished=True),
            "finished": lambda: v2(finished=True),
            "equal_scores": lambda: v2(ties=True, k=5),
            "equal_scores_renorm": lambda: v2(ties=True, k=5, renorm=1),
            "one_token": lambda: v2(shape=(1, 8)),
            "no_tokens": lambda: v2(shape=(0, 8), renorm=1),
            "large": lambda: v2(shape=(100, 256), k=8, renorm=1),
        },
        decomposed=False,
        oracle=oracle_v2,
        node="MoeGatingTopKSoftmaxV2",
        attributes=lambda case: {
            "k": case["k"],
            "renorm": case["renorm"] or 0,
            "output_softmax_result_flag": bool(case["output_softmax"]) and case["renorm"] == 0,
        },
        tolerance=2**-20,
        why="softmax over one row and over many take their sums in different orders",
        errors={
            "renorm": Bad(
                {"renorm": 2},
                ValueError,
                "renorm must be 0 (softmax, then the k largest) or 1 (the k largest, then softmax)"
                ", got 2",
                v2,
            ),
            "dtype": Bad(
                {"x": torch.zeros(6, 8, dtype=torch.int32)},
                TypeError,
                "x must be float16 or bfloat16 or float32, got int32",
                v2,
            ),
            "k": Bad({"k": 9}, ValueError, "k must lie in [1, experts] = [1, 8], got 9", v2),
            "finished_shape": Bad(
                {"finished": torch.zeros(5, dtype=torch.bool)},
                ValueError,
                "finished must be x without its last axis = (6,), got shape (5,)",
                v2,
            ),
        },
    ),
]
