"""The same weights in the layouts that people hold; ``_cast`` is a copy that the package made."""

import torch

import npu_lowering


def k_contiguous(w, pad=0):
    """A checkpoint's ``(e, n, k)``, transposed; with so many bytes between its rows."""
    e, k, n = w.shape
    rows = torch.zeros(e, n, k + pad, dtype=torch.int8)
    rows[:, :, :k] = w.transpose(1, 2)
    return rows[:, :, :k].transpose(1, 2)


def n_padded(w):
    """Columns of a wider tensor, as where two projections are held in one."""
    e, k, n = w.shape
    wide = torch.zeros(e, k, n + 96, dtype=torch.int8)
    wide[:, :, 33 : 33 + n] = w
    return wide[:, :, 33 : 33 + n]


def strided(w):
    """Every second element of memory."""
    return torch.repeat_interleave(w, 2, -1)[..., ::2]


def cast(w):
    """npu_format_cast's copy, which keeps strides."""
    return torch.ops.npu.npu_format_cast(w, 29)


# What the tables and pictures call each, and how it is made of a contiguous (e, k, n).
FAST = {
    "k": k_contiguous,
    "k_cast": lambda w: cast(k_contiguous(w)),
    "nd": lambda w: w,
    "nd_cast": cast,
    "nz": npu_lowering.to_fractal_nz,
}
# Patterns of strides that no kernel is made for, each with the fast layout that is nearest.
ODD = {
    "k_padded": (lambda w: k_contiguous(w, pad=40), "k"),
    "n_padded": (n_padded, "nd"),
    "k_strided": (lambda w: strided(w.transpose(1, 2)).transpose(1, 2), "k"),
    "n_strided": (strided, "nd"),
    "experts_last": (lambda w: w.permute(1, 2, 0).contiguous().permute(2, 0, 1), "nd"),
    "tiles_padded": (lambda w: tiles_padded(npu_lowering.to_fractal_nz(w)), "nz"),
}


def tiles_padded(w5):
    """FRACTAL_NZ with a tile's room between the tiles."""
    return torch.repeat_interleave(w5, 2, 2)[:, :, ::2]
