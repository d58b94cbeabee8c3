"""Rotary position embedding: npu_rotary_mul, npu_interleave_rope, npu_apply_rotary_pos_emb."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from npu_lowering.operators.checking import (
    check_choice,
    check_devices,
    check_dtype,
    check_rank,
    check_shape,
    require,
)
from npu_lowering.operators.operator import Derivative, GENode, NodeCall, Operator

FLOATS = (torch.float16, torch.bfloat16, torch.float32)

HALF = "half"
INTERLEAVE = "interleave"
_MODES: dict[object, str] = {
    HALF: "the second half of a row turns into the first",
    INTERLEAVE: "neighbours turn into each other",
}
_NUMBERS = {0: HALF, 1: INTERLEAVE}
QUARTER = "quarter"


def rotated(x: Tensor, mode: str) -> Tensor:
    """Each pair of the last axis turned by a right angle: ``(a, b)`` becomes ``(-b, a)``."""
    if mode == QUARTER:
        half = x.shape[-1] // 2
        return torch.cat((rotated(x[..., :half], HALF), rotated(x[..., half:], HALF)), -1)
    if mode == INTERLEAVE:
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), -1)


def gathered(x: Tensor) -> Tensor:
    """The even places of the last axis, then the odd ones."""
    return torch.cat((x[..., ::2], x[..., 1::2]), -1)


def embedded(x: Tensor, cos: Tensor, sin: Tensor, turned: Tensor) -> Tensor:
    """``x * cos + turned * sin`` in the dtype of x; bfloat16 in float32 and rounded once."""
    if x.dtype != torch.bfloat16:
        return x * cos + turned * sin
    return (x.float() * cos.float() + turned.float() * sin.float()).to(x.dtype)


def _contiguous(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _check_even(name: str, x: Tensor) -> None:
    require(
        ValueError,
        x.shape[-1] % 2 == 0,
        lambda: f"{name} must be even in its last axis, got shape {tuple(x.shape)}",
    )


# npu_rotary_mul


@dataclass(frozen=True)
class RotaryMul:
    """A checked call.

    Attributes:
        x: 3-D or 4-D.
        cos: of the rank of x, each axis that of x or one.
        sin: of the shape of cos.
        mode: which elements are a pair.
        rotate: ``(d, d)``, the turn as a matrix in place of the mode, or None.
    """

    x: Tensor
    cos: Tensor
    sin: Tensor
    mode: str
    rotate: Tensor | None

    def turned(self, x: Tensor) -> Tensor:
        """X turned by a right angle."""
        if self.rotate is None:
            return rotated(x, self.mode)
        return torch.matmul(x.float(), self.rotate.float()).to(x.dtype)


def check(
    input: Tensor,  # noqa: A002 -- the schema's own name
    r1: Tensor,
    r2: Tensor,
    rotary_mode: str = HALF,
    rotate: Tensor | None = None,
) -> RotaryMul:
    """Turn pairs of elements by angles whose cosines and sines are given.

    ``input * r1 + turned(input) * r2``. float16 and float32 are computed in their own dtype, each
    product and the sum rounded; bfloat16 in float32, and rounded once, at the end.

    Args:
        input: 3-D or 4-D, float16, bfloat16 or float32, even in its last axis, d.
        r1: the cosines: of the rank of input, d in the last axis, each other axis that of input or
            one. Another float dtype is rounded to that of input first.
        r2: the sines, of the shape of r1.
        rotary_mode: ``"half"`` pairs ``i`` with ``i + d / 2``, ``"interleave"`` ``2 i`` with
            ``2 i + 1``.
        rotate: ``(d, d)``, a matrix that turns a row, in place of what the mode says:
            ``turned(input) = input @ rotate``, summed in float32 and rounded to input's dtype.

    Returns:
        Of the shape and dtype of input, contiguous.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape or the mode is wrong.

    Source: torch_npu's interface document; CANN's rotate_half kernels for the place of the
    rounding. That interleave rounds alike, and the rounding of ``input @ rotate``, are inferred.
    """
    check_choice("rotary_mode", rotary_mode, _MODES)
    check_dtype("input", input, *FLOATS)
    require(
        ValueError,
        input.dim() in (3, 4),
        lambda: f"input must be 3-D or 4-D, got shape {tuple(input.shape)}",
    )
    _check_even("input", input)
    for name, factor in (("r1", r1), ("r2", r2)):
        check_dtype(name, factor, *FLOATS)
        _check_broadcast(name, factor, input)
    check_shape("r2", r2, "of the shape of r1", r1.shape)
    if rotate is not None:
        check_dtype("rotate", rotate, *FLOATS)
        check_shape("rotate", rotate, "(d, d)", (input.shape[-1], input.shape[-1]))
    check_devices("input", {"input": input, "r1": r1, "r2": r2, "rotate": rotate})
    return RotaryMul(input, r1, r2, rotary_mode, rotate)


def _check_broadcast(name: str, factor: Tensor, x: Tensor) -> None:
    def message() -> str:
        return (
            f"{name} must have the rank of input, its last axis, and in each other axis its size "
            f"or one, where input is {tuple(x.shape)}, got shape {tuple(factor.shape)}"
        )

    require(ValueError, factor.dim() == x.dim(), message)
    require(ValueError, factor.shape[-1] == x.shape[-1], message)
    for size, expected in zip(factor.shape[:-1], x.shape[:-1]):
        require(ValueError, size == 1 or size == expected, message)


def fake(call: RotaryMul) -> Tensor:
    """The result without its values."""
    return torch.empty_like(call.x, memory_format=torch.contiguous_format)


def run(call: RotaryMul) -> Tensor:
    """The result, on any device."""
    x, cos, sin = call.x, call.cos.to(call.x.dtype), call.sin.to(call.x.dtype)
    return _contiguous(embedded(x, cos, sin, call.turned(x)))


def _derivative(
    op: Callable[..., Any],  # noqa: ARG001 -- the formula is no rotation of the same kind
    call: RotaryMul,
    grads: tuple[Any, ...],
    wanted: frozenset[str],
) -> Mapping[str, Tensor]:
    """In float32; the turn's transpose is its inverse: ``(a, b)`` becomes ``(b, -a)``."""
    (grad,) = (each.float() for each in grads)
    x, cos, sin = (each.float() for each in (call.x, call.cos, call.sin))
    through = grad * sin
    found: dict[str, Tensor] = {}
    if "input" in wanted:
        if call.rotate is None:
            back = -rotated(through, call.mode)
        else:
            back = torch.matmul(through, call.rotate.float().t())
        found["input"] = grad * cos + back
    if "r1" in wanted:
        found["r1"] = _summed(grad * x, call.cos)
    if "r2" in wanted:
        found["r2"] = _summed(grad * call.turned(x), call.sin)
    if "rotate" in wanted:
        rows = x.flatten(0, -2).t()
        found["rotate"] = torch.matmul(rows, through.flatten(0, -2))
    return found


