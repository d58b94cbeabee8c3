"""npu_top_k_top_p, one score at a time."""

import math

import torch
from errors import Bad
from operators import Tested


def call(batch=5, vocabulary=40, dtype=torch.float32, p=True, k=True, ties=False):
    generator = torch.Generator().manual_seed(23)
    logits = torch.randn(batch, vocabulary, generator=generator) * 3
    made = {"logits": (logits.round() if ties else logits).to(dtype)}
    if p:
        made["p"] = torch.tensor([0.9, 0.0, 1.0, 0.5, 0.25])[:batch].to(dtype)
    if k:
        made["k"] = torch.tensor([8, 5, 1, vocabulary, 20], dtype=torch.int32)[:batch]
    return made


def even():
    """Sums of exact quarters, one of which is 1 - p: that one goes."""
    p = torch.tensor([0.5, 0.25, 0.75, 1.0, 0.0])
    return {"logits": torch.zeros(5, 4), "p": p, "k": torch.full((5,), 4, dtype=torch.int32)}


def oracle(logits, p=None, k=None):
    out = torch.full(logits.shape, -math.inf, dtype=logits.dtype)
    for i, row in enumerate(logits):
        values = row.tolist()
        order = sorted(range(len(values)), key=lambda at, values=values: (values[at], at))
        if k is not None:
            least = values[order[len(values) - int(k[i])]]
            order = [at for at in order if values[at] >= least]
        total, running = sum(math.exp(values[at] - values[order[-1]]) for at in order), 0.0
        for at in order:
            running += math.exp(values[at] - values[order[-1]]) / total
            if p is None or at == order[-1] or running > float(1 - p[i]):
                out[i, at] = row[at]
    return out


TESTED = [
    Tested(
        name="npu_top_k_top_p",
        samples={
            "float32": call,
            "bfloat16": lambda: call(dtype=torch.bfloat16),
            "float16": lambda: call(dtype=torch.float16),
            "top_k": lambda: call(p=False),
            "top_p": lambda: call(k=False),
            "neither": lambda: call(p=False, k=False),
            "ties": lambda: call(ties=True),
            "even": even,
            "one_row": lambda: call(batch=1),
            "one_word": lambda: {**call(vocabulary=1, k=False), "k": torch.ones(5).int()},
            "no_rows": lambda: call(batch=0),
            "large": lambda: call(vocabulary=1500),
        },
        decomposed=False,
        oracle=oracle,
        node=None,  # TorchAIR has no converter of it, and no builder of CANN's node
        errors={
            "dtype": Bad(
                {"logits": torch.zeros(5, 40).int()},
                TypeError,
                "logits must be float16 or bfloat16 or float32, got int32",
                call,
            ),
            "rank": Bad(
                {"logits": torch.zeros(40)},
                ValueError,
                "logits must be 2-D (batch, vocabulary), got shape (40,)",
                call,
            ),
            "p_dtype": Bad(
                {"p": torch.zeros(5).half()}, TypeError, "p must be float32, got float16", call
            ),
            "p_shape": Bad(
                {"p": torch.zeros(4)}, ValueError, "p must be (batch,) = (5,), got shape (4,)", call
            ),
            "k_dtype": Bad(
                {"k": torch.ones(5).long()}, TypeError, "k must be int32, got int64", call
            ),
            "k_shape": Bad(
                {"k": torch.ones(5, 1).int()},
                ValueError,
                "k must be (batch,) = (5,), got shape (5, 1)",
                call,
            ),
        },
        value_errors={
            "k_zero": Bad(
                {"k": torch.tensor([1, 0, 1, 1, 1]).int()},
                ValueError,
                "k must lie in [1, vocabulary] = [1, 40], got k[1] = 0",
                call,
            ),
            "k_large": Bad(
                {"k": torch.tensor([1, 1, 41, 1, 1]).int()},
                ValueError,
                "k must lie in [1, vocabulary] = [1, 40], got k[2] = 41",
                call,
            ),
            "p_large": Bad(
                {"p": torch.tensor([0.5, 1.5, 0.5, 0.5, 0.5])},
                ValueError,
                "p must lie in [0, 1], got p[1] = 1.5",
                call,
            ),
            "p_nan": Bad(
                {"p": torch.tensor([0.5, 0.5, math.nan, 0.5, 0.5])},
                ValueError,
                "p must lie in [0, 1], got p[2] = nan",
                call,
            ),
        },
    )
]
