"""npu_top_k_top_p: scores of a vocabulary, all but the likeliest put to minus infinity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from npu_lowering.operators.checking import check_devices, check_dtype, check_rank, check_shape
from npu_lowering.operators.operator import Operator
from npu_lowering.operators.value_checks import are_checked


@dataclass(frozen=True)
class TopKTopP:
    """A checked call.

    Attributes:
        logits: ``(batch, vocabulary)``.
        p: ``(batch,)`` of the dtype of logits, or None.
        k: ``(batch,)`` int32, or None.
    """

    logits: Tensor
    p: Tensor | None
    k: Tensor | None


def check(logits: Tensor, p: Tensor | None = None, k: Tensor | None = None) -> TopKTopP:
    """Keep the k largest logits of each row, and of those what makes up the probability p.

    For each row, sorted upwards by a stable sort::

        logits = -inf          where less than the k-th largest
        sums   = cumsum(softmax(logits))                                  in float32
        logits = -inf          where sums <= 1 - p, but for the last

    Args:
        logits: ``(batch, vocabulary)`` float16, bfloat16 or float32.
        p: ``(batch,)`` of the dtype of logits, in ``[0, 1]``; None keeps all probability.
        k: ``(batch,)`` int32, in ``[1, vocabulary]``; None keeps all. Equals of the k-th largest
            are kept, too.

    Returns:
        The logits that are kept, minus infinity in place of the others; fresh and contiguous.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong, or a p or a k out of range.

    Source: torch_npu's interface document and op-plugin's golden, which computes ``1 - p`` in the
    dtype of logits. That a call without p or k leaves out its step is read from CANN's
    ApplyTopKTopPWithSorted.
    """
    check_dtype("logits", logits, torch.float16, torch.bfloat16, torch.float32)
    check_rank("logits", logits, 2, "(batch, vocabulary)")
    batch = logits.shape[0]
    if p is not None:
        check_dtype("p", p, logits.dtype)
        check_shape("p", p, "(batch,)", (batch,))
    if k is not None:
        check_dtype("k", k, torch.int32)
        check_shape("k", k, "(batch,)", (batch,))
    check_devices("logits", {"logits": logits, "p": p, "k": k})
    return TopKTopP(logits, p, k)


def fake(call: TopKTopP) -> Tensor:
    """The result without its values."""
    return torch.empty_like(call.logits, memory_format=torch.contiguous_format)


def run(call: TopKTopP) -> Tensor:
    """The result, on any device, after a look at p and k."""
    vocabulary = call.logits.shape[1]
    if call.k is not None:
        _check_within("k", call.k, 1, vocabulary, f"[1, vocabulary] = [1, {vocabulary}]")
    if call.p is not None:
        _check_within("p", call.p, 0, 1, "[0, 1]")
    if not call.logits.numel():
        return torch.empty_like(call.logits, memory_format=torch.contiguous_format)
    ordered, ids = torch.sort(call.logits, dim=-1, stable=True)
    infinity = float("inf")
    if call.k is not None:
        kth = ordered.gather(1, vocabulary - call.k.to(torch.int64).unsqueeze(1))
        ordered = ordered.masked_fill(ordered < kth, -infinity)
    if call.p is not None:
        sums = functional.softmax(ordered.to(torch.float32), -1).cumsum(-1)
        gone = sums <= (1 - call.p).unsqueeze(1)
        gone[:, -1] = False
        ordered = ordered.masked_fill(gone, -infinity)
    return torch.empty_like(ordered).scatter_(1, ids, ordered).contiguous()


def _check_within(name: str, values: Tensor, low: int, high: int, form: str) -> None:
    if not are_checked(values):
        return
    # Written so that a NaN lies outside.
    outside = (~((values >= low) & (values <= high))).nonzero()
    if len(outside):
        first = int(outside[0])
        raise ValueError(f"{name} must lie in {form}, got {name}[{first}] = {values[first].item()}")


OPERATOR = Operator(
    name="npu_top_k_top_p",
    check=check,
    returns="Tensor",
    fake=fake,
    cpu=run,
    portable=run,
    summary="logits, all but the k likeliest that make up a probability put to minus infinity",
    exactness="exact but for a sum of probabilities within float32's rounding of 1 - p",
    source="torch_npu's interface document; op-plugin's golden; CANN's ApplyTopKTopPWithSorted",
)
