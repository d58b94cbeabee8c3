"""The compiled kernel behind the CPU path, where one was built and the processor can run it.

The library is C without Python or torch in it (``csrc/grouped_matmul.c``), which setup.py builds
where there is a compiler, and is called through ctypes, which lets other Python threads run
meanwhile. Without it everything works, slower.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
from array import array
from pathlib import Path
from typing import NamedTuple

import torch

# Forces a path: one of the names below, "auto", or "torch" for none.
VARIABLE = "NPU_LOWERING_KERNEL"
# Another build of the library, such as one with sanitizers.
LIBRARY_VARIABLE = "NPU_LOWERING_LIBRARY"
PATHS = ("avx512vnni", "avxvnni", "avx2", "neon", "c")

# Beside the package's own __init__.py, whether it was installed or is linked from a work tree.
_LIBRARY = Path(__file__).parents[2] / "csrc" / "libgrouped_matmul.so"


class _Call(ctypes.Structure):
    """call_t of csrc/call.h: the same names in the same order; strides are in elements."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("out_row", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_row", ctypes.c_int64),
        ("x_col", ctypes.c_int64),
        ("w", ctypes.c_void_p),
        ("w_e", ctypes.c_int64),
        ("w_n1", ctypes.c_int64),
        ("w_k1", ctypes.c_int64),
        ("w_i", ctypes.c_int64),
        ("w_j", ctypes.c_int64),
        ("ends", ctypes.c_void_p),
        ("e", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("scale_e", ctypes.c_int64),
        ("scale_n", ctypes.c_int64),
        ("scale_bf16", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("bias_e", ctypes.c_int64),
        ("bias_n", ctypes.c_int64),
        ("bias_bf16", ctypes.c_int64),
        ("pertoken", ctypes.c_void_p),
        ("pertoken_step", ctypes.c_int64),
        ("logit", ctypes.c_void_p),
        ("logit_step", ctypes.c_int64),
        ("index", ctypes.c_void_p),
        ("index_step", ctypes.c_int64),
        ("index_wide", ctypes.c_int64),
        ("threads", ctypes.c_int64),
    )


class _Field(ctypes.Structure):
    """field_t of csrc/call.h: a field as the library sees it."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("offset", ctypes.c_int64),
        ("size", ctypes.c_int64),
    )


class _Kernel(NamedTuple):
    """A loaded library and the path chosen in it."""

    combine: ctypes._NamedFuncPointer
    number: int
    name: str


def _library() -> ctypes.CDLL | None:
    """Loads the library, or says None where none was built.

    Raises:
        ImportError: the library's call has other fields than :class:`_Call`.
    """
    file = os.environ.get(LIBRARY_VARIABLE)
    if file is None:
        if not _LIBRARY.is_file():
            return None
        file = str(_LIBRARY)
    library = ctypes.CDLL(file)
    _check_fields(library)
    library.grouped_matmul_path_name.argtypes = [ctypes.c_int64]
    library.grouped_matmul_path_name.restype = ctypes.c_char_p
    library.grouped_matmul_path_runs.argtypes = [ctypes.c_int64]
    library.grouped_matmul_use_threads.argtypes = [ctypes.c_void_p]
    library.grouped_matmul_use_threads.restype = None
    library.grouped_matmul_combine.argtypes = [ctypes.POINTER(_Call), ctypes.c_int64]
    library.grouped_matmul_combine.restype = ctypes.c_int
    return library


def _check_fields(library: ctypes.CDLL) -> None:
    """Compares the library's call with ours, field by field."""
    theirs: list[tuple[str, int, int]] = []
    if hasattr(library, "grouped_matmul_call_fields"):
        library.grouped_matmul_call_fields.restype = ctypes.POINTER(_Field)
        for field in library.grouped_matmul_call_fields():
            theirs.append(
                ("" if field.name is None else field.name.decode(), field.offset, field.size)
            )
            if field.name is None:
                break
    ours = [
        *(
            (name, getattr(_Call, name).offset, getattr(_Call, name).size)
            for name, _ in _Call._fields_
        ),
        ("", ctypes.sizeof(_Call), 0),  # the table's end
    ]
    for expected, got in itertools.zip_longest(ours, theirs):
        if expected != got:
            raise ImportError(
                f"{library._name} is of another version of npu_lowering, build it again: its call "
                f"must have {_field_text(expected)}, got {_field_text(got)}"
            )


def _field_text(field: tuple[str, int, int] | None) -> str:
    if field is None:
        return "nothing"
    name, offset, size = field
    return f"{name} at {offset}, {size} bytes" if name else f"its end at {offset}"


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


def reason() -> str:
    """Why :func:`path` is what it is: forced, all that was built, or the best there is."""
    forced = os.environ.get(VARIABLE, "auto")
    if forced != "auto":
        return f"forced by {VARIABLE}={forced}"
    if available():
        return "the best that this processor runs"
    return "torch computes, slower: it is compiled where there is a C compiler at installation"


def grouped_matmul_combine(
    out: torch.Tensor,
    x: torch.Tensor,
    w: torch.Tensor,
    ends: list[int],
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    logit: torch.Tensor | None = None,
    row_index: torch.Tensor | None = None,
) -> None:
    """Adds every row's contribution to ``out``, in place, bit for bit as a sequential loop would.

    Arguments are taken as they are, strided or not; they were checked by the caller. Rows from
    ``ends[-1]`` on are read in no tensor.

    Args:
        out: float32 (output_bs, n), contiguous, holding what is added to; int32 where there is no
            scale, and then the sums are stored, not added.
        x: int8 (m, k).
        w: int8 (e, k, n), or (e, n1, k1, 16, 32) for FRACTAL_NZ with n = 32 * n1.
        ends: the running totals of the groups' rows, e of them.
        scale: float32 or bfloat16 (e, n), or None for the sums alone, without bias and factors.
        bias: float32 or bfloat16 (e, n), or None.
        pertoken_scale: float32 (m,), or None.
        logit: float32 (m,), or None.
        row_index: int64 or int32 (m,), inside [0, output_bs) for the rows that count; None
            where row r goes to row r.

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
    call = _Call(
        out=out.data_ptr(),
        out_row=n,
        x=x.data_ptr(),
        x_row=x.stride(0),
        x_col=x.stride(1),
        w=w.data_ptr(),
        w_e=w_e,
        w_n1=w_n1,
        w_k1=w_k1,
        w_i=w_i,
        w_j=w_j,
        ends=totals.buffer_info()[0],
        e=len(ends),
        k=k,
        n=n,
        threads=torch.get_num_threads(),
    )
    # What is not given stays zero, which is a null pointer.
    if scale is not None:
        call.scale = scale.data_ptr()
        call.scale_e, call.scale_n = scale.stride()
        call.scale_bf16 = scale.dtype is torch.bfloat16
    if row_index is not None:
        call.index = row_index.data_ptr()
        call.index_step = row_index.stride(0)
        call.index_wide = row_index.dtype is torch.int64
    if bias is not None:
        call.bias = bias.data_ptr()
        call.bias_e, call.bias_n = bias.stride()
        call.bias_bf16 = bias.dtype is torch.bfloat16
    if pertoken_scale is not None:
        call.pertoken = pertoken_scale.data_ptr()
        call.pertoken_step = pertoken_scale.stride(0)
    if logit is not None:
        call.logit = logit.data_ptr()
        call.logit_step = logit.stride(0)
    if kernel.combine(call, kernel.number):
        raise MemoryError("no memory for the workspace of grouped_matmul_combine")
