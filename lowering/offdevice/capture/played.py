"""What plays each name of torch_npu's C++ that streams, events and captures go by.

Torch_npu's Python stays as it is: ``torch.npu.NPUGraph``, ``graph``, ``make_graphed_callables``,
``Stream``, ``Event``, TorchAIR and npugraph_ex find these names where they find C++ on a device.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

from npu_lowering.offdevice.capture import (
    attention,
    checkpoint,
    cores,
    graph,
    memory,
    state,
    streams,
)


def played() -> dict[str, Any]:
    """What plays each name of ``torch_npu._C``."""
    return {
        "_NPUEventBase": streams.EventBase,
        "_NPUGraph": graph.Graph,
        "_NPUStreamBase": streams.StreamBase,
        "_construct_NPU_Tensor_From_Storage_And_Metadata": checkpoint.tensor,
        "_construct_storage_from_data_pointer": checkpoint.storage,
        "_graph_pool_handle": memory.new_handle,
        "_graph_task_group_begin": graph.group_begin,
        "_graph_task_group_end": graph.group_end,
        "_graph_task_update_begin": graph.update_begin,
        "_graph_task_update_end": graph.update_end,
        "_npu_getCheckpointState": checkpoint.state_of,
        "_npu_getCurrentStream": streams.current_stream,
        "_npu_getDefaultStream": streams.default_stream,
        "_npu_get_device_res_limit": cores.device_limit,
        "_npu_get_stream_res_limit": cores.stream_limit,
        "_npu_hostEmptyCache": lambda: None,
        "_npu_isCurrentStreamCapturing": state.is_capturing,
        "_npu_reset_device_res_limit": cores.reset_device_limit,
        "_npu_reset_stream_res_limit": cores.reset_stream_limit,
        "_npu_setCheckpointPoolState": checkpoint.restore,
        "_npu_setStream": streams.set_stream,
        "_npu_set_device_res_limit": cores.set_device_limit,
        "_npu_set_stream_res_limit": cores.set_stream_limit,
        "_npu_synchronize": streams.synchronize,
        "_super_kernel_scope_begin": lambda name: None,  # noqa: ARG005
        "_super_kernel_scope_end": lambda name: None,  # noqa: ARG005
        "_weak_ref_tensor": checkpoint.weak_tensor,
    }


# Modules of torch_npu whose classes are derived from classes of C++; run again, they are derived
# from those above.
_DERIVED = ("torch_npu.npu.streams", "torch_npu.npu.graphs")
# What upstream has for device tensors it takes a reference of, and a copy of any other.
_COPYING = ("torch_npu.npu.graphs", "torch_npu.npu._npugraph_handlers.npugraph_handler")
# What torch.npu has of upstream's own, by the module that defines it.
_UPSTREAMS = {
    "torch_npu.npu.streams": "Event ExternalEvent ExternalStream Stream SyncLaunchStream",
    "torch_npu.npu.graphs": (
        "NPUGraph graph graph_pool_handle graph_task_group_begin graph_task_group_end "
        "graph_task_update_begin graph_task_update_end is_current_stream_capturing "
        "make_graphed_callables super_kernel_scope_begin super_kernel_scope_end"
    ),
    "torch_npu.npu.utils": (
        "StreamContext current_stream default_stream set_stream stream synchronize"
    ),
    "torch_npu.npu.npu_config": (
        "get_device_limit get_stream_limit reset_stream_limit set_device_limit set_stream_limit"
    ),
}

_is_played = False


def names() -> set[str]:
    """The names of ``torch.npu`` that mean what upstream's Python makes of them."""
    return {name for names in _UPSTREAMS.values() for name in names.split()}


