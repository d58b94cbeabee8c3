"""Runs every block of this folder, eagerly and through TorchAIR, and prints how far they differ."""

import importlib
import sys
import warnings
from pathlib import Path

import torch
import torch_npu  # noqa: F401 -- makes torchair importable
import torchair

warnings.simplefilter("ignore")


class Common:
    """In the place of common.py, whose main would run the block and print."""

    @staticmethod
    def main(block, make, **options):
        Common.found = block, make


sys.modules["common"] = Common
for path in sorted(Path(__file__).parent.glob("s*.py")):
    importlib.import_module(path.stem)
    block, make = Common.found

    def fresh(make=make):
        torch.manual_seed(0)
        return make()

    eager = block(*fresh())
    assert torch.isfinite(eager.float()).all()
    for dynamic in (False, True):
        torch._dynamo.reset()
        backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
        compiled = torch.compile(block, backend=backend, fullgraph=True, dynamic=dynamic)
        try:
            differs = float((compiled(*fresh()).float() - eager.float()).abs().max())
        except Exception as error:  # noqa: BLE001 -- what a person would see
            lines = [line for line in str(error).splitlines() if line.strip()]
            differs = f"{type(error).__name__}: {' | '.join(lines[:3])}"
        print(path.stem, "dynamic" if dynamic else "static", tuple(eager.shape), differs)
