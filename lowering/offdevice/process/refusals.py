"""One sentence of ours where torch_npu, without a device, would end in an error of C++."""

# ruff: noqa: ARG001 -- whatever the arguments are

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NoReturn

from npu_lowering import torch_internals
from npu_lowering.errors import OffDeviceError
from npu_lowering.operators import OPERATORS
from npu_lowering.operators.operator import NAMESPACE

NO_DEVICE = (
    "no NPU is here: npu_lowering.offdevice.install() only lets TorchAIR lower from CPU tensors; "
    "`python -m npu_lowering run SCRIPT` and `pytest --npu-offdevice` play an NPU on the CPU"
)
NOT_PLAYED = "{} is not among what the CPU plays of an NPU here (npu_lowering); it needs a device"
NO_KERNEL = (
    "{} cannot be computed here: of npu:: the CPU has kernels for {} (npu_lowering), and every "
    "other operator can only be lowered; npu_lowering.offdevice.lower(function, *args) gives the "
    "GE graph without running it"
)

# What asks C++ for a device before torch_npu asks _lazy_init(), which all the rest goes by.
_EARLY = (
    "ExternalStream.__new__",
    "NPUGraph.__new__",
    "Stream.__new__",
    "SyncLaunchStream.__new__",
    "get_device_limit",
    "get_device_properties",
    "get_per_process_memory_fraction",
    "get_rng_state",
    "graph.__init__",
    "initial_seed",
    "set_per_process_memory_fraction",
    "set_rng_state",
    "super_kernel_scope_begin",
    "super_kernel_scope_end",
    "utilization",
)

_kernels: list[Any] = []  # handles; what they registered goes when they go


def refuse_devices() -> None:
    """Let what needs a device say :data:`NO_DEVICE`, once torch_npu is imported."""
    npu: Any = importlib.import_module("torch_npu.npu")
    _put(npu, "_lazy_init", _no_device)
    for name in _EARLY:
        _put(npu, name, _no_device)
    _put(npu, "is_current_stream_capturing", lambda: False)
    _put(importlib.import_module("torch_npu.profiler"), "profile.__new__", _no_device)
    _refuse_process_groups(lambda _: _no_device)


def refuse_what_is_not_played(played: set[str]) -> None:
    """Let what stays refused, once the CPU plays a device, say so by name."""
    npu: Any = importlib.import_module("torch_npu.npu")
    for name in _EARLY:
        if name.split(".")[0] not in played:
            _put(npu, name, _not_played(f"torch.npu.{name.split('.')[0]}"))
    _refuse_process_groups(lambda backend: _not_played(f"the backend {backend.lower()}"))


def _refuse_process_groups(refusal: Callable[[str], Callable[..., Any]]) -> None:
    import torch

    plugins = getattr(torch.distributed.Backend, "_plugins", {})
    for backend in {"HCCL", "LCCL"} & plugins.keys():
        plugins[backend] = plugins[backend]._replace(creator_fn=refusal(backend))


def refuse_operators() -> None:
    """Give each operator of npu:: that CPU tensors would not find a kernel for one that says so.

    It replaces none: an operator that has a kernel, or is made of others, is left alone. A kernel
    that is registered later takes its place.
    """
    import torch

    library = torch.library.Library(NAMESPACE, "IMPL")
    _kernels.append(library)
    for qualname in list(torch_internals.operator_names(NAMESPACE)):
        if not torch_internals.finds_kernel(qualname, "CPU"):
            library.impl(qualname.partition("::")[2], _no_kernel(qualname), "CPU")
            # Else torch refuses the user's, since one is registered from Python already.
            torch_internals.forget_kernel(qualname, "CPU")


def computed_here() -> list[str]:
    """The operators of npu:: that this package has CPU kernels for."""
    defined = set(torch_internals.operator_names(NAMESPACE))
    return sorted(operator.qualname for operator in OPERATORS if operator.qualname in defined)


def _no_kernel(qualname: str) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(NO_KERNEL.format(qualname, ", ".join(computed_here())))

    return refuse


def _no_device(*args: Any, **kwargs: Any) -> NoReturn:
    raise OffDeviceError(NO_DEVICE)


def _not_played(name: str) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise OffDeviceError(NOT_PLAYED.format(name))

    return refuse


def _put(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Put a function where torch_npu has one; releases differ in what they have."""
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part, None)
    if owner is not None and hasattr(owner, last):
        setattr(owner, last, function)
