"""The benchmark's parts work; its figures are for whoever runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RUN = Path(__file__).parent / "benchmarks" / "run.py"
sys.path.insert(0, str(RUN.parent))
import layouts  # noqa: E402


@pytest.mark.skipif(
    not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_int_mm", "CPU"),
    reason="this torch has no int8 matmul on CPU (torch._int_mm) to measure against",
)
def test_a_row_is_measured_and_checked():
    names = [*layouts.FAST, *layouts.ODD]
    row = json.dumps([[4, 64, 96, 3, 2], ["int_mm"], names, 0, 1])
    done = subprocess.run(
        [sys.executable, str(RUN), "--row", row], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert {*names, "int_mm"} <= set(measured["milliseconds"])
    assert all(0 < least <= median for least, median in measured["milliseconds"].values())
