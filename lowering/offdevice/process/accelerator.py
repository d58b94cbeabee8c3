"""``torch.accelerator``, where an NPU is played: it names the NPU and asks ``torch.npu``."""

# ruff: noqa: ARG005 -- signatures are those of what is replaced

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import torch

from npu_lowering.offdevice.process import runtime


def play() -> None:
    """Replace what this torch has of it: it came with torch 2.6, and has grown since."""
    here: Any = getattr(torch, "accelerator", None)
    for name, function in _played().items():
        if hasattr(here, name):
            # Torch's own code goes by what it finds on the CPU, where its tensors are.
            setattr(here, name, runtime.acting_for_users(function, getattr(here, name)))


def _played() -> dict[str, Callable[..., Any]]:
    npu: Any = importlib.import_module("torch_npu.npu")

    def asking(name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: getattr(npu, name)(*args, **kwargs)

    return {
        **{name: asking(name) for name in _OF_THE_DEVICE.split()},
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_accelerator": lambda check_available=False: torch.device("npu"),
        "current_device_index": lambda: 0,
        "current_device_idx": lambda: 0,
        "set_device_index": lambda device: None,
        "set_device_idx": lambda device: None,
        "device_index": lambda device: contextlib.nullcontext(),
        "get_memory_info": lambda device_index=None: npu.mem_get_info(),
    }


_OF_THE_DEVICE = (
    "current_stream empty_cache max_memory_allocated max_memory_reserved memory_allocated "
    "memory_reserved reset_accumulated_memory_stats reset_peak_memory_stats set_stream synchronize"
)
