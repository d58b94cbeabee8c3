"""An NPU played by the CPU, for scripts that were written for one.

A tensor's ``device`` says ``cpu``, which is what it is. :func:`npu_lowering.offdevice.install` does
not do this; ``python -m npu_lowering run`` and ``pytest --npu-offdevice`` do, both by :func:`play`.
"""

from __future__ import annotations

import importlib
from typing import Any

from npu_lowering.offdevice.capture import played as capture
from npu_lowering.offdevice.process import (
    accelerator,
    amp,
    profiler,
    refusals,
    runtime,
    tensors,
)

_is_played = False


def play() -> None:
    """Replace what names an NPU, once :func:`install` has been called; again changes nothing."""
    global _is_played
    if _is_played:
        return
    npu: Any = importlib.import_module("torch_npu.npu")
    tensors.play()
    names = played()
    for name, value in names.items():
        setattr(npu, name, value)
    capture.play()
    accelerator.play()
    amp.play()
    profiler.play()
    refusals.refuse_what_is_not_played(set(names) | capture.names())
    _is_played = True


def played() -> dict[str, Any]:
    """What plays each name of ``torch.npu``."""
    return runtime.played()
