"""Blocks of public MoE code run to their end, unchanged: eagerly, and through TorchAIR, equal."""

from pathlib import Path

import pytest

DRIVER = Path(__file__).parents[1] / "data" / "blocks" / "drive.py"
# The decode layer sums attention in bfloat16, in an order of its own in either mode.
ALLOWED = {"s11_dsv3_layer": 0.0078}


@pytest.mark.usefixtures("found")
def test_blocks(python):
    output, _ = python("-m", "npu_lowering", "run", DRIVER)
    lines = [line.rsplit(maxsplit=1) for line in output.splitlines() if line.startswith("s")]
    assert len(lines) == 10, output
    for what, differs in lines:
        allowed = ALLOWED.get(what.split()[0], 0.0)
        assert float(differs) <= allowed, f"{what}: {differs}"
