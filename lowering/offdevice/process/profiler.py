"""``torch_npu.profiler``, played by torch's own, which sees what the CPU does."""

# ruff: noqa: ARG001, ARG002 -- signatures are those of what is replaced

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch


class profile(torch.profiler.profile):  # noqa: N801 -- the name it is called by
    """Takes torch_npu's arguments; there is nothing to record beside the CPU's activities."""

    def __init__(
        self,
        *,
        activities: Any = None,
        experimental_config: Any = None,
        custom_trace_id_callback: Callable[[], str] | None = None,
        use_cuda: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU], **kwargs)


def schedule(
    *, wait: int, active: int, warmup: int = 0, repeat: int = 0, skip_first: int = 0, **kwargs: Any
) -> Callable[[int], torch.profiler.ProfilerAction]:
    """Torch's, whose ``warmup`` has no default and which warns of none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.profiler.schedule(
            wait=wait, warmup=warmup, active=active, repeat=repeat, skip_first=skip_first, **kwargs
        )


def tensorboard_trace_handler(
    dir_name: str | None = None, worker_name: str | None = None, *args: Any, **kwargs: Any
) -> Callable[[Any], None]:
    """Torch's, without the analysis of a device's data; the folder has a default."""
    handler: Callable[[Any], None] = torch.profiler.tensorboard_trace_handler(
        dir_name or "./profiler_result", worker_name
    )
    return handler


def play() -> None:
    """Replace what torch_npu's users call."""
    theirs: Any = importlib.import_module("torch_npu.profiler")
    theirs.profile = profile
    theirs._KinetoProfile = profile
    theirs.schedule = schedule
    theirs.tensorboard_trace_handler = tensorboard_trace_handler
    theirs.ProfilerAction = torch.profiler.ProfilerAction