def _summed(grad: Tensor, factor: Tensor) -> Tensor:
    """The gradient of what was broadcast."""
    axes = [axis for axis in range(grad.dim()) if factor.shape[axis] != grad.shape[axis]]
    return grad.sum(axes, keepdim=True) if axes else grad


def _arguments(node: NodeCall) -> dict[str, Any]:
    return {"input": node["x"], "r1": node["r1"], "r2": node["r2"]}


def _position_arguments(node: NodeCall) -> dict[str, Any]:
    mode = int(node.attr("mode", 0))
    return {
        "input": node["x"],
        "r1": node["cos"],
        "r2": node["sin"],
        "rotary_mode": _NUMBERS.get(mode, mode),
        "rotate": node.get("rotate"),
    }


MUL = Operator(
    name="npu_rotary_mul",
    check=check,
    returns="Tensor",
    fake=fake,
    cpu=run,
    portable=run,
    decomposition=run,
    derivative=Derivative(("input", "r1", "r2", "rotate"), _derivative),
    converter="npu_lowering.converters.rotary_mul",
    nodes=(
        GENode("RotaryMul", _arguments),
        GENode("RotaryPositionEmbedding", _position_arguments),
    ),
    summary="rotary position embedding",
    unsupported="rotary_mode quarter and interleave-half, which only Ascend 950 has",
    exactness="bit for bit in the stated order",
    source="torch_npu's interface document; CANN's rotate_half kernels",
)


# npu_interleave_rope


@dataclass(frozen=True)
class InterleaveRope:
    """A checked call.

    Attributes:
        x: ``(b, n, s, d)``.
        cos: ``(b, 1, s or 1, d)``.
        sin: the same.
    """

    x: Tensor
    cos: Tensor
    sin: Tensor


