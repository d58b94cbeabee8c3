"""npu_moe_token_permute and npu_moe_token_unpermute: rows to their experts, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    Size,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    require,
)
from npu_lowering.operators.operator import Derivative, Operator
from npu_lowering.operators.value_checks import are_checked

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Permute:
    """A checked call.

    Attributes:
        tokens: ``(tokens, h)``.
        indices: ``(tokens,)`` or ``(tokens, k)``, the expert of each slot.
        k: slots of a token.
        rows: how many sorted slots get a row.
    """

    tokens: Tensor
    indices: Tensor
    k: Size
    rows: Size


def check(
    tokens: Tensor, indices: Tensor, num_out_tokens: int | None = None, padded_mode: bool = False
) -> Permute:
    """Copy the rows of tokens, one for each expert a token goes to, expert after expert.

    Args:
        tokens: ``(tokens, h)`` float16, bfloat16, float32 or int8.
        indices: ``(tokens,)`` or ``(tokens, k)`` int32 or int64, the experts of each token.
        num_out_tokens: rows that are given out; None and 0 give all, a negative number leaves out
            so many at the end.
        padded_mode: False.

    Returns:
        The rows, and for each slot ``token * k + i`` the row it went to, int32 ``(tokens * k,)``.
        Slots of one expert keep their order. A slot whose row is not given out has its place all
        the same.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong, or num_out_tokens leaves out more than there are.
        NotImplementedError: padded_mode is True, which no device has either.

    Source: torch_npu's Meta function, op-plugin's golden, and CANN's MoeTokenPermute for the second
    result.
    """
    _refuse_padding(padded_mode)
    check_dtype("tokens", tokens, *FLOATS, torch.int8)
    check_rank("tokens", tokens, 2, "(tokens, h)")
    check_dtype("indices", indices, torch.int32, torch.int64)
    require(
        ValueError,
        indices.dim() in (1, 2),
        lambda: f"indices must be (tokens,) or (tokens, k), got shape {tuple(indices.shape)}",
    )
    require(
        ValueError,
        indices.shape[0] == tokens.shape[0],
        lambda: (
            f"indices must have a row for each of the {tokens.shape[0]} tokens, "
            f"got shape {tuple(indices.shape)}"
        ),
    )
    k = indices.shape[1] if indices.dim() == 2 else 1
    require(ValueError, k >= 1, lambda: f"indices must have k >= 1, got {tuple(indices.shape)}")
    slots, asked = tokens.shape[0] * k, num_out_tokens or 0
    require(
        ValueError,
        slots + min(asked, 0) >= 0,
        lambda: f"num_out_tokens must be >= -tokens * k = {-slots}, got {asked}",
    )
    check_devices("tokens", {"tokens": tokens, "indices": indices})
    rows = torch.sym_min(asked, slots) if asked > 0 else slots + asked
    return Permute(tokens, indices, k, rows)


def _refuse_padding(padded_mode: bool) -> None:
    if padded_mode:
        raise NotImplementedError("padded_mode must be False, got True; no device has it either")


def fake(call: Permute) -> tuple[Tensor, Tensor]:
    """The results without their values."""
    new = call.tokens.new_empty
    slots = call.tokens.shape[0] * call.k
    return new((call.rows, call.tokens.shape[1])), new(slots, dtype=torch.int32)


def run(call: Permute) -> tuple[Tensor, Tensor]:
    """The results, on any device."""
    slots, place = _sorted(call)
    return call.tokens[slots[: call.rows] // call.k], place.to(torch.int32)


def _sorted(call: Permute) -> tuple[Tensor, Tensor]:
    """The slot at each place, and the place of each slot."""
    slots = torch.argsort(call.indices.reshape(-1), stable=True)
    place = torch.arange(slots.shape[0], dtype=slots.dtype, device=slots.device)
    return slots, torch.zeros_like(slots).index_copy(0, slots, place)


def _backward(
    op: Any,  # noqa: ARG001 -- a formula's signature
    call: Permute,
    grads: tuple[Any, ...],
    wanted: frozenset[str],
) -> Mapping[str, Tensor]:
    """A token's gradient is the sum of those of its rows, in float32 and in ascending slots."""
    grad = grads[0]
    if grad is None:
        return {name: torch.zeros_like(call.tokens) for name in wanted}
    _, place = _sorted(call)
    given = _rows_at(grad, place).reshape(-1, call.k, grad.shape[1])
    return dict.fromkeys(wanted, given.sum(1))


def _rows_at(rows: Tensor, place: Tensor) -> Tensor:
    """float32 rows at places; zeros for places past the last."""
    one_more = torch.nn.functional.pad(rows.to(torch.float32), (0, 0, 0, 1))
    return one_more[place.to(torch.int64).clamp(max=rows.shape[0])]


OPERATOR = Operator(
    name="npu_moe_token_permute",
    check=check,
    returns="(Tensor, Tensor)",
    fake=fake,
    cpu=run,
    portable=run,
    derivative=Derivative(inputs=("tokens",), backward=_backward),
    summary="the rows of tokens in the order of their experts, differentiable",
    unsupported="padded_mode",
    exactness="exact; a stable order; gradients float32, rounded once",
    source="torch_npu's Meta function; op-plugin's golden; CANN's MoeTokenPermute",
)


