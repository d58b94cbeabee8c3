"""Kernels of GE operators: shapes, layout, and tensors made from nothing.

Where torch gives a view, so do these: the engine copies what must not be shared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npu_lowering.offdevice.engine.call import Call, Result
from npu_lowering.offdevice.engine.graph import GraphError
from npu_lowering.offdevice.engine.kernels.table import Function, Table

KERNELS = Table()


@KERNELS.kernel("Identity")
def _same(call: Call) -> Result:
    return call["x"]


@KERNELS.kernel("TensorMove")
def _tensor_move(call: Call) -> Result:
    return call["x"].clone()


@KERNELS.kernel("Reshape")
def _reshape(call: Call) -> Result:
    if (call.attr("axis", 0), call.attr("num_axes", -1)) != (0, -1):
        raise GraphError("Reshape of a range of axes (axis, num_axes) is not computed here")
    return call["x"].reshape(call.ints("shape"))


@KERNELS.kernel("Flatten")
def _flatten(call: Call) -> Result:
    x, axis = call["x"], int(call.attr("axis", 1))
    axis = axis % (x.dim() + 1) if axis < 0 else axis
    rows = int(torch.tensor(x.shape[:axis]).prod())
    return x.reshape(rows, x.numel() // rows if rows else 0)


@KERNELS.kernel("Squeeze")
def _squeeze(call: Call) -> Result:
    x = call["x"]
    axes = [axis % x.dim() for axis in call.attr("axis", ())] if x.dim() else []
    if not axes:
        return x.squeeze()
    if any(x.shape[axis] != 1 for axis in axes):
        raise GraphError(f"the axes {axes} to squeeze must have size 1, x is {list(x.shape)}")
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes])


@KERNELS.kernel("Unsqueeze")
def _unsqueeze(call: Call) -> Result:
    x, axes = call["x"], call.attr("axes", ())
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@KERNELS.kernel("ExpandDims")
def _expand_dims(call: Call) -> Result:
    (axis,) = call.ints("axis")
    return call["x"].unsqueeze(axis)


@KERNELS.kernel("Shape")
def _shape(call: Call) -> Result:
    return torch.tensor(call["x"].shape, dtype=call.dtype("dtype", 3))


@KERNELS.kernel("Size")
def _size(call: Call) -> Result:
    return torch.tensor(call["x"].numel(), dtype=call.dtype("dtype", 3))


@KERNELS.kernel("Rank")
def _rank(call: Call) -> Result:
    return torch.tensor(call["x"].dim(), dtype=torch.int32)


@KERNELS.kernel("Transpose")
def _transpose(call: Call) -> Result:
    return call["x"].permute(call.ints("perm"))


@KERNELS.kernel("TransposeD")
def _transpose_d(call: Call) -> Result:
    return call["x"].permute(tuple(call.attr("perm")))


@KERNELS.kernel("BroadcastTo", "Expand")
def _broadcast_to(call: Call) -> Result:
    return call["x"].expand(call.ints("shape"))


@KERNELS.kernel("Tile")
def _tile(call: Call) -> Result:
    return torch.tile(call["x"], call.ints("multiples"))


@KERNELS.kernel("ReverseV2")
def _reverse_v2(call: Call) -> Result:
    return torch.flip(call["x"], call.ints("axis"))


@KERNELS.kernel("Roll")
def _roll(call: Call) -> Result:
    return torch.roll(call["x"], tuple(call.attr("shifts")), tuple(call.attr("dims", ())))


@KERNELS.kernel("Concat", "ConcatD", "ConcatV2")
def _concat(call: Call) -> Result:
    """ConcatV2 and Concat have the axis as an input, ConcatD as an attribute."""
    axis = call.ints("concat_dim")[0] if call.get("concat_dim") is not None else None
    axis = int(call.attr("concat_dim")) if axis is None else axis
    parts = call.dynamic("x")
    if len({part.dtype for part in parts}) > 1:
        raise GraphError(f"what is joined must have one dtype, got {[p.dtype for p in parts]}")
    return torch.cat(parts, axis)


@KERNELS.kernel("Pack")
def _pack(call: Call) -> Result:
    return torch.stack(call.dynamic("x"), int(call.attr("axis", 0)))


@KERNELS.kernel("Unpack")
def _unpack(call: Call) -> Result:
    return torch.unbind(call["x"], int(call.attr("axis", 0)))


def _split_axis(call: Call) -> int:
    given = call.get("split_dim")
    return int(call.attr("split_dim") if given is None else given.item())


@KERNELS.kernel("Split", "SplitD")
def _split(call: Call) -> Result:
    x, axis, parts = call["x"], _split_axis(call), int(call.attr("num_split"))
    if parts < 1 or x.shape[axis] % parts:
        raise GraphError(f"x of shape {list(x.shape)} is not {parts} equal parts on axis {axis}")
    return torch.split(x, x.shape[axis] // parts, axis)


@KERNELS.kernel("SplitV", "SplitVD")
def _split_v(call: Call) -> Result:
    x, axis = call["x"], _split_axis(call)
    sizes = (
        call.ints("size_splits")
        if call.get("size_splits") is not None
        else [int(size) for size in call.attr("size_splits")]
    )
    if -1 in sizes:  # the rest
        sizes[sizes.index(-1)] = int(x.shape[axis]) - sum(size for size in sizes if size >= 0)
    return torch.split(x, sizes, axis)


@KERNELS.kernel("Slice")
def _slice(call: Call) -> Result:
    x = call["x"]
    for axis, (start, size) in enumerate(zip(call.ints("offsets"), call.ints("size"))):
        rest = int(x.shape[axis]) - start
        if start < 0 or not -1 <= size <= rest:
            raise GraphError(
                f"offset {start} and size {size} leave axis {axis} of x, {list(x.shape)}"
            )
        x = x.narrow(axis, start, rest if size == -1 else size)
    return x


_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")


@KERNELS.kernel("StridedSlice", "StridedSliceV2")
def _strided_slice(call: Call) -> Result:
    """StridedSlice, and V2 which names the axes it means."""
    x, begin, end = call["x"], call.ints("begin"), call.ints("end")
    masks = {name: int(call.attr(name, 0)) for name in _MASKS}
    if masks["ellipsis_mask"] or masks["new_axis_mask"]:
        raise GraphError("ellipsis_mask and new_axis_mask are not computed here")
    strides = call.ints("strides") if call.get("strides") is not None else [1] * len(begin)
    axes = call.ints("axes") if call.get("axes") is not None else list(range(len(begin)))
    shrunk: list[int] = []
    for place, axis in enumerate(axes):
        axis = axis % x.dim()
        bit = 1 << place
        first = None if masks["begin_mask"] & bit else begin[place]
        last = None if masks["end_mask"] & bit else end[place]
        if masks["shrink_axis_mask"] & bit:
            x = x.narrow(axis, begin[place] % x.shape[axis], 1)
            shrunk.append(axis)
            continue
        # What slice() resolves to is clamped as numpy clamps, which GE does too.
        steps = range(*slice(first, last, strides[place]).indices(x.shape[axis]))
        if strides[place] > 0:
            x = x.narrow(
                axis, steps.start if steps else 0, steps[-1] - steps.start + 1 if steps else 0
            )
            x = x[(slice(None),) * axis + (slice(None, None, strides[place]),)]
        else:
            x = x.index_select(axis, torch.tensor(list(steps), dtype=torch.int64))
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in shrunk])


@KERNELS.kernel("Pad", "PadV3")
def _pad(call: Call) -> Result:
    x, flat = call["x"], call.ints("paddings")
    if not call.attr("paddings_contiguous", True):
        flat = [flat[place + half * x.dim()] for place in range(x.dim()) for half in (0, 1)]
    mode = str(call.attr("mode", "constant"))
    if mode == "constant":
        # GE counts axes from the first, torch from the last.
        widths = [flat[2 * axis + side] for axis in reversed(range(x.dim())) for side in (0, 1)]
        value = call.get("constant_values")
        return torch.nn.functional.pad(x, widths, "constant", 0 if value is None else value.item())
    if mode not in ("reflect", "edge"):
        raise GraphError(f"padding of mode {mode!r} is not computed here")
    for axis, last in enumerate(size - 1 for size in x.shape):
        place = torch.arange(-flat[2 * axis], last + 1 + flat[2 * axis + 1])
        inside = last - (last - place.abs()).abs() if mode == "reflect" else place.clamp(0, last)
        x = x.index_select(axis, inside)
    return x


@KERNELS.kernel("Fill")
def _fill(call: Call) -> Result:
    return call["value"].reshape(()).expand(call.ints("dims")).clone()


@KERNELS.kernel("ZerosLike")
def _zeros_like(call: Call) -> Result:
    return torch.zeros_like(call["x"], memory_format=torch.contiguous_format)


@KERNELS.kernel("OnesLike")
def _ones_like(call: Call) -> Result:
    return torch.ones_like(call["x"], memory_format=torch.contiguous_format)


@KERNELS.kernel("Eye")
def _eye(call: Call) -> Result:
    rows = int(call.attr("num_rows"))
    columns = int(call.attr("num_columns", 0)) or rows
    square = torch.eye(rows, columns, dtype=call.dtype("dtype", 0))
    return square.expand(*call.attr("batch_shape", ()), rows, columns)


@KERNELS.kernel("Range")
def _range(call: Call) -> Result:
    start = call["start"]
    return torch.arange(start.item(), call["limit"].item(), call["delta"].item(), dtype=start.dtype)


@KERNELS.kernel("LinSpace")
def _lin_space(call: Call) -> Result:
    start, (count,) = call["start"], call.ints("num")
    dtype = start.dtype if start.is_floating_point() else torch.float32
    return torch.linspace(start.item(), call["stop"].item(), count, dtype=dtype)


@KERNELS.kernel("Bitcast")
def _bitcast(call: Call) -> Result:
    """The same bytes as another type; a ratio of sizes becomes an axis, or stays in the last."""
    x, dtype = call["x"].contiguous(), call.dtype("type")
    ratio = x.element_size() / torch.empty((), dtype=dtype).element_size()
    if ratio == 1 or call.attr("keep_dim", False):
        return x.view(dtype)
    if ratio > 1:
        return x.unsqueeze(-1).view(dtype)
    if not x.dim() or x.shape[-1] != 1 / ratio:
        raise GraphError(f"the last axis of x, {list(x.shape)}, must make up one {dtype}")
    return x.view(dtype).squeeze(-1)


@KERNELS.kernel("AsStrided")
def _as_strided(call: Call) -> Result:
    return torch.as_strided(
        call["x"].contiguous(),
        call.ints("size"),
        call.ints("stride"),
        int(call["storage_offset"].item()),
    )


def _triangle(lower: bool) -> Function:
    def kernel(call: Call) -> Result:
        function = torch.tril if lower else torch.triu
        return function(call["x"], int(call.attr("diagonal", 0)))

    return kernel


@KERNELS.kernel("ViewCopy", in_place=True)
def _view_copy(call: Call) -> Result:
    """Write one strided view of dst from one of src; dst is written in place."""
    target, source = call.writable("dst"), call["src"].contiguous()
    if not target.is_contiguous():
        raise GraphError(f"dst must be contiguous, its strides are {target.stride()}")

    def view(base: Tensor, prefix: str) -> Tensor:
        offset = int(call[f"{prefix}_storage_offset"].item())
        return torch.as_strided(
            base,
            call.ints(f"{prefix}_size"),
            call.ints(f"{prefix}_stride"),
            base.storage_offset() + offset,
        )

    view(target, "dst").copy_(view(source, "src"))
    return target


for _type, _function in {
    "Tril": _triangle(lower=True),
    "Triu": _triangle(lower=False),
}.items():
    KERNELS.add(_type, _function)
