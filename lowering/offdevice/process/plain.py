"""Torch as it is without torch_npu.

While it is imported, torch_npu puts functions of its own in the place of torch's: optimizers, data
loaders, checkpoints, torch.load and others then ask a device, where torch would not. Here there is
none to ask, and every tensor is on the CPU, for which torch's own are right.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import signal
import sys
import threading
import types
import warnings
from collections.abc import Iterator
from typing import Any

# Modules of torch that torch_npu imports and changes at once; seen unchanged if imported before it.
_CHANGED = (
    "torch._dynamo",
    "torch.distributed.fsdp.sharded_grad_scaler",
    "torch.distributed.launcher.api",
    "torch.distributed.nn.functional",
    "torch.multiprocessing.reductions",
    "torch.nn.attention.flex_attention",
    "torch.optim.optimizer",
    "torch.profiler.profiler",
    "torch.utils._triton",
    "torch.utils.checkpoint",
    "torch.utils.data.dataloader",
    "torch.utils.dlpack",
)
# What stays torch_npu's, because it adds to torch and takes nothing away: Dynamo knows more, torch
# keeps logs of more, and random operators of graphs have kernels of torch_npu to go with.
_ADDING = ("torch._dynamo", "torch._logging", "torch._prims")
# Ascend 910B, of which the interface document speaks.
_SOC_VERSION = 223
_Owner = Any  # a module or a class
_Snapshot = list[tuple[_Owner, dict[str, Any]]]


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Take back what TorchAIR, or npugraph_ex, makes of signals while it is imported.

    Their handlers of Ctrl-C and of SIGTERM finalise what they have, ignore the signal from then on
    and send it again: the process goes on, and nothing but SIGKILL ends it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread can set a handler, and TorchAIR does not try
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            # None stands for one of C, which Python cannot set.
            if handler is not None:  # pragma: no branch
                signal.signal(number, handler)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Give torch its own functions back, whatever is imported inside."""
    import torch

    for name in _CHANGED:
        with contextlib.suppress(ImportError):  # of another release
            importlib.import_module(name)
    before = _snapshot()
    accelerator = _accelerator()
    excepthook = sys.excepthook
    checkpoint = torch.utils.checkpoint.DefaultDeviceType
    device_type = checkpoint._default_device_type
    try:
        with warnings.catch_warnings():  # it puts a function of its own there, too
            yield
    finally:
        _restore(before)
        sys.excepthook = excepthook
        checkpoint._default_device_type = device_type
        torch.multiprocessing.reductions.init_reductions()  # a table has them, too
        for name, answer in accelerator.items():
            setattr(torch._C, name, answer)


def without_device() -> None:
    """Keep torch from asking torch_npu, once it is imported, for what needs a device."""
    import torch

    dynamo: Any = importlib.import_module("torch_npu.utils._dynamo")
    if hasattr(dynamo, "disable_register_inductor_npu"):  # pragma: no branch -- newer releases
        dynamo.disable_register_inductor_npu()
    serialization: Any = importlib.import_module("torch_npu.utils.serialization")
    # Tensors of a file that was written on an NPU come to the CPU, the only place there is.
    serialization.RE_MAP_CPU = True
    # By which Meta functions of torch_npu choose; vllm-ascend asks at start-up.
    for name, module in list(sys.modules.items()):
        if name.startswith("torch_npu.") and "get_soc_version" in vars(module):
            vars(module)["get_soc_version"] = lambda: _SOC_VERSION
    supported = torch._C._autograd._supported_activities
    # Of older releases it has none, and nothing is left out.
    own = {getattr(torch.profiler.ProfilerActivity, "PrivateUse1", None)}
    torch._C._autograd._supported_activities = lambda: supported() - own
    for module in (torch.autograd, torch.autograd.profiler):
        vars(module)["_supported_activities"] = torch._C._autograd._supported_activities


def _snapshot() -> _Snapshot:
    """The attributes of every module of torch, and of every class in them."""
    taken: _Snapshot = []
    seen: set[int] = set()
    for name, module in list(sys.modules.items()):
        if (name != "torch" and not name.startswith("torch.")) or name.startswith(_ADDING):
            continue
        if not hasattr(module, "__dict__"):  # None, where an import is to fail
            continue
        attributes = dict(vars(module))
        taken.append((module, attributes))
        for value in attributes.values():
            # Not isinstance(): some objects of torch warn when their class is asked for.
            if issubclass(type(value), type) and id(value) not in seen:
                seen.add(id(value))
                if value.__module__.split(".")[0] == "torch":
                    taken.append((value, dict(vars(value))))
    return taken


def _restore(snapshot: _Snapshot) -> None:
    for owner, attributes in snapshot:
        now = vars(owner)
        for name, value in attributes.items():
            if now.get(name) is not value and _is_theirs(now.get(name)):
                setattr(owner, name, value)


def _is_theirs(value: Any) -> bool:
    """Whether something is torch_npu's, also where it says that it is torch's."""
    if isinstance(value, property):
        return any(map(_is_theirs, (value.fget, value.fset)))
    if isinstance(value, (staticmethod, classmethod)):
        return _is_theirs(value.__func__)
    if isinstance(value, functools._lru_cache_wrapper):
        return _is_theirs(value.__wrapped__)
    if isinstance(value, types.FunctionType):
        module = value.__globals__.get("__name__")
    else:
        module = getattr(type(value) if value is None else value, "__module__", None)
    return isinstance(module, str) and module.split(".")[0] == "torch_npu"


def _accelerator() -> dict[str, Any]:
    """What torch answers to the question for an accelerator, by the name of the function."""
    import torch

    def answering(value: Any) -> Any:
        return lambda check=None: value  # noqa: ARG005 -- the argument of what is replaced

    names = ("_get_accelerator", "_accelerator_getAccelerator")
    return {name: answering(getattr(torch._C, name)()) for name in names if hasattr(torch._C, name)}