@dataclass(frozen=True)
class Unpermute:
    """A checked call.

    Attributes:
        rows: ``(rows, h)``.
        place: int32 ``(tokens * k,)``, the row of each slot.
        probs: ``(tokens, k)``, or None.
        k: slots of a token.
    """

    rows: Tensor
    place: Tensor
    probs: Tensor | None
    k: Size


def check_unpermute(
    permuted_tokens: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> Unpermute:
    """Add up the rows of each token, weighed; what ``npu_moe_token_permute`` took apart.

    In float32, in ascending slots, and rounded once, at the end::

        out[i] = sum over j of permuted_tokens[sorted_indices[i * k + j]] * probs[i, j]

    Args:
        permuted_tokens: ``(rows, h)`` float16, bfloat16 or float32.
        sorted_indices: int32 ``(tokens * k,)``, the row of each slot, as ``npu_moe_token_permute``
            gives it; a row past the last was left out and counts as zeros.
        probs: ``(tokens, k)`` float16, bfloat16 or float32. None for ones, of one slot a token.
            The row of a zero is not looked at.
        padded_mode: False.
        restore_shape: for padded_mode, so it changes nothing.

    Returns:
        ``(tokens, h)`` of the dtype of permuted_tokens.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong.
        IndexError: a sorted_indices is negative.
        NotImplementedError: padded_mode is True, which no device has either.

    Source: torch_npu's Meta function, op-plugin's golden, and CANN's MoeTokenUnpermute, for the
    order of adds, the rows left out and those of a zero.
    """
    del restore_shape
    _refuse_padding(padded_mode)
    check_dtype("permuted_tokens", permuted_tokens, *FLOATS)
    check_rank("permuted_tokens", permuted_tokens, 2, "(rows, h)")
    check_dtype("sorted_indices", sorted_indices, torch.int32)
    check_rank("sorted_indices", sorted_indices, 1, "(tokens * k,)")
    k: Size = 1
    if probs is not None:
        check_dtype("probs", probs, *FLOATS)
        check_rank("probs", probs, 2, "(tokens, k)")
        k = probs.shape[1]
        check_shape("sorted_indices", sorted_indices, "(tokens * k,)", (probs.shape[0] * k,))
    check_devices(
        "permuted_tokens",
        {"permuted_tokens": permuted_tokens, "sorted_indices": sorted_indices, "probs": probs},
    )
    return Unpermute(permuted_tokens, sorted_indices, probs, k)


def fake_unpermute(call: Unpermute) -> Tensor:
    """The result without its values."""
    tokens = call.place.shape[0] if call.probs is None else call.probs.shape[0]
    return call.rows.new_empty((tokens, call.rows.shape[1]))


def _check_places(place: Tensor) -> None:
    if not are_checked(place):
        return
    negative = (place < 0).nonzero()
    if len(negative):
        first = int(negative[0])
        raise IndexError(
            "sorted_indices must not be negative, got "
            f"sorted_indices[{first}] = {int(place[first])}"
        )


def run_unpermute(call: Unpermute) -> Tensor:
    """The result, on any device, with k adds for all tokens at once."""
    _check_places(call.place)
    if call.probs is None:
        return _rows_at(call.rows, call.place).to(call.rows.dtype)
    tokens = call.probs.shape[0]
    place, probs = call.place.reshape(tokens, call.k), call.probs.to(torch.float32)
    shape = (tokens, call.rows.shape[1])
    out = torch.zeros(shape, dtype=torch.float32, device=call.rows.device)
    for j in range(call.k):
        weight = probs[:, j].unsqueeze(1)
        out = out + torch.where(weight == 0, 0.0, _rows_at(call.rows, place[:, j]) * weight)
    return out.to(call.rows.dtype)


def _backward_unpermute(
    op: Any,  # noqa: ARG001 -- a formula's signature
    call: Unpermute,
    grads: tuple[Any, ...],
    wanted: frozenset[str],
) -> Mapping[str, Tensor]:
    """In float32, of the product rule; a row left out gets and gives nothing."""
    (grad,) = grads
    of_slot = grad.to(torch.float32).unsqueeze(1).expand(-1, call.k, -1)
    rows, h = call.rows.shape
    found = {}
    if "permuted_tokens" in wanted:
        weighed = of_slot
        if call.probs is not None:
            weighed = of_slot * call.probs.to(torch.float32).unsqueeze(-1)
        place = call.place.to(torch.int64).clamp(max=rows)
        total = weighed.new_zeros((rows + 1, h)).index_add(0, place, weighed.reshape(-1, h))
        found["permuted_tokens"] = total[:rows]
    if "probs" in wanted:
        given = _rows_at(call.rows, call.place).reshape(-1, call.k, h)
        found["probs"] = (given * of_slot).sum(-1)
    return found


UNPERMUTE = Operator(
    name="npu_moe_token_unpermute",
    check=check_unpermute,
    returns="Tensor",
    fake=fake_unpermute,
    cpu=run_unpermute,
    portable=run_unpermute,
    derivative=Derivative(inputs=("permuted_tokens", "probs"), backward=_backward_unpermute),
    summary="the rows of each token weighed and added up, differentiable",
    unsupported="padded_mode",
    exactness="float32, added in ascending slots, rounded once; gradients the same",
    source="torch_npu's Meta function; op-plugin's golden; CANN's MoeTokenUnpermute",
)
