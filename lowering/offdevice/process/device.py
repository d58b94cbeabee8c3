"""An NPU played by the CPU, for scripts that were written for one.

Functions that name a device are replaced by ones that say CPU where NPU was said. They are plain
functions and no dispatch mode, so that Dynamo sees CPU calls. A tensor's ``device`` says ``cpu``,
which is what it is. Only the launcher does this; :func:`npu_lowering.offdevice.install` does not.
"""

# ruff: noqa: ARG001, ARG002, ARG005 -- signatures are those of what is replaced

from __future__ import annotations

import functools
import os
import time
import types
from collections.abc import Callable
from typing import Any

import torch

_ND = 2
_FORMAT = "_npu_lowering_format"

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
    """Replace what names an NPU, once torch_npu is imported; for the life of the process."""
    import torch_npu

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
    torch_npu.npu_format_cast = _recording(torch_npu.npu_format_cast)
    torch_npu.get_npu_format = _format_of
    for name, value in _runtime().items():
        setattr(torch_npu.npu, name, value)
    if hasattr(torch, "accelerator"):  # pragma: no branch -- from torch 2.6 on
        # Torch's own code asks here before it asks the device for a stream.
        torch.accelerator.is_available = lambda: False


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
    if original is not None:  # pragma: no branch -- older torch lacks some
        setattr(owner, last, wrapper(original))


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
        return _copy(self, result) if here != args or "device" in kwargs else result

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


def _recording(cast: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(cast)
    def npu_format_cast(self: Any, acl_format: int, *args: Any, **kwargs: Any) -> Any:
        result = cast(self, acl_format, *args, **kwargs)
        if not _is_compiling():  # pragma: no branch -- else Dynamo reads this and runs nothing
            setattr(result, _FORMAT, acl_format)
        return result

    return npu_format_cast


def _format_of(self: Any) -> int:
    """The storage format a tensor was cast to; ND, 2, if it was not."""
    return int(getattr(self, _FORMAT, _ND))


class _Context:
    """Enters nothing and leaves nothing: a device or a stream where there is only one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class _Stream(_Context):
    """The one queue of a CPU: whatever was put into it is done."""

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> Any:
        event = _Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        pass


class _Event:
    """A moment in the one queue of a CPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._time: float | None = None

    def record(self, stream: Any = None) -> None:
        self._time = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from this event to ``end``."""
        if self._time is None or end._time is None:
            raise RuntimeError("both events must be recorded before elapsed_time() is asked for")
        return float(end._time - self._time) * 1e3


_NOTHING = (
    "empty_cache init ipc_collect reset_max_memory_allocated reset_peak_memory_stats "
    "set_compile_mode set_device set_stream synchronize"
)
_NONE_USED = "max_memory_allocated max_memory_reserved memory_allocated memory_reserved"
_TRUE = "is_available is_bf16_supported is_initialized is_jit_compile_false"


def _runtime() -> dict[str, Any]:
    """The functions of ``torch.npu`` that a script may call, as of one idle device.

    Each name has an object of its own: Dynamo refuses one that it finds under two.
    """

    def constant(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    stream = _Stream()
    return {
        **{name: constant(None) for name in _NOTHING.split()},
        **{name: constant(0) for name in _NONE_USED.split()},
        **{name: constant(True) for name in _TRUE.split()},
        "device_count": constant(1),
        "current_device": constant(0),
        "current_stream": constant(stream),
        "default_stream": constant(stream),
        "manual_seed": lambda seed: _seed(seed),
        "manual_seed_all": lambda seed: _seed(seed),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "get_device_name": constant(_soc_name()),
        "get_device_properties": constant(
            types.SimpleNamespace(name=_soc_name(), total_memory=_memory()[1])
        ),
        "mem_get_info": lambda device=None: _memory(),
        **{name: type(name, (_Context,), {}) for name in ("device", "stream", "StreamContext")},
        "Stream": _Stream,
        "Event": _Event,
    }


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(int(seed))


def _memory() -> tuple[int, int]:
    """Free and total memory of this machine, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def _soc_name() -> str:
    """The device that graphs are lowered for."""
    from torchair.core import _torchair

    return str(_torchair.GetSocName())
