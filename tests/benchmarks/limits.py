"""Measures what this processor can do at most: VNNI arithmetic and reading memory."""

import ctypes
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

DOT = 16 * 64  # multiplications and adds a round of limits.c


def measure(threads):
    """(multiply-accumulates a second, bytes read a second), or None without cc or VNNI."""
    if shutil.which("cc") is None or "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "limits.so"
        source = Path(__file__).with_name("limits.c")
        subprocess.run(["cc", "-O3", "-shared", "-fPIC", source, "-o", library], check=True)
        limits = ctypes.CDLL(str(library))
    for function in (limits.arithmetic, limits.stream):
        function.restype = ctypes.c_int64
    memory = torch.ones(1 << 29, dtype=torch.int8)
    part = memory.numel() // threads // 256 * 256
    rounds = 4_000_000
    starts = [memory.data_ptr() + i * part for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        arithmetic = best(
            lambda: list(pool.map(lambda _: limits.arithmetic(ctypes.c_int64(rounds)), starts))
        )
        stream = best(
            lambda: list(
                pool.map(lambda s: limits.stream(ctypes.c_void_p(s), ctypes.c_int64(part)), starts)
            )
        )
    return threads * rounds * DOT / arithmetic, threads * part / stream


def best(function, repeats=7):
    """The least of some times, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
