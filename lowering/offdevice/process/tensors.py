"""Tensors of an NPU, made, moved and loaded on the CPU.

Functions that name a device are replaced by ones that say CPU where NPU was said. They are plain
functions and no dispatch mode, so that Dynamo sees CPU calls.
"""

# ruff: noqa: ARG001 -- signatures are those of what is replaced

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from npu_lowering.operators import storage_format

# What makes a tensor and takes `device`. A release that lacks one of them is in no need of it.
_FACTORIES = (
    "arange as_tensor asarray bartlett_window blackman_window empty empty_like empty_permuted "
    "empty_strided eye fft.fftfreq fft.rfftfreq from_file full full_like hamming_window "
    "hann_window kaiser_window linspace logspace ones ones_like rand rand_like randint "
    "randint_like randn randn_like randperm range scalar_tensor sparse_coo_tensor tensor "
    "tril_indices triu_indices zeros zeros_like"
)
_METHODS = "new_empty new_empty_strided new_full new_ones new_tensor new_zeros"


def play() -> None:
    """Replace what makes and moves tensors; for the life of the process."""
    # Makes torch remember its own factories, in which a default device is put; ours call them.
    torch.utils._device._device_constructors()
    _replace(torch.utils._device.DeviceContext, "__init__", _on_cpu)
    _replace(torch, "set_default_device", _defaulting)
    for name in _FACTORIES.split():
        _replace(torch, name, _traced(_on_cpu))
    for name in _METHODS.split():
        _replace(torch.Tensor, name, _traced(_on_cpu))
    _replace(torch.Tensor, "to", _traced(_moving))
    _replace(torch.Tensor, "cpu", _traced(_copying))
    _replace(torch.Tensor, "pin_memory", _traced(_copying_only))
    _replace(torch, "load", _loading)
    _replace(torch, "Generator", _generating)
    _replace(torch.autocast, "__init__", _on_cpu)
    torch.Tensor.npu = torch._dynamo.allow_in_graph(_to_npu)  # type: ignore[attr-defined]
    torch.nn.Module.npu = _module_to_npu  # type: ignore[attr-defined]
    # Memory that a stream still reads is kept from being used again: a CPU has done by then.
    torch.Tensor.record_stream = _nothing  # type: ignore[method-assign]


def as_cpu(value: Any) -> Any:
    """``cpu`` for what names an NPU (``"npu"``, ``"npu:0"``, a torch.device); else ``value``."""
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "npu" else value
    if isinstance(value, str) and (value == "npu" or value.startswith("npu:")):
        return "cpu"
    return value


def _replace(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, last, None)
    if original is None:  # pragma: no cover -- older torch lacks some
        return
    replaced = wrapper(original)
    setattr(owner, last, replaced)
    # What TorchScript compiles, torch's own derivatives among it, names the operator as before.
    operator = torch.jit._builtins._find_builtin(original)
    if operator is not None:
        torch.jit._builtins._register_builtin(replaced, operator)


def _traced(wrapper: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``wrapper``, whose result is one call in Dynamo's graph.

    Older Dynamo cannot follow what it asks of a device.
    """
    return lambda function: torch._dynamo.allow_in_graph(wrapper(function))


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        args = tuple([as_cpu(arg) for arg in args])
        if "device" in kwargs:
            kwargs["device"] = as_cpu(kwargs["device"])
        if "device_type" in kwargs:
            kwargs["device_type"] = as_cpu(kwargs["device_type"])
        return function(*args, **kwargs)

    return on_cpu


def _defaulting(set_default_device: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(set_default_device)
    def defaulting(device: Any) -> None:
        # The CPU is torch's own default; to ask for it by name would add a mode to every call.
        set_default_device(device if as_cpu(device) is device else None)

    return defaulting


def _moving(to: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(to)
    def moving(self: Any, *args: Any, **kwargs: Any) -> Any:
        # An integer means a device of the accelerator.
        here = tuple(["cpu" if type(arg) is int else as_cpu(arg) for arg in args])
        if "device" in kwargs:
            device = kwargs["device"]
            kwargs["device"] = "cpu" if type(device) is int else as_cpu(device)
        result = to(self, *here, **kwargs)
        if here == args and "device" not in kwargs:
            return result
        copied = _copy(self, result)
        if copied is not result:  # what is on the device stays there, with its storage's format
            noted = storage_format.noted(self.untyped_storage())
            if noted is not None:
                storage_format.remember(copied, noted)
        return copied

    return moving


def _copy(source: Any, result: Any) -> Any:
    """``result``, or a copy if it is ``source``: what is moved to a device is a tensor of its own.

    Only eager code can tell, and a compiled graph is not to have a copy that it would not have.
    """
    plain = type(source) in (torch.Tensor, torch.nn.Parameter)
    return result.clone() if result is source and plain and not _is_compiling() else result


def _is_compiling() -> bool:
    return bool(torch._dynamo.is_compiling())


def _copying(cpu: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(cpu)
    def copying(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _copy(self, cpu(self, *args, **kwargs))

    return copying


def _copying_only(pin_memory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(pin_memory)
    def copying_only(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _copy(self, self)  # memory is pinned for a device

    return copying_only


def _to_npu(self: Any, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
    return self.to(device="cpu", non_blocking=non_blocking, **kwargs)


def _module_to_npu(self: Any, device: Any = None) -> Any:
    return self.to("npu")


def _loading(load: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(load)
    def loading(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if map_location is None:
            map_location = "cpu"  # a tensor saved on an NPU would be put back there
        elif isinstance(map_location, dict):
            map_location = {key: as_cpu(value) for key, value in map_location.items()}
        return load(f, as_cpu(map_location), *args, **kwargs)

    return loading


def _generating(generator: Any) -> Any:
    class Meta(type(generator)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, generator)

    class Generator(generator, metaclass=Meta):  # type: ignore[misc]
        def __new__(cls, device: Any = "cpu") -> Any:
            return generator(device=as_cpu(device))

    return Generator


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass
