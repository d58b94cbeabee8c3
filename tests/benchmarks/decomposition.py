"""What the decomposition costs beside the kernel: time, and memory above inputs and result.

    python tests/benchmarks/decomposition.py

For weights of k >= 2048 and few tokens the memory is to stay below one and a half times them.
"""

import threading
import time
from pathlib import Path

import npu_lowering  # isort: skip -- before torch

import torch

SHAPES = ((8, 2048, 7168, 72, 8), (8, 2048, 7168, 8, 8), (64, 2048, 2048, 16, 8))
PAGE = 4096


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def measured(function):
    """Seconds, and the most memory that was resident above the start; sampled, so a lower bound."""
    start, peak, done = resident(), 0, threading.Event()

    def watch():
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident() - start)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - begin
    done.set()
    watcher.join()
    return seconds, peak - result.numel() * 4


def main():
    """A row for each shape."""
    op = torch.ops.npu.npu_grouped_matmul_finalize_routing.default
    decomposed = npu_lowering.decompositions()[op]
    print("e k n tokens top_k | decomposition / kernel, times | memory / bytes of w")
    for e, k, n, tokens, top_k in SHAPES:
        m = tokens * top_k
        call = {
            "x": torch.randint(-128, 128, (m, k), dtype=torch.int8),
            "w": torch.randint(-128, 128, (e, k, n), dtype=torch.int8),
            "group_list": torch.full((e,), m // e),
            "scale": torch.rand(e, n),
            "logit": torch.rand(m),
            "pertoken_scale": torch.rand(m),
            "row_index": torch.arange(m) % tokens,
            "output_bs": tokens,
        }
        op(**call)
        decomposed(**call)
        kernel = min(measured(lambda call=call: op(**call))[0] for _ in range(5))
        runs = [measured(lambda call=call: decomposed(**call)) for _ in range(3)]
        seconds, memory = min(run[0] for run in runs), max(run[1] for run in runs)
        print(
            e,
            k,
            n,
            tokens,
            top_k,
            "|",
            f"{seconds / kernel:.1f} | {memory / call['w'].numel():.2f}",
        )


if __name__ == "__main__":
    main()
