"""The scatters, one place after another."""

import torch
from errors import Bad
from operators import Tested


def numbers(shape, dtype=torch.float32, seed=0):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 20
    return made.to(dtype)


def call_nd(shape=(4, 5, 6), places=((0, 1), (3, 4), (2, 0)), dtype=torch.float32, **kwargs):
    indices = torch.tensor(places)
    updates = numbers((*indices.shape[:-1], *shape[indices.shape[-1] :]), dtype, 1)
    made = {"input": numbers(shape, dtype), "indices": indices, "updates": updates}
    return {**made, **kwargs}


def int32(made):
    return {**made, "indices": made["indices"].int()}


def oracle_nd(input, indices, updates):  # noqa: A002
    out = input.clone()
    a = indices.shape[-1]
    rows = updates.reshape(-1, *input.shape[a:])
    for place, row in zip(indices.reshape(-1, a).tolist(), rows):
        out[tuple(place)] = row
    return out


def call_update(
    shape=(3, 2, 8, 4), first=(1, 0, 6), length=2, axis=-2, dtype=torch.bfloat16, **kwargs
):
    indices = torch.tensor(first)
    sizes = [len(first), *shape[1:]]
    sizes[axis] = length
    made = {"input": numbers(shape, dtype), "indices": indices}
    return {**made, "updates": numbers(sizes, dtype, 1), "axis": axis, **kwargs}


def oracle_update(input, indices, updates, axis):  # noqa: A002
    out = input.clone()
    axis %= out.dim()
    for i, row in enumerate(updates):
        batch, first = (i, int(indices[i])) if indices.dim() == 1 else indices[i].tolist()
        for offset in range(updates.shape[axis]):
            out[batch].select(axis - 1, first + offset)[...] = row.select(axis - 1, offset)
    return out


def twice(oracle):
    """The result is what was written."""

    def both(**case):
        out = oracle(**case)
        return out, out

    return both


ND_SAMPLES = {
    "float32": call_nd,
    "bfloat16": lambda: call_nd(dtype=torch.bfloat16),
    "int8": lambda: call_nd(dtype=torch.int8),
    "int32_indices": lambda: int32(call_nd()),
    "rows": lambda: call_nd(places=((2,), (0,))),
    "elements": lambda: call_nd(places=((2, 1, 0), (0, 0, 5))),
    "indices_of_three_axes": lambda: call_nd(places=(((2,), (0,)), ((1,), (3,)))),
    "one_place": lambda: call_nd((1, 4), ((0,),)),
    "no_place": lambda: {
        **call_nd(),
        "indices": torch.zeros(0, 1).long(),
        "updates": torch.zeros(0, 5, 6),
    },
    "large": lambda: call_nd((512, 64), tuple((i,) for i in range(0, 512, 3))),
}
UPDATE_SAMPLES = {
    "bfloat16": call_update,
    "float32": lambda: call_update(dtype=torch.float32),
    "int8": lambda: call_update(dtype=torch.int8),
    "int32_indices": lambda: int32(call_update()),
    "axis_one": lambda: call_update((3, 8, 4), axis=1),
    "last_axis": lambda: call_update((3, 8), axis=1),
    "fewer_batches": lambda: call_update(first=(3,)),
    "pairs": lambda: call_update(first=((2, 1), (0, 0), (2, 5))),
    "one": lambda: call_update((1, 1, 4, 2), (2,), 1),
    "large": lambda: call_update((8, 4, 128, 64), tuple(range(8)), 1),
}


def nd_errors():
    return {
        "indices_rank": Bad(
            {"indices": torch.zeros(3).long()},
            ValueError,
            "indices must be at least 2-D, with 1 to 3 elements in the last axis, the axes of "
            "input, got shape (3,)",
            call_nd,
        ),
        "indices_dtype": Bad(
            {"indices": torch.zeros(3, 2)},
            TypeError,
            "indices must be int32 or int64, got float32",
            call_nd,
        ),
        "updates_shape": Bad(
            {"updates": torch.zeros(3, 5)},
            ValueError,
            "updates must be indices.shape[:-1] + input.shape[a:] = (3, 6), got shape (3, 5)",
            call_nd,
        ),
        "updates_dtype": Bad(
            {"updates": torch.zeros(3, 6).half()},
            TypeError,
            "updates must be float32, got float16",
            call_nd,
        ),
    }


def update_errors():
    return {
        "axis": Bad(
            {"axis": 0},
            ValueError,
            "axis must be an axis of input but the first, of its 4, got 0",
            call_update,
        ),
        "indices_shape": Bad(
            {"indices": torch.zeros(3, 3).long()},
            ValueError,
            "indices must be (n,) or (n, 2), got shape (3, 3)",
            call_update,
        ),
        "updates_shape": Bad(
            {"updates": torch.zeros(2, 2, 2, 4).bfloat16()},
            ValueError,
            "updates must be input's, with n first and its own axis, = (3, 2, 2, 4), "
            "got shape (2, 2, 2, 4)",
            call_update,
        ),
        "updates_long": Bad(
            {},
            ValueError,
            "updates must have at most the 8 elements of input in axis 2, got 9",
            lambda: call_update(length=9),
        ),
        "indices_long": Bad(
            {},
            ValueError,
            "indices must have at most the 3 rows of input, got 4",
            lambda: call_update(first=(1, 2, 3, 4)),
        ),
    }


ND_BEYOND = {
    "beyond": Bad(
        {"indices": torch.tensor([[0, 1], [1, 5], [2, 2]])},
        IndexError,
        "indices must lie in [0, 5) for axis 1 of input, which has 5 and takes 1, got 5 in row 1",
        call_nd,
    ),
    "negative": Bad(
        {"indices": torch.tensor([[-1, 1], [1, 3], [2, 2]])},
        IndexError,
        "indices must lie in [0, 4) for axis 0 of input, which has 4 and takes 1, got -1 in row 0",
        call_nd,
    ),
}
UPDATE_BEYOND = {
    "beyond": Bad(
        {"indices": torch.tensor([0, 7, 0])},
        IndexError,
        "indices must lie in [0, 7) for axis 2 of input, which has 8 and takes 2, got 7 in row 1",
        call_update,
    ),
    "batch": Bad(
        {"indices": torch.tensor([[0, 1], [3, 1], [1, 1]])},
        IndexError,
        "indices must lie in [0, 3) for axis 0 of input, which has 3 and takes 1, got 3 in row 1",
        call_update,
    ),
}

TESTED = [
    Tested(
        name="npu_scatter_nd_update",
        samples=ND_SAMPLES,
        oracle=oracle_nd,
        node="ScatterNdUpdate",
        decomposed=False,
        errors=nd_errors(),
        value_errors=ND_BEYOND,
    ),
    Tested(
        name="npu_scatter_nd_update_",
        samples=ND_SAMPLES,
        oracle=twice(oracle_nd),
        node="ScatterNdUpdate",
        decomposed=False,
        written=("input",),
        errors=nd_errors(),
        value_errors=ND_BEYOND,
    ),
    Tested(
        name="scatter_update",
        samples=UPDATE_SAMPLES,
        oracle=oracle_update,
        node="Scatter",
        decomposed=False,
        errors=update_errors(),
        value_errors=UPDATE_BEYOND,
    ),
    Tested(
        name="scatter_update_",
        samples=UPDATE_SAMPLES,
        oracle=twice(oracle_update),
        node="Scatter",
        decomposed=False,
        written=("input",),
        errors=update_errors(),
        value_errors=UPDATE_BEYOND,
    ),
]