def check_interleave(x: Tensor, cos: Tensor, sin: Tensor) -> InterleaveRope:
    """Bring the even places of each row before the odd ones, and turn the halves.

    In float32, and rounded once, at the end, with ``q`` the reordered row::

        y = q * cos + concat(-q[d / 2 :], q[: d / 2]) * sin

    Args:
        x: ``(b, n, s, d)`` float16 or bfloat16, d even; 64 on a device.
        cos: ``(b, 1, s, d)`` or ``(b, 1, 1, d)``, of the dtype of x.
        sin: of the shape and dtype of cos.

    Returns:
        Of the shape and dtype of x, contiguous.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape is wrong.

    Source: torch_npu's interface document; CANN's InterleaveRope kernel for the place of the
    rounding.
    """
    check_dtype("x", x, torch.float16, torch.bfloat16)
    check_rank("x", x, 4, "(b, n, s, d)")
    _check_even("x", x)
    b, _, s, d = x.shape
    check_dtype("cos", cos, x.dtype)
    check_rank("cos", cos, 4, "(b, 1, s, d) or (b, 1, 1, d)")
    if cos.shape[2] == 1:
        check_shape("cos", cos, "(b, 1, 1, d)", (b, 1, 1, d))
    else:
        check_shape("cos", cos, "(b, 1, s, d)", (b, 1, s, d))
    check_dtype("sin", sin, x.dtype)
    check_shape("sin", sin, "of the shape of cos", cos.shape)
    check_devices("x", {"x": x, "cos": cos, "sin": sin})
    return InterleaveRope(x, cos, sin)


def fake_interleave(call: InterleaveRope) -> Tensor:
    """The result without its values."""
    return torch.empty_like(call.x, memory_format=torch.contiguous_format)


def run_interleave(call: InterleaveRope) -> Tensor:
    """The result, on any device."""
    wide = interleaved(call.x, call.cos, call.sin)
    return _contiguous(wide.to(call.x.dtype))


def interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The embedding of ``npu_interleave_rope`` in float32, not rounded yet."""
    q = gathered(x).float()
    return q * cos.float() + rotated(q, HALF) * sin.float()


def _interleave_limits(call: InterleaveRope) -> list[str]:
    d = call.x.shape[-1]
    return [] if d == 64 else [f"x must have 64 elements in its last axis, got {d}"]


def _interleave_arguments(node: NodeCall) -> dict[str, Any]:
    return {"x": node["x"], "cos": node["cos"], "sin": node["sin"]}


INTERLEAVED = Operator(
    name="npu_interleave_rope",
    check=check_interleave,
    returns="Tensor",
    fake=fake_interleave,
    cpu=run_interleave,
    portable=run_interleave,
    decomposition=run_interleave,
    nodes=(GENode("InterleaveRope", _interleave_arguments),),
    limits=_interleave_limits,
    summary="rotary position embedding of interleaved pairs, given out as halves",
    exactness="float32, rounded once to the dtype of x",
    source="torch_npu's interface document; CANN's InterleaveRope kernel",
)


# npu_apply_rotary_pos_emb

# Where each layout has its heads, and how many axes it has.
_LAYOUTS = {"BSND": (2, 4), "BSH": (2, 4), "SBND": (2, 4), "BNSD": (1, 4), "TND": (1, 3)}
_LAYOUT_CODES = {1: "BSND", 2: "SBND", 3: "BNSD", 4: "TND"}
_APPLY_MODES: dict[object, str] = {**_MODES, QUARTER: "the halves of a row turn as half rows do"}


@dataclass(frozen=True)
class ApplyRotary:
    """A checked call.

    Attributes:
        query: as the layout says; written.
        key: the same with its own number of heads; written.
        cos: of one head.
        sin: of the shape of cos.
        layout: where the heads are.
        mode: which elements are a pair.
    """

    query: Tensor
    key: Tensor
    cos: Tensor
    sin: Tensor
    layout: str
    mode: str


def check_apply(
    query: Tensor,
    key: Tensor,
    cos: Tensor,
    sin: Tensor,
    layout: str = "BSND",
    rotary_mode: str = HALF,
) -> ApplyRotary:
    """Embed positions in query and key, as ``npu_rotary_mul`` does, and write both in place.

    Eagerly query and key are written, though the schema does not say so; the results are copies,
    as it promises. In a graph of TorchAIR query and key stay as they are.

    Args:
        query: in the layout, float16, bfloat16 or float32; d is 64 or 128 on a device. Written.
        key: of the shape of query but for the number of heads, and of its dtype. Written.
        cos: of the shape of query with one head, and of its dtype.
        sin: of the shape and dtype of cos.
        layout: ``"BSND"``, ``"BNSD"`` or ``"SBND"``, 4-D, or ``"TND"``, 3-D; ``"BSH"`` is an
            older name of ``"BSND"``.
        rotary_mode: ``"half"``, or, on Ascend 950 alone, ``"interleave"`` or ``"quarter"``.

    Returns:
        Copies of query and key as they are then.

    Raises:
        TypeError: a dtype is wrong.
        ValueError: a shape, the layout or the mode is wrong.

    Source: torch_npu's interface document; CANN's ApplyRotaryPosEmb kernels for the place of the
    rounding. They round a bfloat16 half way between two away from zero; here it goes to even.
    """
    check_choice("layout", layout, dict.fromkeys(_LAYOUTS, ""))
    check_choice("rotary_mode", rotary_mode, _APPLY_MODES)
    heads, rank = _LAYOUTS[layout]
    check_dtype("query", query, *FLOATS)
    check_rank("query", query, rank, f"in layout {layout}")
    parts = 4 if rotary_mode == QUARTER else 2
    require(
        ValueError,
        query.shape[-1] % parts == 0,
        lambda: (
            f"query must be divisible by {parts} in its last axis, got shape {tuple(query.shape)}"
        ),
    )
    check_dtype("key", key, query.dtype)
    check_rank("key", key, rank, f"in layout {layout}")
    own = list(query.shape)
    own[heads] = key.shape[heads]
    check_shape("key", key, "the shape of query, its own heads aside,", own)
    one = list(query.shape)
    one[heads] = 1
    for name, factor in (("cos", cos), ("sin", sin)):
        check_dtype(name, factor, query.dtype)
        check_shape(name, factor, "the shape of query with one head", one)
    check_devices("query", {"query": query, "key": key, "cos": cos, "sin": sin})
    return ApplyRotary(query, key, cos, sin, layout, rotary_mode)


def fake_apply(call: ApplyRotary) -> tuple[Tensor, Tensor]:
    """The results without their values."""
    return (
        torch.empty_like(call.query, memory_format=torch.contiguous_format),
        torch.empty_like(call.key, memory_format=torch.contiguous_format),
    )


def run_apply(call: ApplyRotary) -> tuple[Tensor, Tensor]:
    """The results, and query and key written, on any device."""
    query, key = (
        _contiguous(embedded(x, call.cos, call.sin, rotated(x, call.mode)))
        for x in (call.query, call.key)
    )
    call.query.copy_(query)
    call.key.copy_(key)
    return query, key


def _apply_limits(call: ApplyRotary) -> list[str]:
    found = []
    d = call.query.shape[-1]
    if d not in (64, 128):
        found.append(f"query must have 64 or 128 elements in its last axis, got {d}")
    if call.mode != HALF:
        found.append(f"rotary_mode must be 'half' but on Ascend 950, got {call.mode!r}")
    if call.layout in ("SBND", "BNSD"):
        found.append(f"layout must be 'BSND' or 'TND' but on Ascend 950, got {call.layout!r}")
    return found


def _apply_arguments(node: NodeCall) -> dict[str, Any]:
    code = int(node.attr("layout", 1))
    return {
        "query": node.writable("query"),
        "key": node.writable("key"),
        "cos": node["cos"],
        "sin": node["sin"],
        "layout": _LAYOUT_CODES.get(code, code),
        "rotary_mode": str(node.attr("rotary_mode", HALF)),
    }


APPLY = Operator(
    name="npu_apply_rotary_pos_emb",
    check=check_apply,
    returns="(Tensor, Tensor)",
    fake=fake_apply,
    cpu=run_apply,
    portable=run_apply,
    nodes=(GENode("ApplyRotaryPosEmb", _apply_arguments, in_place=True),),
    limits=_apply_limits,
    writes=("query", "key"),
    summary="rotary position embedding of query and key, in place",
    exactness="bit for bit in the stated order, but for ties of bfloat16",
    source="torch_npu's interface document; CANN's ApplyRotaryPosEmb kernels",
)
