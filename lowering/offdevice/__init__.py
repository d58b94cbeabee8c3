"""TorchAIR on a machine without an NPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from npu_lowering.errors import OffDeviceError
from npu_lowering.offdevice.bring_up import install, is_installed

if TYPE_CHECKING:
    from npu_lowering.offdevice.capture.report import last_captured as last_captured
    from npu_lowering.offdevice.engine.recorder import last_graph as last_graph
    from npu_lowering.offdevice.graph_only import lower as lower

__all__ = ["OffDeviceError", "install", "is_installed", "last_captured", "last_graph", "lower"]


def __getattr__(name: str) -> Any:
    # The graph engine is imported only by those who use it.
    if name == "last_captured":
        from npu_lowering.offdevice.capture.report import last_captured

        return last_captured
    if name == "last_graph":
        from npu_lowering.offdevice.engine.recorder import last_graph

        return last_graph
    if name == "lower":
        from npu_lowering.offdevice.graph_only import lower

        return lower
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
