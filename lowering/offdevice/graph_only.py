"""The graph that a function is lowered to, without running it."""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from typing import Any

from npu_lowering.errors import OffDeviceError
from npu_lowering.offdevice.bring_up import install
from npu_lowering.offdevice.engine import recorder
from npu_lowering.offdevice.engine.graph import Graph, GraphError


def lower(
    function: Callable[..., Any], *args: Any, dynamic: bool | None = None, **kwargs: Any
) -> Graph:
    """Lower a function to its GE graph, and do not run it.

    So it needs no kernel: the graph may have operators that the CPU cannot compute. ``install()``
    is called first.

    Args:
        function: What ``torch.compile`` takes: a function, or a module. Python code of it that
            comes after the first operator of the graph is traced and not run.
        *args: Its arguments; of tensors only shapes, dtypes and the like matter.
        dynamic: As of ``torch.compile``: True makes sizes symbols.
        **kwargs: Its keyword arguments.

    Returns:
        The graph: ``nodes``, ``nodes_of(type)``, ``inputs`` and ``outputs``. Of a function whose
        arguments require gradients it is the forward one.

    Raises:
        TypeError: ``function`` cannot be called.
        OffDeviceError: It is not possible here, or a real CANN is here, which has the graph itself.
        GraphError: The function computes nothing with tensors.
        Exception: What torch or TorchAIR raises of a function that is no one graph.
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    if not install():
        raise OffDeviceError(
            "npu_lowering.offdevice.lower() needs its own graph engine, and a real CANN is here: "
            "compile with torchair.get_npu_backend() and let config.debug.graph_dump show the graph"
        )
    torch: Any = importlib.import_module("torch")
    torchair: Any = importlib.import_module("torchair")
    backend = torchair.get_npu_backend(compiler_config=torchair.CompilerConfig())
    compiled = torch.compile(_once(function), backend=backend, dynamic=dynamic, fullgraph=True)
    with recorder.recording(lowering_only=True) as recording:
        try:
            compiled(*args, **kwargs)
        except recorder.LoweredError:
            return recording()
    name = getattr(function, "__qualname__", type(function).__name__)
    raise GraphError(f"{name} was lowered to no graph: it computes nothing with tensors")


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, behind code of its own.

    Dynamo keeps what it compiled with the code, and would neither lower it again nor forget it.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    code = call.__code__.replace(co_name="lowered")
    return types.FunctionType(code, call.__globals__, closure=call.__closure__)