def play() -> None:
    """Put each in its place, once torch_npu is imported; again changes nothing."""
    global _is_played
    if _is_played:
        return
    c: Any = importlib.import_module("torch_npu._C")
    npu: Any = importlib.import_module("torch_npu.npu")
    renewed: dict[int, tuple[Any, Any]] = {}  # what was, by its id, and what is

    def renew(module: Any, name: str, new: Any) -> None:
        if hasattr(module, name):  # releases differ in what they have
            old = getattr(module, name)
            renewed[id(old)] = (old, new)
            setattr(module, name, new)

    for name, new in played().items():
        renew(c, name, new)
    for name in _DERIVED:
        if name in sys.modules:
            module: Any = sys.modules[name]
            before = dict(vars(module))
            library = before.get("_npu_lib")  # operators are defined as long as it lives
            importlib.reload(module)
            if library is not None:
                module._npu_lib = library
            for key, old in before.items():
                new = vars(module).get(key)
                if new is not old and getattr(old, "__module__", None) == name:
                    renewed[id(old)] = (old, new)
    for module_name, names_there in _UPSTREAMS.items():
        for name in names_there.split():
            own = getattr(sys.modules.get(module_name), name, None)
            if own is not None:
                renew(npu, name, own)
    utils: Any = importlib.import_module("torch_npu.npu.utils")
    utils._torch_get_device_index = _device_index  # torch's sees no NPU, since it would use it
    _rebind(renewed)
    for name in _COPYING:
        if name in sys.modules:
            sys.modules[name].deepcopy = _kept(sys.modules[name].deepcopy)  # type: ignore[attr-defined]
    attention.play()
    _play_for_dynamo(npu)
    _let_torchair_follow_npugraph_ex()
    tensor: Any = torch.Tensor
    tensor.is_npu = property(checkpoint.is_npu)
    tensor.record_stream = streams.record_stream
    _is_played = True


def _play_for_dynamo(npu: Any) -> None:
    """Let what Dynamo makes inside a compiled function be streams and events of the NPU.

    Torch's own classes would ask C++ for the device. Only newer releases make any.
    """
    for module, name, kind in (
        (torch._dynamo.utils, "build_event", "Event"),
        (torch._dynamo.utils, "build_stream", "Stream"),
    ):
        if hasattr(module, name):
            setattr(module, name, _building(npu, kind))


def _let_torchair_follow_npugraph_ex() -> None:
    """Let TorchAIR compile where npugraph_ex has compiled before it.

    Each registers the same derivatives at its first compilation. npugraph_ex looks whether they
    are there, and TorchAIR does not, so that torch refuses the second registration.
    """
    utils: Any = importlib.import_module("torchair._utils")
    register = getattr(utils, "register_matmul_backward_decomp", None)
    if register is None:
        return

    def register_once() -> None:
        if torch._C.DispatchKey.AutogradPrivateUse1 not in torch.ops.aten.to.other.py_kernels:
            register()

    utils.register_matmul_backward_decomp = register_once


def _building(npu: Any, kind: str) -> Callable[..., Any]:
    def build(args: Any, kwargs: Any) -> Any:
        return getattr(npu, kind)(*args, **kwargs)

    return build


def _rebind(renewed: dict[int, tuple[Any, Any]]) -> None:
    """Let whoever has one of the old ones under a name have the new one."""
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("torch_npu") or not isinstance(module, types.ModuleType):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in renewed:
                setattr(module, name, renewed[id(value)][1])
            elif isinstance(value, type) and value.__module__.startswith("torch_npu"):
                for attribute, held in list(vars(value).items()):
                    held = held.__func__ if isinstance(held, staticmethod) else held
                    if id(held) in renewed:
                        new = renewed[id(held)][1]
                        is_function = not isinstance(new, type)
                        setattr(value, attribute, staticmethod(new) if is_function else new)


def _device_index(device: Any, optional: bool = False, allow_cpu: bool = False) -> int:
    if isinstance(device, torch.device) and device.type == "cpu" and allow_cpu:
        return -1
    if device is None and not optional:
        raise ValueError("expected a torch.device or an int, got None")
    return int(getattr(device, "index", None) or 0)


def _kept(deepcopy: Callable[..., Any]) -> Callable[..., Any]:
    def keep(value: Any, *args: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return checkpoint.weak_tensor(value)
        return deepcopy(value, *args)

    return keep
