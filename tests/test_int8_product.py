"""The exact products that the operators share, on every path of the compiled kernel and without."""

import pytest
import torch
from test_native import encoded_library, path, problem, to_lines, to_nz, use  # noqa: F401

from npu_lowering.operators import exact, int8_product
from npu_lowering.operators.grouped_matmul_finalize_routing import native

SIZES = {
    "few_rows": ([1, 0, 3], 100, 96),
    "odd": ([2, 5], 37, 45),
    "blocks": ([40, 0, 9], 160, 128),
    "long": ([3, 2], 3000, 64),
}


def sums(x, w, ends):
    """Row by row."""
    out = torch.zeros(x.shape[0], w.shape[2], dtype=torch.int32)
    for g, (start, end) in enumerate(zip([0, *ends], ends)):
        out[start:end] = (x[start:end].long() @ w[g].long()).int()
    return out


def case(size):
    counts, k, n = SIZES[size]
    _, given = problem(counts, k, n, tail=2)
    return given


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("size", SIZES)
def test_sums_on_every_path(size):
    given = case(size)
    x, w, ends = given["x"], given["w"], given["ends"]
    expected = sums(x, w, ends)
    assert int(expected.abs().max()) > 2**16
    for layout in (w, to_lines(w), to_lines(w, pad=5)):
        assert torch.equal(int8_product.grouped(x, layout, ends), expected)
    if w.shape[2] % 32 == 0:
        out = torch.full_like(expected, 5)
        native.grouped_matmul_combine(out, x, to_nz(w), ends)
        assert torch.equal(out[: ends[-1]], expected[: ends[-1]])
        assert torch.equal(out[ends[-1] :], torch.full_like(out[ends[-1] :], 5))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("size", SIZES)
def test_scaled_on_every_path(size):
    given = case(size)
    x, w, ends, scale = given["x"], given["w"], given["ends"], given["scale"]
    for per_token in (None, given["pertoken_scale"]):
        expected = torch.zeros(x.shape[0], w.shape[2])
        acc = sums(x, w, ends)
        for g, (start, end) in enumerate(zip([0, *ends], ends)):
            expected[start:end] = acc[start:end].float() * scale[g]
            if per_token is not None:
                expected[start:end] *= per_token[start:end, None]
        assert torch.equal(int8_product.grouped_scaled(x, w, ends, scale, per_token), expected)


@pytest.mark.parametrize("is_exact", [True, False])
def test_without_the_kernel(monkeypatch, is_exact):
    monkeypatch.setattr(native, "available", lambda: False)
    if not is_exact:
        monkeypatch.setattr(exact, "_int_mm_is_exact", lambda: False)
    for size in SIZES:
        given = case(size)
        x, w, ends = given["x"], given["w"], given["ends"]
        assert torch.equal(int8_product.grouped(x, w, ends), sums(x, w, ends))
        scaled = int8_product.grouped_scaled(x, w, ends, given["scale"], given["pertoken_scale"])
        monkeypatch.undo()
        assert torch.equal(
            scaled,
            int8_product.grouped_scaled(x, w, ends, given["scale"], given["pertoken_scale"]),
        )
        monkeypatch.setattr(native, "available", lambda: False)
