"""``torch_npu.npu.amp``, whose scaler of gradients takes tensors of a device only."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch


def play() -> None:
    """Replace the scaler by torch's own, of the CPU; where torch has none yet, it stays."""
    if not hasattr(torch.amp, "GradScaler"):  # pragma: no cover -- torch before 2.3
        return

    class GradScaler(torch.amp.GradScaler):
        """Takes torch_npu's arguments."""

        def __init__(
            self,
            init_scale: float = 2.0**16,
            growth_factor: float = 2.0,
            backoff_factor: float = 0.5,
            growth_interval: int = 2000,
            dynamic: bool = True,
            enabled: bool = True,
        ) -> None:
            self._dynamic = dynamic
            super().__init__(
                "cpu", init_scale, growth_factor, backoff_factor, growth_interval, enabled
            )

        def update(self, new_scale: Any = None) -> None:
            """Adapt the scale, unless it is to stay."""
            super().update(new_scale if self._dynamic else self._scale)

    for name in ("torch_npu.npu.amp", "torch_npu.npu.amp.grad_scaler"):
        module: Any = importlib.import_module(name)
        module.GradScaler = GradScaler
    # Dynamo imports it as torch.npu.amp, and would put a second one, with theirs, in its place.
    for name in [name for name in sys.modules if name.startswith("torch_npu.npu.amp")]:
        sys.modules.setdefault(name.replace("torch_npu", "torch", 1), sys.modules[name])
