"""The compiled kernel behind the CPU path, where one was built and the processor can run it.

The library is C without Python or torch in it (``csrc/grouped_matmul.c``), built as an optional
extension and called through ctypes, which lets other Python threads run meanwhile. Without it
everything works, slower.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import struct
from array import array
from pathlib import Path
from typing import NamedTuple

import torch

# Forces a path: one of the names below, "auto", or "torch" for none.
VARIABLE = "NPU_LOWERING_KERNEL"
# Another build of the library, such as one with sanitizers.
LIBRARY_VARIABLE = "NPU_LOWERING_LIBRARY"
PATHS = ("avx512vnni", "avxvnni", "avx2", "neon", "c")

# The fields of call_t in grouped_matmul.c, all of them 64 bits wide.
_CALL = struct.Struct("=31q")


class _Kernel(NamedTuple):
    """A loaded library and the path chosen in it."""

    combine: ctypes._NamedFuncPointer
    number: int
    name: str


def _library() -> ctypes.CDLL | None:
    """Loads the library, or says None where none was built."""
    file = os.environ.get(LIBRARY_VARIABLE)
    if file is None:
        spec = importlib.util.find_spec("npu_lowering._grouped_matmul")
        if spec is None or spec.origin is None:
            return None
        file = spec.origin
    library = ctypes.CDLL(file)
    library.grouped_matmul_call_bytes.restype = ctypes.c_int64
    library.grouped_matmul_path_name.argtypes = [ctypes.c_int64]
    library.grouped_matmul_path_name.restype = ctypes.c_char_p
    library.grouped_matmul_path_runs.argtypes = [ctypes.c_int64]
    library.grouped_matmul_use_threads.argtypes = [ctypes.c_void_p]
    library.grouped_matmul_use_threads.restype = None
    library.grouped_matmul_combine.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    library.grouped_matmul_combine.restype = ctypes.c_int
    if library.grouped_matmul_call_bytes() != _CALL.size:
        raise ImportError(f"{file} is of another version of npu_lowering: build it again")
    return library


def _torch_threads() -> ctypes.c_void_p | None:
    """GOMP_parallel of the OpenMP runtime that torch itself uses, or None where it has none."""
    file = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not file.exists():
        return None
    # A symbol is looked up in the library and then in what it depends on.
    function = getattr(ctypes.CDLL(str(file)), "GOMP_parallel", None)
    return None if function is None else ctypes.cast(function, ctypes.c_void_p)


@functools.cache
def _kernel() -> _Kernel | None:
    """Chooses the best path that this processor runs, or the one that the variable names.

    Raises:
        ValueError: the variable names no path.
        RuntimeError: the variable names one that this build or this processor lacks.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in ("auto", "torch", *PATHS):
        raise ValueError(f"{VARIABLE} must be one of auto, torch, {', '.join(PATHS)}; got {wanted}")
    if wanted == "torch":
        return None
    library = _library()
    if library is None:
        if wanted == "auto":
            return None
        raise RuntimeError(f"{VARIABLE}={wanted}, but no compiled kernel is installed")
    names: list[str] = []
    while (name := library.grouped_matmul_path_name(len(names))) is not None:
        names.append(name.decode())
    runs = [name for i, name in enumerate(names) if library.grouped_matmul_path_runs(i)]
    if wanted == "auto":
        wanted = runs[0]
    if wanted not in runs:
        lacking = "processor" if wanted in names else "build"
        raise RuntimeError(f"{VARIABLE}={wanted}, which this {lacking} lacks; it has {runs}")
    library.grouped_matmul_use_threads(_torch_threads())
    return _Kernel(library.grouped_matmul_combine, names.index(wanted), wanted)


def available() -> bool:
    """Whether a compiled kernel for this processor exists and is not switched off."""
    return _kernel() is not None


def path() -> str:
    """Which path runs: one of ``PATHS``, or "none"."""
    kernel = _kernel()
    return "none" if kernel is None else kernel.name


def grouped_matmul_combine(
    out: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    ends: list[int],
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    pertoken_scale: torch.Tensor | None,
    logit: torch.Tensor | None,
    row_index: torch.Tensor,
) -> None:
    """Adds every row's contribution to ``out``, in place, bit for bit as a sequential loop would.

    Arguments are taken as they are, strided or not; they were checked by the caller. Rows from
    ``ends[-1]`` on are read in no tensor.

    Args:
        out: float32 (output_bs, n), contiguous, holding what is added to.
        x: int8 (m, k).
        w: int8 (e, k, n), or (e, n1, k1, 16, 32) for FRACTAL_NZ with n = 32 * n1.
        ends: the running totals of the groups' rows, e of them.
        scale: float32 or bfloat16 (e, n).
        bias: float32 or bfloat16 (e, n), or None.
        pertoken_scale: float32 (m,), or None.
        logit: float32 (m,), or None.
        row_index: int64 or int32 (m,), inside [0, output_bs) for the rows that count.

    Raises:
        MemoryError: there is no room for the workspace; ``out`` is then undefined.
    """
    kernel = _kernel()
    if kernel is None:
        raise RuntimeError("no compiled kernel is available")
    k = x.size(1)
    n = out.size(1)
    if w.dim() == 5:
        w_e, w_n1, w_k1, w_i, w_j = w.stride()
    else:
        w_e, w_i, w_j = w.stride()
        w_n1, w_k1 = 32 * w_j, 16 * w_i
    totals = array("q", ends)
    call = _CALL.pack(
        out.data_ptr(),
        n,
        x.data_ptr(),
        *x.stride(),
        w.data_ptr(),
        w_e,
        w_n1,
        w_k1,
        w_i,
        w_j,
        totals.buffer_info()[0],
        len(ends),
        k,
        n,
        scale.data_ptr(),
        *scale.stride(),
        scale.dtype is torch.bfloat16,
        *_matrix(bias),
        *_vector(pertoken_scale),
        *_vector(logit),
        row_index.data_ptr(),
        row_index.stride(0),
        row_index.dtype is torch.int64,
        torch.get_num_threads(),
    )
    if kernel.combine(call, kernel.number):
        raise MemoryError("no memory for the workspace of grouped_matmul_combine")


def _matrix(tensor: torch.Tensor | None) -> tuple[int, int, int, int]:
    if tensor is None:
        return 0, 0, 0, 0
    row, column = tensor.stride()
    return tensor.data_ptr(), row, column, tensor.dtype is torch.bfloat16


def _vector(tensor: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.stride(0))
