"""Rows written to where indices say: scatter_update, npu_scatter_nd_update, in place or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    check_devices,
    check_dtype,
    check_shape,
    require,
)
from npu_lowering.operators.operator import GENode, MutableTensor, NodeCall, Operator
from npu_lowering.operators.value_checks import are_checked


@dataclass(frozen=True)
class Scatter:
    """A checked call.

    Attributes:
        input: what is written, or copied and written.
        indices: where to.
        updates: what is written.
        axis: that positions count, behind the first; None for indices of whole places.
    """

    input: Tensor
    indices: Tensor
    updates: Tensor
    axis: int | None = None

    def copied(self) -> Scatter:
        """The same call on a copy."""
        copy = self.input.clone(memory_format=torch.contiguous_format)
        return Scatter(copy, self.indices, self.updates, self.axis)


def check_nd(input: Tensor, indices: Tensor, updates: Tensor) -> Scatter:  # noqa: A002 -- the schema's
    """Copy a tensor, and write rows of the copy.

    Args:
        input: at least 1-D, any dtype.
        indices: ``(..., a)`` int32 or int64, at least 2-D; its last axis counts the first a axes of
            input. Two updates for one place leave either of them there.
        updates: ``indices.shape[:-1] + input.shape[a:]``, of the dtype of input.

    Returns:
        The copy, contiguous.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong.
        IndexError: an index lies outside.

    Source: torch_npu's interface document.
    """
    return _checked_nd(input, indices, updates)


def check_nd_in_place(input: MutableTensor, indices: Tensor, updates: Tensor) -> Scatter:  # noqa: A002
    """Write rows of a tensor, in place.

    Args:
        input: at least 1-D, any dtype; written.
        indices: as of ``npu_scatter_nd_update``.
        updates: as of ``npu_scatter_nd_update``.

    Returns:
        input.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong.
        IndexError: an index lies outside.

    Source: torch_npu's interface document.
    """
    return _checked_nd(input, indices, updates)


def _checked_nd(input: Tensor, indices: Tensor, updates: Tensor) -> Scatter:  # noqa: A002
    check_dtype("indices", indices, torch.int32, torch.int64)
    require(
        ValueError,
        indices.dim() >= 2 and 1 <= indices.shape[-1] <= input.dim(),
        lambda: (
            f"indices must be at least 2-D, with 1 to {input.dim()} elements in the last axis, the "
            f"axes of input, got shape {tuple(indices.shape)}"
        ),
    )
    check_dtype("updates", updates, input.dtype)
    shape = (*indices.shape[:-1], *input.shape[indices.shape[-1] :])
    check_shape("updates", updates, "indices.shape[:-1] + input.shape[a:]", shape)
    check_devices("input", {"input": input, "indices": indices, "updates": updates})
    return Scatter(input, indices, updates)


def check_update(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Scatter:  # noqa: A002
    """Copy a cache, and write to the copy, from a position of its own in each batch.

    Args:
        input: ``(b, ...)``, at least 2-D.
        indices: ``(n,)`` int32 or int64, n at most b: updates[i] is written to input[i] from
            position indices[i] of the axis on; or ``(n, 2)``: to input[indices[i, 0]] from
            indices[i, 1] on. Two updates for one place leave either of them there.
        updates: ``(n, ...)`` of the shape of input but in the first axis and in the axis, where it
            is at most as long, and of its dtype.
        axis: of input, not the first; negative counts from the last.

    Returns:
        The copy, contiguous.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or the axis is wrong.
        IndexError: what is written would lie outside.

    Source: torch_npu's interface document. How indices of two axes are read is inferred from CANN's
    Scatter.
    """
    return _checked_update(input, indices, updates, axis)


def check_update_in_place(
    input: MutableTensor,  # noqa: A002 -- the schema's own name
    indices: Tensor,
    updates: Tensor,
    axis: int,
) -> Scatter:
    """Write to a cache in place, from a position of its own in each batch.

    Args:
        input: as of ``scatter_update``; written.
        indices: as of ``scatter_update``.
        updates: as of ``scatter_update``.
        axis: as of ``scatter_update``.

    Returns:
        input.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or the axis is wrong.
        IndexError: what is written would lie outside.

    Source: torch_npu's interface document. How indices of two axes are read is inferred from CANN's
    Scatter.
    """
    return _checked_update(input, indices, updates, axis)


def _checked_update(input: Tensor, indices: Tensor, updates: Tensor, axis: int) -> Scatter:  # noqa: A002
    rank = input.dim()
    require(
        ValueError, rank >= 2, lambda: f"input must be at least 2-D, got shape {tuple(input.shape)}"
    )
    require(
        ValueError,
        -rank < axis < rank and axis != 0,
        lambda: f"axis must be an axis of input but the first, of its {rank}, got {axis}",
    )
    axis %= rank
    check_dtype("indices", indices, torch.int32, torch.int64)
    require(
        ValueError,
        indices.dim() == 1 or (indices.dim() == 2 and indices.shape[1] == 2),
        lambda: f"indices must be (n,) or (n, 2), got shape {tuple(indices.shape)}",
    )
    check_dtype("updates", updates, input.dtype)
    n = indices.shape[0]
    sizes = [n, *input.shape[1:]]
    if updates.dim() == rank:
        sizes[axis] = updates.shape[axis]
    check_shape("updates", updates, "input's, with n first and its own axis,", sizes)
    require(
        ValueError,
        updates.shape[axis] <= input.shape[axis],
        lambda: (
            f"updates must have at most the {input.shape[axis]} elements of input in axis {axis}, "
            f"got {updates.shape[axis]}"
        ),
    )
    require(
        ValueError,
        indices.dim() == 2 or n <= input.shape[0],
        lambda: f"indices must have at most the {input.shape[0]} rows of input, got {n}",
    )
    check_devices("input", {"input": input, "indices": indices, "updates": updates})
    return Scatter(input, indices, updates, axis)


def fake(call: Scatter) -> Tensor:
    """The copy without its values."""
    return torch.empty_like(call.input, memory_format=torch.contiguous_format)


def fake_in_place(call: Scatter) -> Tensor:
    """What is written."""
    return call.input


def run(call: Scatter) -> Tensor:
    """The copy, on any device."""
    return run_in_place(call.copied())


def run_in_place(call: Scatter) -> Tensor:
    """What is written, on any device."""
    indices = call.indices.to(torch.int64)
    if call.axis is None:
        places = indices.unbind(-1)
        for axis, place in enumerate(places):
            _check_places(place, call.input.shape[axis], 1, f"axis {axis}")
        call.input.index_put_(places, call.updates)
        return call.input
    length = call.updates.shape[call.axis]
    if indices.dim() == 1:
        batch, first = torch.arange(len(indices), device=indices.device), indices
    else:
        batch, first = indices.unbind(1)
        _check_places(batch, call.input.shape[0], 1, "axis 0")
    _check_places(first, call.input.shape[call.axis], length, f"axis {call.axis}")
    place = first.unsqueeze(1) + torch.arange(length, device=first.device)
    rows = call.input.movedim(call.axis, 1)
    rows.index_put_((batch.unsqueeze(1), place), call.updates.movedim(call.axis, 1))
    return call.input


def _check_places(first: Tensor, size: int, length: int, axis: str) -> None:
    """Hold ``[first, first + length)`` to an axis."""
    if not are_checked(first):
        return
    flat = first.reshape(-1)
    outside = (flat < 0) | (flat + length > size)
    if bool(outside.any()):
        place = int(outside.nonzero()[0])
        raise IndexError(
            f"indices must lie in [0, {size - length + 1}) for {axis} of input, which has {size} "
            f"and takes {length}, got {int(flat[place])} in row {place}"
        )


def _nd_arguments(node: NodeCall) -> dict[str, Any]:
    return {
        "input": node.writable("var"),
        "indices": node["indices"],
        "updates": node["updates"],
    }


def _update_arguments(node: NodeCall) -> dict[str, Any]:
    reduce = str(node.attr("reduce"))
    if reduce != "update":
        raise NotImplementedError(f"reduce must be 'update', got {reduce!r}")
    return {**_nd_arguments(node), "axis": int(node.attr("axis", 0))}


_SOURCE = "torch_npu's interface document"

ND = Operator(
    name="npu_scatter_nd_update",
    check=check_nd,
    returns="Tensor",
    fake=fake,
    cpu=run,
    portable=run,
    summary="a copy with rows written where indices say",
    exactness="exact",
    source=_SOURCE,
)

ND_IN_PLACE = Operator(
    name="npu_scatter_nd_update_",
    check=check_nd_in_place,
    returns="Tensor(a!)",
    fake=fake_in_place,
    cpu=run_in_place,
    portable=run_in_place,
    nodes=(GENode("ScatterNdUpdate", _nd_arguments, in_place=True),),
    summary="rows written where indices say, in place",
    exactness="exact",
    source=_SOURCE,
)

UPDATE = Operator(
    name="scatter_update",
    check=check_update,
    returns="Tensor",
    fake=fake,
    cpu=run,
    portable=run,
    summary="a copy of a cache, written from a position in each batch on",
    exactness="exact",
    source=_SOURCE,
)

UPDATE_IN_PLACE = Operator(
    name="scatter_update_",
    check=check_update_in_place,
    returns="Tensor(a!)",
    fake=fake_in_place,
    cpu=run_in_place,
    portable=run_in_place,
    nodes=(GENode("Scatter", _update_arguments, in_place=True),),
    summary="a cache written from a position in each batch on, in place",
    exactness="exact",
    source=_SOURCE,
)
