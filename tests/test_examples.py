"""The examples run, each as a person would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from versions import TORCH

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {"compile_and_export.py": (2, 6)}
# Scripts for an NPU run through the launcher.
RUN = ("-m", "npu_lowering", "run")
LAUNCHER = {"graph_mode.py": RUN, "w8a8_moe_layer.py": RUN}
NEEDS_OFFDEVICE = {"graph_mode.py", "deepseek_moe_layer.py", "w8a8_moe_layer.py"}
# What torch_npu of some releases cannot do off the device: routing, Inductor.
SEARCHSORTED = "searchsorted.Tensor ge_converter is not implemented"
FAULTS = {
    (2, 3): SEARCHSORTED,
    (2, 4): SEARCHSORTED,
    (2, 5): SEARCHSORTED,
    (2, 8): "0 active drivers ([])",
}
# These need several processes, and have a test of their own.
DISTRIBUTED = {"expert_parallel.py"}

ALONE = sorted({path.name for path in EXAMPLES.glob("*.py")} - DISTRIBUTED)


@pytest.mark.parametrize("example", ALONE)
def test_example(example, tmp_path, request):
    if NEEDS.get(example, TORCH) > TORCH:
        pytest.skip(f"{example} needs torch {NEEDS[example]}")
    if example in NEEDS_OFFDEVICE:
        request.getfixturevalue("found")
    # npu_lowering has set it for this process, and a person has not.
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    done = subprocess.run(
        [sys.executable, *LAUNCHER.get(example, ()), str(EXAMPLES / example)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        env={**environment, "HOME": str(tmp_path)},
        check=False,
    )
    for release, fault in FAULTS.items():
        if release == TORCH and fault in done.stderr:
            pytest.skip(f"{example} cannot run on this torch_npu: {fault}")
    assert done.returncode == 0, done.stderr
    assert "True" in done.stdout or "bit for bit" in done.stdout


def test_examples_have_a_main():
    """So that they can be read, imported, and started by a process of their own."""
    for path in EXAMPLES.glob("*.py"):
        assert "def main()" in path.read_text(encoding="utf-8"), path
