"""Kernels of GE operators: gathering, scattering, choosing, ordering."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_lowering.offdevice.engine.call import Call, Result
from npu_lowering.offdevice.engine.graph import GraphError
from npu_lowering.offdevice.engine.kernels.table import Function, Table

KERNELS = Table()


def _long(indices: Tensor) -> Tensor:
    if indices.dtype not in (torch.int32, torch.int64):
        raise GraphError(f"indices must be int32 or int64, got {indices.dtype}")
    return indices.to(torch.int64)


def _take(x: Tensor, indices: Tensor, axis: int, batch_dims: int, negative: bool) -> Tensor:
    """Rows of x along axis; leading batch_dims axes are shared with indices."""
    rows = _long(indices)
    axis = axis % x.dim() if x.dim() else 0
    if not negative and rows.numel() and int(rows.min()) < 0:
        raise GraphError("a negative index needs negative_index_support")
    rows = torch.where(rows < 0, rows + x.shape[axis], rows)
    if not batch_dims:
        shape = (*x.shape[:axis], *rows.shape, *x.shape[axis + 1 :])
        return x.index_select(axis, rows.reshape(-1)).reshape(shape)
    shared = x.shape[:batch_dims]
    flat = x.reshape(-1, *x.shape[batch_dims:])
    each = rows.reshape(flat.shape[0], *rows.shape[batch_dims:])
    taken = [
        _take(part, index, axis - batch_dims, 0, negative=True) for part, index in zip(flat, each)
    ]
    return torch.stack(taken).reshape(*shared, *taken[0].shape)


@KERNELS.kernel("GatherV2")
def _gather_v2(call: Call) -> Result:
    (axis,) = call.ints("axis")
    negative = bool(call.attr("negative_index_support", False))
    return _take(call["x"], call["indices"], axis, int(call.attr("batch_dims", 0)), negative)


@KERNELS.kernel("Gather")
def _gather(call: Call) -> Result:
    batch_dims = int(call.attr("batch_dims", 0))
    negative = bool(call.attr("negative_index_support", False))
    return _take(call["x"], call["indices"], batch_dims, batch_dims, negative)


@KERNELS.kernel("GatherElements")
def _gather_elements(call: Call) -> Result:
    return torch.gather(call["x"], int(call.attr("dim", 0)), _long(call["index"]))


def _nd(indices: Tensor) -> tuple[Tensor, ...]:
    """The last axis of indices counts the leading axes of what they index."""
    return _long(indices).unbind(-1)


@KERNELS.kernel("GatherNd")
def _gather_nd(call: Call) -> Result:
    return call["x"][_nd(call["indices"])]


@KERNELS.kernel("IndexByTensor")
def _index_by_tensor(call: Call) -> Result:
    mask, given = call.attr("indices_mask", ()), iter(call.dynamic("indices"))
    where = tuple(next(given) if used else slice(None) for used in mask)
    return call["x"][where]


@KERNELS.kernel("ScatterElements")
def _scatter_elements(call: Call) -> Result:
    data, axis = call["data"], int(call.attr("axis", 0))
    indices, updates = _long(call["indices"]), call["updates"]
    reduction = str(call.attr("reduction", "none"))
    if reduction == "none":
        return data.scatter(axis, indices, updates)
    if reduction == "add":
        return data.scatter_add(axis, indices, updates)
    names = {"mul": "prod", "max": "amax", "min": "amin", "amax": "amax", "amin": "amin"}
    if reduction not in names:
        raise GraphError(f"a reduction of {reduction!r} is not computed here")
    return data.scatter_reduce(axis, indices, updates, names[reduction])


@KERNELS.kernel("InplaceIndexAdd", in_place=True)
def _inplace_index_add(call: Call) -> Result:
    target, alpha = call.writable("var"), call.get("alpha")
    factor = 1 if alpha is None else alpha.item()
    axis, indices = int(call.attr("axis")), call["indices"].reshape(-1)
    return target.index_add_(axis, indices, call["updates"], alpha=factor)


def _scatter_nd(accumulate: bool, name: str) -> Function:
    def kernel(call: Call) -> Result:
        target = call.writable(name) if name == "var" else call[name].clone()
        return target.index_put_(_nd(call["indices"]), call["updates"], accumulate)

    return kernel


def _scatter_rows(accumulate: bool) -> Function:
    """ScatterUpdate, ScatterAdd: an index stands for a row, whatever the shape of indices."""

    def kernel(call: Call) -> Result:
        rows = _long(call["indices"])
        return call.writable("var").index_put_((rows,), call["updates"], accumulate)

    return kernel


@KERNELS.kernel("Assign", in_place=True)
def _assign(call: Call) -> Result:
    value = call["value"]
    target = call.writable("ref")
    if call.attr("validate_shape", True) and target.shape != value.shape:
        raise GraphError(f"ref is {list(target.shape)}, value is {list(value.shape)}")
    return target.copy_(value)


def _select(names: tuple[str, str]) -> Function:
    def kernel(call: Call) -> Result:
        condition = call["condition"].to(torch.bool)
        return torch.where(condition, call[names[0]], call[names[1]])

    return kernel


@KERNELS.kernel("MaskedFill")
def _masked_fill(call: Call) -> Result:
    x, mask = torch.broadcast_tensors(call["x"], call["mask"].to(torch.bool))
    return torch.masked_fill(x, mask, call["value"].reshape(()))


@KERNELS.kernel("MaskedSelect")
def _masked_select(call: Call) -> Result:
    return torch.masked_select(call["x"], call["mask"].to(torch.bool))


@KERNELS.kernel("Where")
def _where(call: Call) -> Result:
    return torch.nonzero(call["x"])


@KERNELS.kernel("NonZero")
def _non_zero(call: Call) -> Result:
    found = torch.nonzero(call["x"]).to(call.dtype("dtype", 9))
    return found.t() if call.attr("transpose", False) else found


@KERNELS.kernel("Sort")
def _sort(call: Call) -> Result:
    values, indices = torch.sort(
        call["x"],
        dim=int(call.attr("axis", -1)),
        descending=bool(call.attr("descending", False)),
        stable=bool(call.attr("stable", False)),
    )
    return values, indices.to(torch.int32)


@KERNELS.kernel("TopK", "TopKV2")
def _top_k(call: Call) -> Result:
    (k,) = call.ints("k")
    values, indices = torch.topk(
        call["x"],
        k,
        dim=int(call.attr("dim", -1)),
        largest=bool(call.attr("largest", True)),
        sorted=bool(call.attr("sorted", True)),
    )
    return values, indices.to(torch.int32)


@KERNELS.kernel("SearchSorted")
def _search_sorted(call: Call) -> Result:
    if call.get("sorter") is not None:
        raise GraphError("a sorter is not taken here")
    found = torch.searchsorted(
        call["sorted_sequence"], call["values"], right=bool(call.attr("right", False))
    )
    return found.to(call.dtype("dtype", 9))


@KERNELS.kernel("OneHot")
def _one_hot(call: Call) -> Result:
    x, (depth,) = call["x"], call.ints("depth")
    axis = int(call.attr("axis", -1))
    hot = _long(x).unsqueeze(axis) == torch.arange(depth).reshape(
        [depth if place == (axis % (x.dim() + 1)) else 1 for place in range(x.dim() + 1)]
    )
    return torch.where(hot, call["on_value"].reshape(()), call["off_value"].reshape(()))


@KERNELS.kernel("Bincount")
def _bincount(call: Call) -> Result:
    weights, size = call["weights"], int(call["size"].item())
    array = _long(call["array"]).reshape(-1)
    array_in, kept = array[array < size], array < size
    totals = torch.zeros(size, dtype=weights.dtype)
    each = (
        weights.reshape(-1)[kept]
        if weights.numel()
        else torch.ones_like(array_in, dtype=totals.dtype)
    )
    return totals.index_add_(0, array_in, each)


@KERNELS.kernel("Histogram")
def _histogram(call: Call) -> Result:
    counts = torch.histc(
        call["x"].to(torch.float32),
        int(call.attr("bins", 100)),
        float(call.attr("min", 0.0)),
        float(call.attr("max", 0.0)),
    )
    return counts.to(call.node.outputs[0].dtype or torch.float32)


@KERNELS.kernel("RepeatInterleave")
def _repeat_interleave(call: Call) -> Result:
    axis = int(call.attr("axis", 1000))
    repeats = _long(call["repeats"]).reshape(-1)
    x = call["x"].reshape(-1) if axis == 1000 else call["x"]  # 1000 is GE's way to say none
    repeats = repeats.expand(x.shape[0 if axis == 1000 else axis])
    return torch.repeat_interleave(x, repeats, dim=0 if axis == 1000 else axis)


for _type, _function in {
    "Select": _select(("x1", "x2")),
    "SelectV2": _select(("then", "else")),
    "TensorScatterUpdate": _scatter_nd(accumulate=False, name="x"),
}.items():
    KERNELS.add(_type, _function)
KERNELS.add("ScatterAdd", _scatter_rows(accumulate=True), in_place=True)
KERNELS.add("ScatterNdAdd", _scatter_nd(accumulate=True, name="var"), in_place=True)
KERNELS.add("ScatterUpdate", _scatter_rows(accumulate=False), in_place=True)
