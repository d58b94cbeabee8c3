"""Equality to the last bit, with a message that says how far off it was."""

import torch


def assert_same(actual, expected):
    """Same shape, dtype and bits; the sign of zero counts, a NaN equals a NaN."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan), "NaN in other places"
    a, b = actual.masked_fill(nan, 0), expected.masked_fill(nan, 0)
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    different = a.contiguous().view(bits) != b.contiguous().view(bits)
    assert not different.any(), (
        f"{int(different.sum())} of {different.numel()} elements differ, "
        f"by at most {(a.double() - b.double()).abs().max().item():.3g}, "
        f"first at {different.nonzero()[0].tolist()}"
    )
