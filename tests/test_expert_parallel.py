"""Expert parallelism over 2 and 4 processes of this machine: the same result as on one device."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from versions import TORCH

EXAMPLE = Path(__file__).parent.parent / "examples" / "expert_parallel.py"
SIZES = ("--tokens", "16", "--experts", "8", "--top-k", "2", "--inner", "64", "--outer", "96")

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="needs torch.distributed"
)


@pytest.mark.parametrize("world", [2, 4])
def test_equal_to_one_rank(world, tmp_path):
    """As torchrun starts it, on a free port; what is read here is the example's own report."""
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "torch.distributed.run", f"--nproc-per-node={world}"),
            *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
            *(str(EXAMPLE), *SIZES),
        ],
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "error",
            # torchrun imports torch by itself, before anything of ours.
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "ProcessGroupGloo does not support reduce_scatter" in done.stderr:
        assert TORCH < (2, 9)
        pytest.skip("older gloo has no reduce_scatter")
    assert done.returncode == 0, done.stderr
    assert f"{world} ranks, {16 * world} tokens, 8 experts" in done.stdout
    assert "explained by the order of adds" in done.stdout
    assert "not explained" not in done.stdout
    equal = re.search(r"(\d+) tokens with one order of adds, equal bit for bit: True", done.stdout)
    assert equal, done.stdout
    # Else nothing was compared, or all of it in one order.
    assert 0 < int(equal[1]) < 16 * world
