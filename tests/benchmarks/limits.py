"""Measures what this processor can do at most: VNNI arithmetic and reading memory."""

import ctypes
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

DOT = 16 * 64  # multiplications and adds a round of limits.c
ROUNDS = 500_000
BYTES = 1 << 28


def functions(threads):
    """name -> (a function, how much it does), to be timed beside what they limit.

    "arithmetic" does so many multiply-accumulates, "memory" reads so many bytes; their time scales
    with that. Empty without cc or VNNI.
    """
    if shutil.which("cc") is None or "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "limits.so"
        source = Path(__file__).with_name("limits.c")
        subprocess.run(["cc", "-O3", "-shared", "-fPIC", source, "-o", library], check=True)
        limits = ctypes.CDLL(str(library))
    for function in (limits.arithmetic, limits.stream):
        function.restype = ctypes.c_int64
    part = BYTES // threads // 256 * 256
    parts = torch.ones(threads * part, dtype=torch.int8).split(part)
    pool = ThreadPoolExecutor(threads)

    def arithmetic():
        list(pool.map(limits.arithmetic, [ctypes.c_int64(ROUNDS)] * threads))

    def stream():
        sizes = [ctypes.c_int64(part)] * threads
        list(pool.map(limits.stream, [ctypes.c_void_p(p.data_ptr()) for p in parts], sizes))

    return {
        "arithmetic": (arithmetic, threads * ROUNDS * DOT),
        "memory": (stream, threads * part),
    }
