"""The 5-D weight form, its way back, and the format cast."""

import pytest
import torch
from oracle import logical_weight

from npu_lowering import from_fractal_nz, npu_format_cast, to_fractal_nz


def weight(e, k, n):
    return torch.randint(
        -128, 128, (e, k, n), dtype=torch.int8, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize(("k", "n"), [(16, 32), (64, 96), (41, 96), (1, 1), (33, 70)])
def test_there_and_back(k, n):
    w = weight(3, k, n)
    w5 = to_fractal_nz(w)
    assert w5.shape == (3, -(-n // 32), -(-k // 16), 16, 32)
    assert w5.is_contiguous()
    assert torch.equal(logical_weight(w5, k)[:, :, :n], w)
    back = from_fractal_nz(w5, k)
    assert back.is_contiguous()
    assert torch.equal(back[:, :, :n], w)
    assert not back[:, :, n:].any(), "padding of n is zeros"
    assert not from_fractal_nz(w5)[:, k:].any(), "padding of k is zeros"


def test_definition():
    """``w5[e, a, b, i, j] == w[e, 16*b + i, 32*a + j]``."""
    w = weight(2, 48, 64)
    w5 = to_fractal_nz(w)
    for e, a, b, i, j in ((0, 0, 0, 0, 0), (1, 1, 2, 15, 31), (0, 1, 0, 3, 7), (1, 0, 2, 9, 30)):
        assert w5[e, a, b, i, j] == w[e, 16 * b + i, 32 * a + j]


@pytest.mark.parametrize(
    ("function", "args", "error", "message"),
    [
        (to_fractal_nz, (torch.zeros(2, 3, 4),), TypeError, "w must be int8, got torch.float32"),
        (
            to_fractal_nz,
            (weight(2, 3, 4)[0],),
            ValueError,
            r"w must be 3-D \(e, k, n\), got shape \(3, 4\)",
        ),
        (
            from_fractal_nz,
            (weight(2, 3, 4),),
            ValueError,
            r"w5 must be 5-D \(e, n1, k1, 16, 32\), got shape \(2, 3, 4\)",
        ),
        *(
            (
                from_fractal_nz,
                (torch.zeros(2, 1, 1, *tile, dtype=torch.int8),),
                ValueError,
                rf"w5 must be 5-D \(e, n1, k1, 16, 32\), got shape \(2, 1, 1, {tile[0]}, {tile[1]}",
            )
            for tile in ((16, 16), (32, 32))
        ),
        (
            from_fractal_nz,
            (torch.zeros(2, 1, 1, 16, 32),),
            TypeError,
            "w5 must be int8, got torch.float32; other widths have other tiles",
        ),
        (
            from_fractal_nz,
            (to_fractal_nz(weight(2, 32, 32)), 16),
            ValueError,
            r"k must lie in \(16, 32\] for w5 of shape \(2, 1, 2, 16, 32\), got 16",
        ),
        (
            from_fractal_nz,
            (to_fractal_nz(weight(2, 32, 32)), 33),
            ValueError,
            r"k must lie in \(16, 32\]",
        ),
        (npu_format_cast, (weight(2, 3, 4), 5), ValueError, r"acl_format must be -1 \(UNDEFINED\)"),
        (
            npu_format_cast,
            (torch.zeros(3), 29),
            ValueError,
            r"input must be at least 2-D for FRACTAL_NZ, got shape \(3,\)",
        ),
    ],
)
def test_errors(function, args, error, message):
    with pytest.raises(error, match="^" + message):
        function(*args)


def test_format_cast_from_another_dtype_is_refused():
    cast, name = torch.ops.npu.npu_format_cast, "input_dtype"
    if name not in [argument.name for argument in cast.default._schema.arguments]:
        pytest.skip(f"npu_format_cast of this torch_npu has no {name}")
    with pytest.raises(NotImplementedError, match=f"{name} must be None on CPU, got 1"):
        cast(torch.zeros(2, 2, dtype=torch.int8), 29, **{name: 1})


@pytest.mark.parametrize("acl_format", [2, 29])
def test_format_cast_keeps_the_tensor(acl_format):
    w = weight(2, 8, 6).transpose(1, 2)
    cast = npu_format_cast(w, acl_format)
    assert torch.equal(cast, w)
    assert cast.stride() == w.stride()  # k contiguous, as a checkpoint has it
    assert cast.data_ptr() != w.data_ptr()
    assert npu_format_cast(w.to("meta"), acl_format).shape == w.shape
    compiled = torch.compile(npu_format_cast, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(w, acl_format), w)
