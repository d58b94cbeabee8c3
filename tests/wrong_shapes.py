"""Wrong shapes for each tensor of a legal call, with the sentence that each has to bring."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call by their names; rows are those of the result."""

    m: int
    k: int
    e: int
    n: int
    rows: int
    nz: bool


def sizes_of(case):
    m, k = case["x"].shape
    e, n = case["scale"].shape
    return Sizes(m, k, e, n, case.get("output_bs") or m, case["w"].dim() == 5)


def ranks(sizes, *, but):
    """Shapes of every number of dimensions but those given, with one of them too many inside."""
    shapes = [sizes[:rank] for rank in range(len(sizes))]
    shapes += [(1, *sizes), (*sizes, 1), (1, 1, *sizes, 1)]
    return [shape for shape in shapes if len(shape) not in but]


def x_shapes(size, case):
    w = tuple(case["w"].shape)
    for wrong in ranks((size.m, size.k), but=(2,)):
        yield wrong, f"x must be 2-D (m, k), got shape {wrong}"
    for k in (0, size.k + 16, size.k + 32):
        if size.nz:
            k1 = f"k1 = ceil(k / 16), which is {-(-k // 16)} for the k of x, {k}, got shape {w}"
            yield (size.m, k), f"w must be (e, n1, k1, 16, 32) with {k1}"
        else:
            yield (size.m, k), f"w must be (e, k, n) with the k of x, which is {k}, got shape {w}"
    m = size.m + 1
    yield (m, size.k), f"row_index must be (m,) = ({m},), got shape ({size.m},)"
    empty = f"m = 0, k = {size.k}, e = {size.e}, n = {size.n}"
    yield (0, size.k), f"x and w must not be empty, got {empty}"


def w_shapes(size, case):
    shape = tuple(case["w"].shape)
    for wrong in ranks(shape, but=(3, 5)):
        form = "3-D (e, k, n) or its FRACTAL_NZ form, 5-D (e, n1, k1, 16, 32)"
        yield wrong, f"w must be {form}, got shape {wrong}"
    e = size.e + 1
    yield (e, *shape[1:]), f"group_list must be (e,) = ({e},), got shape ({size.e},)"
    empty = "x and w must not be empty, got "
    yield (0, *shape[1:]), f"{empty}m = {size.m}, k = {size.k}, e = 0, n = {size.n}"
    yield from (nz_shapes if size.nz else nd_shapes)(size, shape, empty)


def nd_shapes(size, shape, empty):
    e, k, n = shape
    for wrong in ((e, k + 1, n), (e, k - 1, n), (e, n, k)):
        if wrong[1] != k:
            yield wrong, f"w must be (e, k, n) with the k of x, which is {k}, got shape {wrong}"
    yield (e, k, n + 1), f"scale must be (e, n) = ({e}, {n + 1}), got shape ({e}, {n})"
    yield (e, k, 0), f"{empty}m = {size.m}, k = {k}, e = {e}, n = 0"


def nz_shapes(size, shape, empty):
    e, n1, k1 = shape[:3]
    for tile in ((32, 16), (16, 16), (32, 32), (16, 33), (15, 32), (0, 32), (16, 0)):
        wrong = (e, n1, k1, *tile)
        yield wrong, f"w must be (e, n1, k1, 16, 32) when 5-D, got shape {wrong}"
    for tiles in ((n1, k1 + 1), (n1, k1 - 1), (k1, n1)):
        if tiles[1] != k1:
            wrong = (e, *tiles, 16, 32)
            said = f"which is {k1} for the k of x, {size.k}, got shape {wrong}"
            yield wrong, f"w must be (e, n1, k1, 16, 32) with k1 = ceil(k / 16), {said}"
    n = 32 * (n1 + 1)
    wrong = (e, n1 + 1, k1, 16, 32)
    yield wrong, f"scale must be (e, n) = ({e}, {n}), got shape ({e}, {size.n})"
    yield (e, 0, k1, 16, 32), f"{empty}m = {size.m}, k = {size.k}, e = {e}, n = 0"


def vector_shapes(name, form):
    def shapes(size, case):
        del case
        (length,) = (getattr(size, letter) for letter in form[1:2])
        wrongs = [(length + 1,), (length - 1,), (2 * length,), *ranks((length,), but=(1,))]
        for wrong in wrongs:
            yield wrong, f"{name} must be {form} = ({length},), got shape {wrong}"

    return shapes


def matrix_shapes(name):
    def shapes(size, case):
        del case
        right = (size.e, size.n)
        wrongs = [(size.e + 1, size.n), (size.e - 1, size.n), (size.e, size.n + 1), right[::-1]]
        for wrong in [*wrongs, (size.e, size.n - 1), *ranks(right, but=(2,))]:
            if wrong != right:
                yield wrong, f"{name} must be (e, n) = {right}, got shape {wrong}"

    return shapes


def pertoken_scale_shapes(size, case):
    del case
    m = size.m
    for wrong in ((m + 1,), (m - 1,), (), (m, 1, 1), (1, m, 1)):
        yield wrong, f"pertoken_scale must be (m,) or (m, 1) = ({m},), got shape {wrong}"
    for wrong in ((m + 1, 1), (m, 2), (m, 0), (1, m + 1)):
        yield wrong, f"pertoken_scale must be (m,) or (m, 1) = ({m}, 1), got shape {wrong}"


def shared_input_shapes(size, case):
    rows, n = case["shared_input"].shape
    first = case["shared_input_offset"] or 0
    for wrong in ranks((rows, n), but=(2,)):
        yield wrong, f"shared_input must be 2-D (rows, n), got shape {wrong}"
    none = "shared_input must have at least one row (pass None for none), got shape "
    yield (0, n), f"{none}(0, {n})"
    for wrong in ((rows, n + 1), (rows, n - 1)):
        said = f"with the n of w, which is {n}, got shape {wrong}"
        yield wrong, f"shared_input must be (rows, n) {said}"
    end = "shared_input_offset + the rows of shared_input must be at most output_bs"
    long = size.rows - first + 1
    yield (long, n), f"{end} = {size.rows}, got {first} + {long}"


SHAPES = {
    name: lambda size, case, shapes=shapes: list(shapes(size, case))
    for name, shapes in {
        "x": x_shapes,
        "w": w_shapes,
        "group_list": vector_shapes("group_list", "(e,)"),
        "scale": matrix_shapes("scale"),
        "bias": matrix_shapes("bias"),
        "pertoken_scale": pertoken_scale_shapes,
        "logit": vector_shapes("logit", "(m,)"),
        "row_index": vector_shapes("row_index", "(m,)"),
        "shared_input": shared_input_shapes,
    }.items()
}
