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
ROUNDS = 2_000_000
BYTES = 1 << 28


def measure(threads):
    """Multiply-accumulates ("arithmetic"), bytes read ("memory") a second; {} without cc or VNNI.

    For the fastest of some runs, once torch's threads have ceased to spin.
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

    time.sleep(0.2)
    return {
        "arithmetic": threads * ROUNDS * DOT / best(arithmetic),
        "memory": threads * part / best(stream),
    }


def best(function, repeats=10):
    """The least of some times, in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)
